"""Train recipes as a user does, and measure what they cost; for the scripts that compare recipes.

Each run is `tools/train_net.py` in a new process. Its CPU time includes its data-loading workers,
so that times can be compared on a machine that does other work as well.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib
from common import ROOT, machine
from matplotlib.figure import Figure

MEASURED = "benchmark.json"  # in the run directory of a finished run
AP = "segm/AP"
COLUMNS = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50")
TIMES = {"minutes": "minutes", "cpu_minutes": "CPU minutes"}
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Recipe:
    """A config with overrides, under a name."""

    name: str
    config: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A run to do.

    Attributes:
        dataset: Name of the data.
        data: Overrides that choose the data.
        recipe: What is trained.
        seed: Value of `train.seed`.
        runs: Folder of the run directories.
    """

    dataset: str
    data: tuple[str, ...]
    recipe: Recipe
    seed: int
    runs: Path

    @property
    def name(self) -> str:
        """Return the name of the run directory."""
        return f"{self.dataset}_{self.recipe.name}_s{self.seed}"

    @property
    def run(self) -> Path:
        """Return the run directory."""
        return self.runs / self.name

    @property
    def log(self) -> Path:
        """Return the log file."""
        return self.runs / f"{self.name}.log"


@dataclass
class Measured:
    """The results of a run; benchmark.json of its run directory.

    Attributes:
        dataset: As in `Job`.
        recipe: Name of the recipe.
        config: Its config.
        overrides: Its overrides and those of the data.
        seed: Value of `train.seed`.
        minutes: Time of the whole command.
        cpu_minutes: User and system time of its processes.
        threads: OMP_NUM_THREADS; None if it was not set.
        parallel: How many runs were done at the same time.
        machine: As from `machine`.
        results: Percentages of the last evaluation, by the columns in `COLUMNS`.
        curve: The lines of metrics.json: `iteration`, `seconds` and `cpu_seconds` since the start
            of the command, accurate to a second, and losses and AP as far as the line has them.
    """

    dataset: str
    recipe: str
    config: str
    overrides: list[str]
    seed: int
    minutes: float
    cpu_minutes: float
    threads: int | None
    parallel: int
    machine: str
    results: dict[str, float]
    curve: list[dict[str, float]]


@dataclass
class _Running:
    """A run whose process has started."""

    job: Job
    process: subprocess.Popen
    start: float
    marks: list[tuple[float, float]] = field(default_factory=list)  # of each line of metrics.json


def add_arguments(parser: argparse.ArgumentParser, config: str, seeds: Sequence[int]) -> None:
    """Add the flags that all comparisons of recipes have.

    Args:
        parser: Parser of the script.
        config: Config to run if none is given.
        seeds: Seeds to run if none are given.
    """
    parser.add_argument(
        "--config",
        nargs="+",
        action="append",
        metavar=("[NAME=]FILE", "KEY=VALUE"),
        help=f"recipe with overrides; repeat it to compare others with the first ({config})",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--options", nargs="*", default=[], help="overrides of all recipes")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="keep the runs; skip finished ones"
    )
    parser.add_argument("--threads", type=int, help="threads of each run (torch's default)")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at a time (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results and curves")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw AP against CPU minutes")
    parser.set_defaults(default_config=config)


def recipes_of(args: argparse.Namespace) -> list[Recipe]:
    """Return the recipes that the flags of `add_arguments` name."""
    recipes = []
    for text, *overrides in args.config or [[args.default_config]]:
        name, equals, config = text.partition("=")
        if not equals:
            name, config = Path(text).stem, text
        recipes.append(Recipe(name, config, (*args.options, *overrides)))
    return recipes


def compare(
    args: argparse.Namespace, recipes: Sequence[Recipe], sets: Mapping[str, Sequence[str]]
) -> None:
    """Train each recipe with each seed on each set, and print Markdown tables.

    Runs that are compared with each other follow each other. Exit with status 1 if one fails.

    Args:
        args: The flags of `add_arguments`.
        recipes: The recipes; the others are compared with the first.
        sets: Overrides that choose the data, by name of the dataset.
    """
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        sys.exit(f"error: two recipes have the same name ({', '.join(names)}); rename one")
    for name in names:
        if not re.fullmatch(r"[\w.+-]+", name):
            sys.exit(f"error: the recipe name {name!r} is not a file name; use letters and digits")
    print(f"{machine()}\n")
    for recipe in recipes:
        print(f"- {recipe.name}: {recipe.config} {' '.join(recipe.overrides)}".rstrip())
    print(flush=True)
    with tempfile.TemporaryDirectory() as made:
        runs = (args.runs or Path(made)).resolve()
        jobs = [
            Job(name, tuple(data), recipe, seed, runs)
            for name, data in sets.items()
            for seed in args.seeds
            for recipe in recipes
        ]
        measured = _run_all(jobs, args.threads, args.parallel)
    if measured:
        _print_runs(measured)
        _print_means(measured, recipes)
        if args.json:
            args.json.write_text(_as_json(measured))
        if args.svg:
            write_curves(measured, args.svg)
    if len(measured) < len(jobs):
        sys.exit(f"error: {len(jobs) - len(measured)} of {len(jobs)} runs failed")


