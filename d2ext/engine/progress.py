"""What a person at a terminal sees of a training: a panel that is renewed, and a box at the end."""

import datetime
import logging
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from detectron2.engine import HookBase
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from d2ext.config.schedule import Schedule
from d2ext.run_dir.names import BEST
from d2ext.run_dir.results import Results
from d2ext.terminal import console, is_live, show_cursor

logger = logging.getLogger(__name__)

_PERIOD = 0.25  # seconds between two pictures
_WINDOW = 20  # iterations whose median is shown
_SEPARATOR = "   "


class LivePanel(HookBase):
    """Epoch, iteration, time left, images/s, losses, rate, memory and AP, where stdout can do it.

    Args:
        title: stands in its frame.
        schedule: of the run.
        results: of the run so far.
        evaluates: whether there is an evaluation behind so many iterations.
    """

    def __init__(
        self, title: str, schedule: Schedule, results: Results, evaluates: Callable[[int], bool]
    ):
        self._title = Text(title)  # a name may look like markup
        self._schedule = schedule
        self._results = results
        self._evaluates = evaluates
        self._live = Live(console=console(), auto_refresh=False, transient=True)
        self._due = 0.0

    def before_train(self) -> None:
        if is_live():
            self._live.start()
            show_cursor(self._live)
            self._show(self.trainer.start_iter, "starting")

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        evaluates = self._evaluates(done)
        if self._live.is_started and (evaluates or time.monotonic() >= self._due):
            self._show(done, "evaluating" if evaluates else "")
            self._due = time.monotonic() + _PERIOD

    def after_train(self) -> None:
        self._live.stop()

    def _show(self, done: int, state: str) -> None:
        numbers = {
            name: history.median(_WINDOW)
            for name, history in self.trainer.storage.histories().items()
        }
        lines = panel_lines(done, self._schedule, numbers, self._results, state)
        content = Table.grid(expand=True)
        content.add_row(ProgressBar(total=self._schedule.max_iter, completed=done))
        for line in lines:
            content.add_row(Text(line, overflow="fold"))
        self._live.update(Panel(content, title=self._title, title_align="left"), refresh=True)


def panel_lines(
    done: int,
    schedule: Schedule,
    numbers: Mapping[str, float],
    results: Results,
    state: str = "",
) -> list[str]:
    """The panel's lines, as plain text.

    Args:
        done: iterations.
        schedule: of the run.
        numbers: of the last steps: `time` in seconds, `lr`, `memory_mb`, and the losses.
        results: of the run so far.
        state: what is done beside training.
    """
    epoch = min(done, schedule.max_iter - 1) * schedule.batch_size / schedule.num_images
    where = [
        f"epoch {int(epoch) + 1} of {schedule.epochs:.4g}",
        f"iteration {done} of {schedule.max_iter}",
    ]
    if seconds := numbers.get("time"):
        left = datetime.timedelta(seconds=int(seconds * (schedule.max_iter - done)))
        where += [f"ETA {left}", f"{schedule.batch_size / seconds:.3g} images/s"]
    losses = {name: value for name, value in numbers.items() if "loss" in name}
    total = losses.pop("total_loss", None)
    lines = [_SEPARATOR.join([*where, *filter(None, [state])])]
    if total is not None:
        parts = (f"{name.removeprefix('loss_')} {value:.3g}" for name, value in losses.items())
        lines.append(_SEPARATOR.join([f"loss {total:.4g}", *parts]))
    rest = [f"lr {numbers['lr']:.3g}"] if "lr" in numbers else []
    if "memory_mb" in numbers:
        rest.append(f"memory {numbers['memory_mb'] / 1024:.2f} GB")
    return [*lines, _SEPARATOR.join([*rest, *(_scores(results) or ["no evaluation yet"])])]


def _scores(results: Results) -> list[str]:
    words = []
    for name, entry in (("last", results.last), ("best", results.best)):
        # The metric that decides; else the first AP, since every metric has its own.
        keys = [k for k in entry.results if k.endswith("/AP")] if entry else []
        key = results.best.metric if results.best else next(iter(keys), None)
        if entry and key:
            value = entry.results[key]
            score = "none" if value is None else f"{value:.1f}"
            words.append(f"{name} {key} {score} at {entry.iteration}")
    return words


def print_summary(out: Path, results: Results, command: str, stopped: bool) -> None:
    """Says where everything is, and what goes on from there: in a box on a terminal, else in lines.

    Args:
        out: folder of the run.
        results: of the run.
        command: that started it.
        stopped: whether a signal ended it before its time.
    """
    rows = _where(out, results, command, stopped)
    title = "Stopped and saved" if stopped else "Finished"
    if not is_live():
        logger.info(title)
        for name, value in rows.items():
            logger.info("%s: %s", name, value)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name), Text(value, overflow="fold"))
    console().print(Panel(table, title=title, title_align="left", expand=False))


def _where(out: Path, results: Results, command: str, stopped: bool) -> dict[str, str]:
    rows, weights = {"report": str(out / "report.html")}, "last"
    if scores := _scores(results):
        rows["AP"] = _SEPARATOR.join(scores)
    if (out / BEST).is_file():
        rows["weights"], weights = str(out / BEST), "best"
    elif (out / "last_checkpoint").is_file():
        rows["weights"] = str(out / (out / "last_checkpoint").read_text())
    rows["log"] = str(out / "log.txt")
    if stopped:
        rows["go on"] = resuming(command)
    else:
        config = shlex.quote(str(out / "config.yaml"))
        rows["predict"] = (
            f"python tools/predict.py --config-file {config} --weights {weights} IMAGES"
        )
    return rows


def resuming(command: str) -> str:
    """The command that goes on with what `command`, of run.json, has begun."""
    words = shlex.split(command)
    tool = next(i for i, word in enumerate(words) if word.endswith(".py")) + 1
    for flag, length in (("--resume", 1), ("--overwrite", 1), ("--resume-from", 2)):
        if flag in words:
            i = words.index(flag)
            del words[i : i + length]
    words = [word for word in words if not word.startswith("--resume-from=")]
    return shlex.join([*words[:tool], "--resume", *words[tool:]])  # overrides stand last
