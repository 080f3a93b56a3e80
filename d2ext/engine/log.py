"""Where log records go: plain lines to a file, the ones a person follows to the terminal."""

import logging
import sys
from pathlib import Path

from tqdm import tqdm

_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
_LOGGERS = ("d2ext", "detectron2", "fvcore", "iopath", "py.warnings")
# Details for the file: tensors by name that a fine-tuning leaves out, libraries' own warnings.
_FILE_ONLY = ("fvcore.common.checkpoint", "iopath", "py.warnings")


def setup_logging(file: Path | None = None, quiet: bool = False) -> None:
    """Sends what d2ext and the libraries below it log to stdout and, appended, to `file`.

    On a terminal a progress bar takes the place of the loss lines; the file has them always.
    `quiet`, of ranks other than 0, leaves only warnings to the terminal. Calling it again
    replaces the earlier file.
    """
    logging.captureWarnings(True)
    # torch warns of its own tracer whenever a Detectron2 model is called.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    console = _Console()
    console.setFormatter(logging.Formatter("%(message)s"))
    console.addFilter(_for_console)
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    handlers: list[logging.Handler] = [console]
    if file:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
        handlers[-1].setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        # Debug records of ours are for the file: what the terminal has seen before there was one.
        logger.setLevel(logging.DEBUG if name == "d2ext" else logging.INFO)
        logger.propagate = False
        for old in logger.handlers:
            old.close()
        logger.handlers = list(handlers)


def _for_console(record: logging.LogRecord) -> bool:
    if record.name == "detectron2.utils.events":
        return not sys.stderr.isatty()
    if record.name.startswith(_FILE_ONLY):
        return False
    return record.name.startswith("d2ext") or record.levelno >= logging.WARNING


class _Console(logging.Handler):
    """stdout, without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if record.levelno >= logging.WARNING:
            line = f"{record.levelname.lower()}: {line}"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