def _run_all(jobs: Sequence[Job], threads: int | None, parallel: int) -> list[Measured]:
    """Do the runs that are not finished yet, and return the results of all that succeeded."""
    waiting = [job for job in jobs if _finished(job, threads) is None]
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                running.append(_start(waiting.pop(0), threads))
            time.sleep(1)
            running = [run for run in running if not _ended(run, threads, parallel)]
    finally:
        for run in running:
            run.process.terminate()
        for run in running:
            run.process.wait()
    return [measured for job in jobs if (measured := _finished(job, threads)) is not None]


def _finished(job: Job, threads: int | None) -> Measured | None:
    """Return the results of a finished run; None if it is still to do."""
    file = job.run / MEASURED
    if not file.exists():
        return None
    measured = Measured(**json.loads(file.read_text()))
    if (measured.config, measured.overrides) != (job.recipe.config, _overrides(job)):
        sys.exit(
            f"error: {job.run} was measured with {measured.config} {' '.join(measured.overrides)};"
            " give the recipe another name, or another --runs"
        )
    # The number of threads changes the CPU time; `parallel` changes it only a little.
    if measured.threads != threads:
        before = f"--threads {measured.threads}" if measured.threads else "no --threads"
        sys.exit(f"error: {job.run} was measured with {before}; give the same, or another --runs")
    return measured


def _overrides(job: Job) -> list[str]:
    return [*job.data, *job.recipe.overrides]


def _start(job: Job, threads: int | None) -> _Running:
    job.runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "tools/train_net.py", "--config-file", job.recipe.config]
    command += ["--work-dir", str(job.run), "--overwrite", f"train.seed={job.seed}"]
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with open(job.log, "w") as log:
        process = subprocess.Popen(
            [*command, *_overrides(job)],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    print(f"{job.name} started", file=sys.stderr, flush=True)
    return _Running(job, process, time.perf_counter())


def _ended(run: _Running, threads: int | None, parallel: int) -> bool:
    """Record the cost of new lines of metrics.json; write the results of a run that has ended."""
    metrics = run.job.run / "metrics.json"
    # The CPU time first: it cannot be read after the process has ended.
    cpu = _cpu_seconds(run.process.pid)
    pid, status, usage = os.wait4(run.process.pid, os.WNOHANG)
    seconds = time.perf_counter() - run.start
    if pid:
        run.process.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    if len(lines) < len(run.marks):  # those were of an unfinished run, which is moved aside now
        run.marks = []
    run.marks += [(seconds, cpu)] * (len(lines) - len(run.marks))
    if not pid:
        return False
    job = run.job
    if run.process.returncode:
        print(
            f"{job.name} failed with status {run.process.returncode}: {_last_line(job.log)}",
            file=sys.stderr,
        )
        return True
    last = json.loads((job.run / "results.json").read_text())["last"]["results"]
    measured = Measured(
        job.dataset,
        job.recipe.name,
        job.recipe.config,
        _overrides(job),
        job.seed,
        seconds / 60,
        cpu / 60,
        threads,
        parallel,
        machine(),
        _columns(last),
        [_point(json.loads(line), *mark) for line, mark in zip(lines, run.marks, strict=True)],
    )
    (job.run / MEASURED).write_text(json.dumps(asdict(measured)))
    results = ", ".join(f"{column} {value:.1f}" for column, value in measured.results.items())
    print(f"{job.name}: {results}, {cpu / 60:.1f} CPU minutes", file=sys.stderr, flush=True)
    return True


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["nothing was printed"])[-1]


