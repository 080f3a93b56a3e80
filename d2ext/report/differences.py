"""Compare the results of runs draw by draw, and the seeds of one config with each other."""

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from d2ext.evaluation.bootstrap.comparison import (
    ABOUT_DIFFERENCES,
    Difference,
    differences,
    is_shown,
    labeled,
    mean_of,
    meaning,
    plot,
    seeds_meaning,
    sentence,
    spread,
)
from d2ext.evaluation.bootstrap.resampling import Samples, read_samples
from d2ext.invocation import command
from d2ext.report.config import leaves
from d2ext.report.read import RunRecord
from d2ext.run_dir.names import RESAMPLES, digest_of
from d2ext.run_dir.schema import ResultsRecord, read_valid_part
from d2ext.text import shortened

# Keys that differ between two trainings of one config with different seeds.
_OF_A_SEED = (
    *("train.output_dir", "train.seed", "train.dist", "train.log_period", "train.writers"),
    *("train.intervals", "train.resamples"),
)


@dataclass(frozen=True)
class Group:
    """A run, or the runs of one config with different seeds.

    Attributes:
        names: Names of the runs.
        samples: Draws of each run, by dataset.
    """

    names: list[str]
    samples: list[dict[str, Samples]]

    def __str__(self) -> str:
        count = len(self.names)
        return self.names[0] if count == 1 else f"{self.names[0]} (mean of {count} seeds)"

    def mean(self, dataset: str) -> Samples:
        """Return the mean of the draws of a dataset over the seeds."""
        return mean_of([of[dataset] for of in self.samples])

    def estimates(self, dataset: str, key: str) -> list[float]:
        """Return the result of each seed."""
        return [of[dataset].estimates[key] for of in self.samples]


@dataclass(frozen=True)
class Row:
    """The difference of a result between two runs, or groups of seeds.

    Attributes:
        key: Key of the result.
        name: Name of the run.
        base: Name of the run that it is compared with.
        difference: Their difference.
        seeds: Sentence about the spread between seeds.
    """

    key: str
    name: str
    base: str
    difference: Difference
    seeds: str

    @property
    def sentence(self) -> str:
        """Return who is better by how much."""
        metric = self.key.rsplit("/", 1)[-1]
        return sentence(self.name, self.base, metric, self.difference)

    @property
    def meaning(self) -> str:
        """Return what a difference of this size can mean."""
        return f"{meaning(self.difference)} {self.seeds}"


@dataclass
class Comparison:
    """All differences between runs.

    Attributes:
        rows: Differences to the first run.
        spreads: Sentences about the seeds of one config.
        notes: Sentences about what was not compared, or with other files, and why.
    """

    rows: list[Row] = field(default_factory=list)
    spreads: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def by_key(self) -> Iterator[tuple[str, list[Row]]]:
        """Yield each result with its rows."""
        for key, rows in groupby(self.rows, lambda row: row.key):
            yield key, list(rows)

    def lines(self) -> list[str]:
        """Return the comparison as text for the terminal."""
        lines = list(self.notes)
        for key, rows in self.by_key():
            lines += [f"{key}: {row.sentence}" for row in rows]
        if self.rows:
            pairs = {(row.name, row.base) for row in self.rows}
            several = len(pairs) > 1
            rows = {f"{r.name}, {r.key}" if several else r.key: r for r in self.rows}
            lines += labeled({label: row.meaning for label, row in rows.items()})
            lines += ["", *plot({label: row.difference for label, row in rows.items()})]
            lines += ["", ABOUT_DIFFERENCES]
        return [*lines, *self.spreads]


def compare_results(
    folders: Sequence[Path], names: Sequence[str], runs: Sequence[RunRecord]
) -> Comparison:
    """Compare each run, or the mean of the seeds of a config, with the first one.

    Args:
        folders: Run directories.
        names: Names of the runs.
        runs: Contents of the run directories.
    """
    found = Comparison()
    samples: dict[str, dict[str, Samples]] = {}
    for folder, name, run in zip(folders, names, runs, strict=True):
        if drawn := _samples(folder, name, run, found.notes):
            samples[name] = drawn
    configs = {name: run.config for name, run in zip(names, runs, strict=True)}
    groups = _groups(samples, configs)
    found.spreads += [text for group in groups for text in _spreads(group)]
    one_config = len(groups) == 1
    if one_config:
        groups = [Group([name], [of]) for name, of in samples.items()]
    for group in groups[1:]:
        first, other = groups[0].names[0], group.names[0]
        if keys := _different_evaluators(configs[other], configs[first]):
            found.notes.append(
                f"{group} and {groups[0]} may not be comparable: their evaluators differ"
                f" ({shortened(keys, 3)})."
            )
        found.rows += _rows(group, groups[0], one_config, found.notes)
    found.rows.sort(key=lambda row: row.key)
    return found


