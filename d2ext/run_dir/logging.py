"""Route log records: all to a file, the important ones to the terminal."""

import contextlib
import logging
import logging.handlers
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from d2ext.terminal import console, is_live

_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
_LOGGERS = ("d2ext", "detectron2", "fvcore", "iopath", "py.warnings")
_TRACER = "torch.fx._symbolic_trace"  # warns about itself at each call of a Detectron2 model
# Details for the file only: names of tensors that are not loaded, and warnings of libraries.
_FILE_ONLY = ("fvcore.common.checkpoint", "iopath", "py.warnings")


def setup_logging(quiet: bool = False) -> None:
    """Print records of d2ext and its libraries to stdout, and keep them for `log_to_file`.

    On a terminal, a live panel replaces the loss lines; the file always contains them. Another call
    replaces the handlers of the first one.

    Args:
        quiet: Print only warnings and errors, as ranks other than 0 do.
    """
    logging.captureWarnings(True)
    logging.getLogger(_TRACER).setLevel(logging.ERROR)
    console = _Console()
    console.setFormatter(logging.Formatter("%(message)s"))
    console.addFilter(_for_console)
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    kept = logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        _close_handlers(logger)
        logger.handlers = [console, kept]


@contextlib.contextmanager
def logging_set_up(quiet: bool) -> Iterator[None]:
    """Call `setup_logging` for the block; then close its handlers and put the earlier ones back."""
    loggers = [*map(logging.getLogger, _LOGGERS), logging.getLogger(_TRACER)]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    show_warning = warnings.showwarning
    for logger in loggers:
        logger.handlers = []
    try:
        setup_logging(quiet)
        yield
    finally:
        if warnings.showwarning is not show_warning:  # else another program captures them
            logging.captureWarnings(False)
        for logger, handlers, level, propagate in before:
            _close_handlers(logger)
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def _close_handlers(logger: logging.Logger) -> None:
    for handler in logger.handlers:
        with contextlib.suppress(OSError):  # a full disk, which has been reported
            handler.close()


def log_to_file(file: Path) -> None:
    """Append all records since `setup_logging`, and all later ones, to `file`."""
    handler = _File(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for kept in [h for h in logger.handlers if isinstance(h, logging.handlers.MemoryHandler)]:
            kept.setTarget(handler)
            kept.flush()
            logger.removeHandler(kept)
        logger.addHandler(handler)


def _for_console(record: logging.LogRecord) -> bool:
    if record.name.startswith(_FILE_ONLY):
        return False
    if record.name == "detectron2.utils.events":
        return not is_live()
    return record.name.startswith("d2ext") or record.levelno >= logging.WARNING


class _File(logging.FileHandler):
    """Log to a file; if the disk is full, raise an error instead of printing one per line."""

    def handleError(self, record: logging.LogRecord) -> None:
        e = sys.exception()
        if isinstance(e, OSError):
            with contextlib.suppress(OSError):  # closing writes the buffer again
                self.close()
            raise OSError(e.errno, e.strerror, self.baseFilename)
        raise


class _Console(logging.Handler):
    """Log to stdout, above the live panel."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if record.levelno >= logging.WARNING:
            line = f"{record.levelname.lower()}: {line}"
        console().print(line, soft_wrap=True)
