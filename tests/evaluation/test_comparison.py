"""Paired differences: what they say, and how many photos would settle them."""

import math

import numpy as np
import pytest

from d2ext.evaluation.bootstrap import comparison
from d2ext.evaluation.bootstrap.comparison import Difference, differences, mean_of, sentence
from d2ext.evaluation.bootstrap.intervals import intervals, rare_classes_note
from d2ext.evaluation.bootstrap.resampling import Samples, draw_images
from tests.evaluation.columns import ground_truth

KEY = "coco/segm/AP"
BOX = (10.0, 10.0, 40.0, 40.0)


def _samples(values, images=13, estimate=None):
    """Return samples of one result; the estimate is the mean of the draws unless it is given."""
    values = np.asarray(values, np.float64)
    estimate = float(values.mean()) if estimate is None else estimate
    return Samples(images, "digest", {KEY: estimate}, {KEY: values})


def _of_photos(scores, draws):
    """Return samples of a result that is the mean of a score of each photo."""
    scores = np.asarray(scores, np.float64)
    return _samples(draws @ scores / len(scores), len(scores), float(scores.mean()))


def test_the_interval_of_a_difference_is_paired():
    """Both models find the same photos hard: the difference is certain, the results are not."""
    hard = np.linspace(0, 100, 40)
    draws = draw_images(40, 1000)
    base, better = _of_photos(hard, draws), _of_photos(hard + 2, draws)
    low, high = intervals(base)[KEY]
    assert high - low > 15
    (found,) = differences(better, base).values()
    assert found.value == pytest.approx(2) and found.interval == pytest.approx((2, 2))
    assert found.is_distinguishable


def test_the_interval_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(5)
    ours, theirs = rng.normal(52, 20, 200), rng.normal(50, 20, 200)
    draws = draw_images(200, 1000)
    (found,) = differences(_of_photos(ours, draws), _of_photos(theirs, draws)).values()
    half = 1.96 * (ours - theirs).std() / math.sqrt(200)
    assert found.value == pytest.approx((ours - theirs).mean())
    wanted = (found.value - half, found.value + half)
    assert found.interval == pytest.approx(wanted, abs=0.15 * half)


def test_fewer_draws_are_the_first_ones():
    """Runs with different train.resamples can be compared."""
    assert (draw_images(13, 1000)[:300] == draw_images(13, 300)).all()
    scores = np.linspace(0, 100, 13)
    many, few = (_of_photos(scores, draw_images(13, n)) for n in (1000, 300))
    assert differences(many, few)[KEY] == Difference(0.0, (0.0, 0.0), 13)
    assert len(mean_of([few, many]).values[KEY]) == 300


def test_few_objects_of_some_classes_are_named_with_the_bias():
    objects = [(0, 0, BOX)] * 20 + [(0, 1, BOX)] * 19
    assert rare_classes_note(ground_truth(objects, ("a", "b", "absent"))) == (
        "1 of 2 classes has fewer than 20 objects (b): AP there and over all classes is probably"
        " too high, and its interval too narrow"
    )
    assert rare_classes_note(ground_truth(objects[:20], ("a",))) == ""


def test_undefined_results_have_no_interval():
    nothing = _samples([math.nan] * 10)
    assert intervals(nothing) == {KEY: None}
    assert differences(nothing, _samples([1.0] * 10)) == {}