def _samples(folder: Path, name: str, run: RunRecord, notes: list[str]) -> dict[str, Samples]:
    """Return the draws of a run's best or last evaluation, or those of `d2ext evaluate RUN`.

    Args:
        folder: Run directory.
        name: Name of the run.
        run: Content of the run directory.
        notes: List to which a sentence is added if there are no draws in the run itself.
    """
    evaluation = run.evaluations.get("best") or run.evaluations.get("last")
    if evaluation and (found := _read(folder, evaluation.samples)):
        return found
    later = read_valid_part(folder / "eval" / "results.json", ResultsRecord).last
    if later and (found := _read(folder / "eval", later.samples)):
        notes.append(f"{name} has no draws of its images; those of {name}/eval are compared.")
        return found
    notes.append(
        f"{name} is not compared: it has no draws of its images; make them with"
        f" {command('evaluate')} {shlex.quote(str(folder))} --intervals"
    )
    return {}


def _read(folder: Path, file: object) -> dict[str, Samples]:
    """Return the draws in a file that results.json names; {} if it is missing or damaged."""
    if not isinstance(file, str):
        return {}
    path = folder / RESAMPLES / Path(file).name
    with contextlib.suppress(OSError):
        if digest_of(path) == path.stem:
            return read_samples(path)
    return {}


def _groups(samples: Mapping[str, dict[str, Samples]], configs: Mapping[str, str]) -> list[Group]:
    """Return the runs in groups of equal configs and test sets with different seeds."""
    groups: list[Group] = []
    known: dict[tuple, tuple[Group, set[str]]] = {}
    for name, of in samples.items():
        values = leaves(configs[name])
        kind = (
            *sorted((k, str(v)) for k, v in values.items() if not k.startswith(_OF_A_SEED)),
            *sorted((dataset, drawn.ground_truth) for dataset, drawn in of.items()),
        )
        seed = str(values.get("train.seed", 0))
        group, seeds = known.get(kind, (None, set()))
        if values and group and seed not in seeds:
            group.names.append(name)
            group.samples.append(of)
            seeds.add(seed)
        else:
            groups.append(Group([name], [of]))
            known[kind] = groups[-1], {seed}
    return groups


def _different_evaluators(config: str, base: str) -> list[str]:
    """Return the keys of section `evaluators` in which two configs differ; [] if one is missing."""
    if not config or not base:
        return []
    ours, theirs = (
        {k: str(v) for k, v in leaves(text).items() if k.startswith("evaluators.")}
        for text in (config, base)
    )
    return [k for k in {**theirs, **ours} if ours.get(k) != theirs.get(k)]


def _spreads(group: Group) -> Iterator[str]:
    if len(group.names) > 1:
        for dataset in group.samples[0]:
            for key in filter(is_shown, group.mean(dataset).values):
                text = spread(group.estimates(dataset, key))
                yield f"{dataset}/{key} of {', '.join(group.names)}: {text}"


def _rows(group: Group, base: Group, one_config: bool, notes: list[str]) -> Iterator[Row]:
    """Yield the differences of two groups.

    Args:
        group: Runs to compare.
        base: Runs to compare them with.
        one_config: Whether both are runs of one config, which differ only in the seed.
        notes: List to which a sentence is added for each dataset that cannot be compared.
    """
    ours, theirs = group.samples[0], base.samples[0]
    for dataset in {**theirs, **ours}:
        drawn, other = ours.get(dataset), theirs.get(dataset)
        if drawn is None or other is None:
            has, lacks = (group, base) if other is None else (base, group)
            notes.append(f"{dataset} of {has} is not compared: {lacks} was not evaluated on it.")
            continue
        if drawn.ground_truth != other.ground_truth:
            notes.append(
                f"{dataset} of {group} is not compared: its photos or labels are not those of"
                f" {base}; evaluate one of them on the test set of the other with"
                f" {command('evaluate')} RUN KEY=VALUE"
            )
            continue
        for key, difference in differences(group.mean(dataset), base.mean(dataset)).items():
            if is_shown(key):
                of_each = {str(of): of.estimates(dataset, key) for of in (base, group)}
                seeds = seeds_meaning(difference.value, of_each)
                if one_config:
                    seeds = "The config is the same: only the seed makes the difference."
                yield Row(f"{dataset}/{key}", str(group), str(base), difference, seeds)
