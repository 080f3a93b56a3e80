"""Show a run's progress on a terminal: a live panel, and a summary at the end."""

import datetime
import logging
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

from detectron2.engine import HookBase
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from d2ext.config.schedule import Schedule
from d2ext.engine.trainer import WINDOW
from d2ext.evaluation.metric_names import is_validation_loss
from d2ext.invocation import command
from d2ext.run_dir.names import BEST
from d2ext.run_dir.results import Results
from d2ext.terminal import console, is_live, show_cursor
from d2ext.text import with_interval

logger = logging.getLogger(__name__)

_PERIOD = 0.25  # seconds between two updates
_SEPARATOR = "   "


class LivePanel(HookBase):
    """Show epoch, iteration, ETA, images/s, losses, rate, memory and AP on a live terminal.

    Args:
        title: Title in the panel's frame.
        schedule: Schedule of the run.
        results: Results of the run so far.
    """

    def __init__(self, title: str, schedule: Schedule, results: Results):
        self._title = Text(title)  # a name may look like markup
        self._schedule = schedule
        self._results = results
        self._live = Live(console=console(), auto_refresh=False, transient=True)
        self._due = 0.0

    def before_train(self) -> None:
        if is_live():
            self._live.start()
            show_cursor(self._live)
            self._show(self.trainer.start_iter, "starting")

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        evaluates = self._schedule.evaluation_due(iteration)
        if self._live.is_started and (evaluates or time.monotonic() >= self._due):
            self._show(iteration, "evaluating" if evaluates else "")
            self._due = time.monotonic() + _PERIOD

    def after_train(self) -> None:
        self._live.stop()

    def _show(self, iteration: int, state: str) -> None:
        latest = self.trainer.storage.latest_with_smoothing_hint(WINDOW)
        numbers = {name: value for name, (value, _) in latest.items()}
        lines = panel_lines(iteration, self._schedule, numbers, self._results, state)
        content = Table.grid(expand=True)
        content.add_row(ProgressBar(total=self._schedule.max_iter, completed=iteration))
        for line in lines:
            content.add_row(Text(line, overflow="fold"))
        self._live.update(Panel(content, title=self._title, title_align="left"), refresh=True)


def panel_lines(
    iteration: int,
    schedule: Schedule,
    numbers: Mapping[str, float],
    results: Results,
    state: str = "",
) -> list[str]:
    """Return the panel's lines as plain text.

    Args:
        iteration: Number of complete iterations.
        schedule: Schedule of the run.
        numbers: Latest numbers, as in metrics.json: `time` in seconds, `lr`, `memory_mb`, and the
            losses, which are medians.
        results: Results of the run so far.
        state: Activity other than training, such as "evaluating"; may be empty.
    """
    epoch = min(iteration, schedule.max_iter - 1) * schedule.batch_size / schedule.num_images
    where = [
        f"epoch {int(epoch) + 1} of {schedule.epochs:.4g}",
        f"iteration {iteration} of {schedule.max_iter}",
    ]
    if seconds := numbers.get("time"):
        left = datetime.timedelta(seconds=int(seconds * (schedule.max_iter - iteration)))
        where += [f"ETA {left}", f"{schedule.batch_size / seconds:.3g} images/s"]
    losses = {
        name: value
        for name, value in numbers.items()
        if "loss" in name and not is_validation_loss(name)
    }
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
        # The metric of train.best; without one, the first AP of the results.
        keys = [k for k in entry.results if k.endswith("/AP")] if entry else []
        key = results.best.metric if results.best else next(iter(keys), None)
        if entry and key:
            score = with_interval(entry.results[key], (entry.intervals or {}).get(key))
            words.append(f"{name} {key} {score} at {entry.iteration}")
    return words


def print_summary(out: Path, results: Results, again: str, stopped: bool) -> None:
    """Print where the run's files are and the next command: as a box on a terminal, else as lines.

    Args:
        out: Run directory.
        results: Results of the run.
        again: Command or Python call that resumes the run.
        stopped: Whether a signal stopped the run.
    """
    rows = _where(out, results, again, stopped)
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


def _where(out: Path, results: Results, again: str, stopped: bool) -> dict[str, str]:
    rows = {"report": str(out / "report.html")}
    if scores := _scores(results):
        rows["AP"] = _SEPARATOR.join(scores)
    if (out / BEST).is_file():
        rows["weights"] = str(out / BEST)
    elif (out / "last_checkpoint").is_file():
        rows["weights"] = str(out / (out / "last_checkpoint").read_text())
    rows["log"] = str(out / "log.txt")
    if stopped:
        rows["resume"] = again
    else:
        rows["predict"] = f"{command('predict')} {shlex.quote(str(out))} IMAGES"
    return rows


def resuming(line: str) -> str:
    """Return the command line that resumes the run that was started by `line`, from run.json."""
    words = shlex.split(line)
    if "d2ext" in words:
        start = words.index("d2ext") + 2  # after `d2ext train`
    else:
        start = next(i for i, word in enumerate(words) if word.endswith(".py")) + 1
    for flag, length in (("--resume", 1), ("--overwrite", 1), ("--resume-from", 2)):
        if flag in words:
            i = words.index(flag)
            del words[i : i + length]
    words = [word for word in words if not word.startswith("--resume-from=")]
    return shlex.join([*words[:start], "--resume", *words[start:]])  # overrides come last