def _columns(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values by the columns in `COLUMNS`; their keys begin with a dataset's name."""
    ends = {key.partition("coco/")[2]: value for key, value in values.items()}
    return {column: ends[column] for column in COLUMNS if column in ends}


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time so far of a process, its descendants, and those that they waited for."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        process = int(stat.parent.name)
        parents[process] = int(fields[1])
        ticks[process] = sum(map(int, fields[11:15]))
    family, added = {pid}, True
    while added:
        added = {process for process, parent in parents.items() if parent in family} - family
        family |= added
    return sum(ticks.get(process, 0) for process in family) / _TICK


def _point(line: dict[str, float], seconds: float, cpu: float) -> dict[str, float]:
    """Return what the curves need of a line of metrics.json."""
    point = {"iteration": line["iteration"], "seconds": seconds, "cpu_seconds": cpu}
    if "total_loss" in line:
        point["train_loss"] = line["total_loss"]
    losses = [value for key, value in line.items() if "/validation_loss/" in key]
    if losses:
        point["validation_loss"] = sum(losses)
    return {key: round(value, 4) for key, value in (point | _columns(line)).items()}


def _mean(measured: Iterable[Measured], column: str) -> float:
    """Return the mean of a result over runs, or of `minutes` or `cpu_minutes`."""
    return statistics.mean(
        getattr(m, column) if column in TIMES else m.results[column] for m in measured
    )


def _times(measured: Sequence[Measured]) -> list[str]:
    """Return the times to print: minutes mean nothing if runs shared the machine with others."""
    return list(TIMES) if all(m.parallel == 1 for m in measured) else ["cpu_minutes"]


def _print_runs(measured: Sequence[Measured]) -> None:
    """Print a row for each run.

    Minutes are those of the whole command: imports, training, evaluations, pictures and report.
    """
    columns = [*COLUMNS, *_times(measured)]
    titles = [TIMES.get(column, column) for column in columns]
    print("| " + " | ".join(["data", "recipe", "seed", *titles]) + " |")
    print("|---" * (3 + len(columns)) + "|")
    for m in measured:
        values = [f"{_mean([m], column):.1f}" for column in columns]
        print("| " + " | ".join([m.dataset, m.recipe, str(m.seed), *values]) + " |")


def _print_means(measured: Sequence[Measured], recipes: Sequence[Recipe]) -> None:
    """Print the means over the seeds and their relation to those of the first recipe."""
    times = _times(measured)
    titles = ["data", "recipe", "runs", *COLUMNS, *(TIMES[time] for time in times)]
    titles += [f"{AP} more", *(f"times the {TIMES[time]}" for time in times)]
    print("\n| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|")
    relations: dict[str, list[list[float]]] = {recipe.name: [] for recipe in recipes[1:]}
    for dataset in dict.fromkeys(m.dataset for m in measured):
        first: list[Measured] = []
        for recipe in recipes:
            runs = [m for m in measured if (m.dataset, m.recipe) == (dataset, recipe.name)]
            if not runs:
                continue
            row = [f"{_mean(runs, column):.1f}" for column in (*COLUMNS, *times)]
            if recipe is recipes[0]:
                first = runs
            elif first:
                relation = [_mean(runs, AP) - _mean(first, AP)]
                relation += [_mean(runs, time) / _mean(first, time) for time in times]
                relations[recipe.name].append(relation)
                row += [f"{relation[0]:+.1f}", *(f"{ratio:.2f}" for ratio in relation[1:])]
            row += [""] * (len(titles) - 3 - len(row))
            print("| " + " | ".join([dataset, recipe.name, str(len(runs)), *row]) + " |")
    for name, rows in relations.items():
        if len(rows) > 1:
            gains, *ratios = zip(*rows, strict=True)
            print(
                f"\n{name} on {len(rows)} sets: {statistics.mean(gains):+.1f} {AP} on average,"
                f" {min(gains):+.1f} at worst"
            )
            for time, each in zip(times, ratios, strict=True):
                mean = statistics.mean(each)
                print(f"- {mean:.2f} times the {TIMES[time]} on average, {max(each):.2f} at most")


def _as_json(measured: Sequence[Measured]) -> str:
    """Return a JSON list with a line for each run."""
    return "[\n" + ",\n".join(json.dumps(asdict(m)) for m in measured) + "\n]\n"


def write_curves(measured: Sequence[Measured], file: Path) -> None:
    """Draw AP against CPU minutes as SVG: a panel for each dataset, a line for each run."""
    sets = list(dict.fromkeys(m.dataset for m in measured))
    recipes = list(dict.fromkeys(m.recipe for m in measured))
    columns = min(3, len(sets))
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(axes, sets, strict=False):
        for m in measured:
            points = [(p["cpu_seconds"] / 60, p[AP]) for p in m.curve if AP in p]
            if m.dataset == name and points:
                color = f"C{recipes.index(m.recipe)}"
                axis.plot(*zip(*points, strict=True), color=color, marker=".", linewidth=1)
        axis.set(title=name, ylim=(0, None), xlim=(0, None))
    for axis in axes[len(sets) :]:
        axis.axis("off")
    for i, recipe in enumerate(recipes):
        axes[0].plot([], [], color=f"C{i}", label=recipe)
    axes[0].legend(frameon=False)
    figure.supxlabel("CPU minutes since the start of the command", fontsize="medium")
    figure.supylabel(AP, fontsize="medium")
    # Text as text, and fixed ids: small files that differ only where the curves do.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
