"""Compare results of models on the same test set, and say what a difference of their size means.

Differences are paired: every draw of the images gives a result of each model, and their difference.
What makes a photo easy or hard for both models cancels out, so that the interval of a difference is
narrower than the intervals of the results suggest.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from d2ext.evaluation.bootstrap.intervals import Interval
from d2ext.evaluation.bootstrap.resampling import Samples, interval

_MOST_PHOTOS = 100_000  # larger numbers of photos to label are no longer useful to state
_FEW = 50  # photos, below which the intervals are rough
_POWER = 1 + NormalDist().inv_cdf(0.8) / NormalDist().inv_cdf(0.975)
_PLOT = 41  # characters of a plot on the terminal

ABOUT_DIFFERENCES = (
    "[low, high] is the 95 % interval of the difference, from the same draws of the photos for"
    " both. It shows what other photos like these could change, and does not cover the variation"
    " between seeds."
)

ABOUT_ZERO = "| marks no difference; to its right, the one that is named first is better"


@dataclass(frozen=True)
class Difference:
    """A paired difference of a result on one test set.

    Attributes:
        value: Result of a model minus that of the other one, in percent.
        interval: Lower and upper end of its 95 % interval.
        images: Number of images of the test set.
    """

    value: float
    interval: Interval
    images: int

    @property
    def is_distinguishable(self) -> bool:
        """Return whether the interval excludes 0; a single image has no interval."""
        low, high = self.interval
        return self.images > 1 and (low > 0 or high < 0)

    def photos_needed(self) -> int | None:
        """Return roughly how many photos would show such a true difference with a power of 80 %.

        The width of an interval falls with the square root of the number of photos.

        Returns:
            A number of at most two significant digits; None if it is above 100,000.
        """
        low, high = self.interval
        reach = max((high - low) / 2, self.value - low if self.value > 0 else high - self.value)
        if not self.value:
            return None
        wanted = math.ceil((_POWER * reach / self.value) ** 2 * self.images)
        if wanted > _MOST_PHOTOS:
            return None
        digit = 10 ** max(0, len(str(wanted)) - 2)
        return min(math.ceil(wanted / digit) * digit, _MOST_PHOTOS)


def mean_of(seeds: Sequence[Samples]) -> Samples:
    """Return the mean over trainings with different seeds, draw by draw, of their common results.

    Args:
        seeds: Samples of one test set; with different numbers of draws, the first ones count.
    """
    first = seeds[0]
    draws = min(len(values) for of in seeds for values in of.values.values())
    keys = [key for key in first.values if all(key in of.values for of in seeds)]
    return Samples(
        images=first.images,
        ground_truth=first.ground_truth,
        estimates={key: statistics.fmean(of.estimates[key] for of in seeds) for key in keys},
        values={key: np.mean([of.values[key][:draws] for of in seeds], axis=0) for key in keys},
    )


def differences(samples: Samples, base: Samples) -> dict[str, Difference]:
    """Return the paired differences of the results that both have and that are defined.

    Args:
        samples: Samples of a model.
        base: Samples of the model to compare it with, on the same test set.
    """
    found = {}
    for key in (key for key in base.values if key in samples.values):
        value = samples.estimates[key] - base.estimates[key]
        draws = min(len(samples.values[key]), len(base.values[key]))
        values = samples.values[key][:draws] - base.values[key][:draws]
        if ends := interval(value, values, base.images, lowest=-100.0):
            found[key] = Difference(value, ends, base.images)
    return found


def sentence(name: str, base: str, metric: str, difference: Difference) -> str:
    """Return who is better by how much, and whether the test set shows it.

    Args:
        name: Name of a model.
        base: Name of the model that it is compared with.
        metric: Name of the number, such as AP.
        difference: Result of `name` minus that of `base`.
    """
    value, (low, high) = difference.value, difference.interval
    these = f"these {difference.images:,} photos" if difference.images > 1 else "this photo"
    if value == 0 == low == high:
        return f"{name} and {base} do not differ: 0.0 {metric} [0.0, 0.0] on {these}"
    who = f"{name} is better than {base}" if value else f"{name} and {base} differ"
    if value < 0:  # how much worse it is
        who, value, low, high = f"{name} is worse than {base}", -value, -high, -low
    if difference.is_distinguishable:
        ends = f"[{_nonzero(low)}, {_nonzero(high)}]"
        return f"{who} by {_nonzero(value)} {metric} {ends} on {these}"
    text = f"{who} by {_rounded(value)} {metric} [{_rounded(low)}, {_rounded(high)}]"
    if difference.images < 2:
        return f"{text}: a single photo says nothing about others"
    text += f": not distinguishable on {these}"
    if not value:
        return text
    needed = difference.photos_needed()
    count = f"about {needed:,}" if needed else f"more than {_MOST_PHOTOS:,}"
    return f"{text}; it takes {count} photos to show a difference of this size in 4 of 5 cases"


def _nonzero(value: float) -> str:
    """Return a value that is not 0 with enough digits to show that."""
    return _rounded(value) if round(value, 1) else f"{value:.1g}"


def _rounded(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # + 0.0 turns -0.0 into 0.0


def meaning(difference: Difference) -> str:
    """Return what a difference of this size can mean, as sentences."""
    if difference.value == 0 and difference.interval == (0, 0):
        return "Every draw of the photos gives the same number for both."
    if difference.is_distinguishable:
        few = f", but {difference.images} photos are few" if difference.images < _FEW else ""
        return (
            "The choice of photos does not explain the difference: other photos like these would"
            f" very likely show the same order{few}."
        )
    return (
        "The choice of photos alone can make such a difference: on other photos like these, the"
        " order could be the opposite."
    )


def seeds_meaning(difference: float, spreads: Mapping[str, Sequence[float]]) -> str:
    """Return how a difference compares to the spread between trainings with different seeds.

    Args:
        difference: Difference of the (mean) results, in percent.
        spreads: By name of a model, its result with each seed; one for a single training.
    """
    sentences = []
    if any(len(values) > 1 for values in spreads.values()):
        widest = max(max(values) - min(values) for values in spreads.values())
        compared = (
            "as much as the difference or more: more seeds are needed to tell"
            if widest >= abs(difference)
            else "less than the difference"
        )
        sentences.append(
            f"The results of one config differ by up to {widest:.1f} from seed to seed, {compared}."
        )
    if single := [name for name, values in spreads.items() if len(values) < 2]:
        verb = "are single trainings" if len(single) > 1 else "is a single training"
        sentences.append(
            f"{' and '.join(single)} {verb}. Another seed alone changes results, which the interval"
            " does not cover: train several seeds of each (train.seed)."
        )
    return " ".join(sentences)


def spread(values: Sequence[float]) -> str:
    """Return the spread of the results of several seeds, in words."""
    low, high, deviation = min(values), max(values), statistics.stdev(values)
    mean = statistics.fmean(values)
    return (
        f"{len(values)} seeds, mean {mean:.1f}, from {low:.1f} to {high:.1f}, standard deviation"
        f" {deviation:.1f}"
    )


def comparison_text(name: str, base: str, rows: Mapping[str, Difference]) -> list[str]:
    """Return the lines that compare two models: sentences, a plot, and what they mean.

    Args:
        name: Name of a model.
        base: Name of the model that it is compared with.
        rows: Differences by key; those of APs are shown.
    """
    shown = {key: row for key, row in rows.items() if is_shown(key)}
    if not shown:
        return [f"{name} and {base} have no AP in common that is defined on these images."]
    lines = [
        f"{key}: {sentence(name, base, key.rsplit('/', 1)[-1], row)}" for key, row in shown.items()
    ]
    lines += labeled({key: meaning(row) for key, row in shown.items()})
    return [*lines, "", *plot(shown), "", ABOUT_DIFFERENCES]


def labeled(texts: Mapping[str, str]) -> list[str]:
    """Return each text once, after its labels unless all texts are the same.

    Args:
        texts: Texts by label.
    """
    labels: dict[str, list[str]] = {}
    for label, text in texts.items():
        labels.setdefault(text, []).append(label)
    if len(labels) == 1:
        return list(labels)
    return [f"{'; '.join(names)}: {text}" for text, names in labels.items()]


def is_shown(key: str) -> bool:
    """Return whether a comparison shows the result with this key: AP or AP50."""
    return key.rsplit("/", 1)[-1] in ("AP", "AP50")


def plot(rows: Mapping[str, Difference]) -> list[str]:
    """Return a plot of differences for the terminal, one line each: `[` interval `]`, `o` value.

    Args:
        rows: Differences by label.
    """
    ends = [0.0, *(end for row in rows.values() for end in row.interval)]
    low, high = min(ends), max(ends)
    width = max(map(len, rows), default=0)

    def place(value: float) -> int:
        return round((value - low) / (high - low) * (_PLOT - 1)) if high > low else _PLOT // 2

    lines = []
    for label, row in rows.items():
        marks = [" "] * _PLOT
        left, right = map(place, row.interval)
        marks[left : right + 1] = "-" * (right - left + 1)
        marks[place(0)] = "|"
        marks[left], marks[right] = "[", "]"
        marks[place(row.value)] = "o"
        lines.append(f"{label:{width}}  {''.join(marks)}".rstrip())
    axis = f"{low:.1f}".ljust(_PLOT - len(f"{high:.1f}")) + f"{high:.1f}"
    return [*lines, f"{'':{width}}  {axis}", f"{'':{width}}  {ABOUT_ZERO}"]