SENTENCES = {
    (2.1, -0.4, 4.5, 13): "B is better than A by 2.1 AP [-0.4, 4.5]: not distinguishable on these"
    " 13 photos; it takes about 38 photos to show a difference of this size in 4 of 5 cases",
    (-2.1, -4.5, 0.4, 13): "B is worse than A by 2.1 AP [-0.4, 4.5]: not distinguishable on these"
    " 13 photos; it takes about 38 photos to show a difference of this size in 4 of 5 cases",
    (-2.1, -4.0, -0.2, 200): "B is worse than A by 2.1 AP [0.2, 4.0] on these 200 photos",
    (0.5, -4.5, 5.5, 13): "B is better than A by 0.5 AP [-4.5, 5.5]: not distinguishable on these"
    " 13 photos; it takes about 2,700 photos to show a difference of this size in 4 of 5 cases",
    (0.01, -3.0, 3.0, 1300): "B is better than A by 0.0 AP [-3.0, 3.0]: not distinguishable on"
    " these 1,300 photos; it takes more than 100,000 photos to show a difference of this size in 4"
    " of 5 cases",
    (0.0, -3.0, 3.0, 13): "B and A differ by 0.0 AP [-3.0, 3.0]: not distinguishable on these"
    " 13 photos",
    (2.1, 0.03, 4.0, 200): "B is better than A by 2.1 AP [0.03, 4.0] on these 200 photos",
    (0.0, 0.0, 0.0, 13): "B and A do not differ: 0.0 AP [0.0, 0.0] on these 13 photos",
    (5.0, 5.0, 5.0, 1): "B is better than A by 5.0 AP [5.0, 5.0]: a single photo says nothing about"
    " others",
}


@pytest.mark.parametrize("numbers", SENTENCES)
def test_sentences(numbers):
    value, low, high, images = numbers
    assert sentence("B", "A", "AP", Difference(value, (low, high), images)) == SENTENCES[numbers]


@pytest.mark.parametrize(
    ("value", "interval", "images", "wanted"),
    [
        # To touch 0 takes an interval half as wide, of four times as many photos; to exclude it in
        # 80 % of the cases, ((1.96 + 0.84) / 1.96) ** 2 = 2.04 times as many.
        (2.0, (-2.0, 6.0), 50, 410),
        (2.0, (-2.1, 6.1), 50, 430),
        (2.0, (0.0, 2.5), 50, 110),  # wider on the other side
        (1.0, (-20.0, 22.0), 90, 82_000),
        (1.0, (-30.0, 32.0), 90, None),
    ],
)
def test_photos_that_would_settle_a_difference(value, interval, images, wanted):
    for sign in (1, -1):
        ends = tuple(sorted(sign * end for end in interval))
        assert Difference(sign * value, ends, images).photos_needed() == wanted


def test_seeds_are_averaged_and_their_spread_is_stated():
    mean = mean_of([_samples([50.0, 54.0]), _samples([40.0, 50.0])])
    assert mean.values[KEY].tolist() == [45.0, 52.0] and mean.estimates[KEY] == 48.5
    assert comparison.spread([47.1, 49.0, 51.1]) == (
        "3 seeds, mean 49.1, from 47.1 to 51.1, standard deviation 2.0"
    )
    several = {"A": [47.1, 49.0, 51.1], "B": [50.0, 51.0, 52.0]}
    assert "more seeds are needed" in comparison.seeds_meaning(2.0, several)
    assert "less than the difference" in comparison.seeds_meaning(-5.0, several)
    single = comparison.seeds_meaning(5.0, several | {"B": [50.0]})
    assert "B is a single training" in single and "up to 4.0 from seed to seed, less" in single


def test_what_differences_mean_is_said_of_each():
    shown, unclear = Difference(3.0, (1.0, 5.0), 60), Difference(1.0, (-1.0, 3.0), 60)
    lines = comparison.comparison_text("B", "A", {"x/AP": shown, "x/AP50": unclear})
    assert lines[2].startswith("x/AP: The choice of photos does not explain")
    assert lines[3].startswith("x/AP50: The choice of photos alone can make")
    lines = comparison.comparison_text("B", "A", {"x/AP": unclear, "x/AP50": unclear})
    assert lines[2].startswith("The choice of photos alone") and not lines[3]


def test_plot_on_the_terminal():
    rows = {
        "a": Difference(1.0, (-1.0, 3.0), 13),
        "longer": Difference(-0.5, (-1.0, 0.0), 13),
    }
    assert comparison.plot(rows) == [
        "a       [---------|---------o-------------------]",
        "longer  [----o----]",
        "        -1.0                                  3.0",
        "        | marks no difference; to its right, the one that is named first is better",
    ]
    assert comparison.plot({"a": Difference(0.0, (0.0, 0.0), 13)})[0].strip().endswith("o")
