"""results.json: the best evaluation, early stopping, and both after a resume."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ext.errors import UserError
from d2ext.run_dir.results import Results

KEY = "val/coco/segm/AP"


def _record(path, scores, mode="max", iteration=0, metric=KEY):
    results = Results(path, metric, mode, iteration)
    for i, score in enumerate(scores, start=iteration + 1):
        results.record(i, {KEY: score, "val/coco/bbox/AP": 0.0})
    return results


def test_the_best_and_the_last(tmp_path):
    results = _record(tmp_path / "results.json", [1.0, 5.0, math.nan, 4.0])
    assert (results.best.iteration, results.last.iteration) == (2, 4)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["best"]["results"][KEY] == 5.0 and content["last"]["results"][KEY] == 4.0
    assert content["scores"] == [[1, 1.0], [2, 5.0], [3, None], [4, 4.0]]
    assert _record(tmp_path / "min.json", [3.0, 1.0, 2.0], "min").best.iteration == 2


def test_without_a_metric_no_evaluation_is_best(tmp_path):
    results = _record(tmp_path / "results.json", [1.0, 2.0], metric=None)
    assert results.best is None and list(json.loads((tmp_path / "results.json").read_text())) == [
        "last"
    ]


def test_undefined_scores_are_never_best(tmp_path):
    results = _record(tmp_path / "results.json", [math.nan, math.nan])
    assert results.best is None
    assert "did not improve val/coco/segm/AP, best none" in results.exhausted(1)


def test_an_unknown_metric_is_an_error(tmp_path):
    with pytest.raises(UserError, match="train.best.metric=val/voc/AP50 is not .*val/coco/segm/AP"):
        _record(tmp_path / "results.json", [1.0], metric="val/voc/AP50")


scores = st.lists(st.one_of(st.just(math.nan), st.sampled_from([0.0, 1.0, 2.0, 3.0])), max_size=8)


@settings(deadline=None)  # each score is written to the disk and flushed
@given(scores, scores, st.sampled_from(["max", "min"]), st.integers(1, 3))
def test_resumed_results_equal_uninterrupted_ones(tmp_path_factory, before, after, mode, patience):
    path = tmp_path_factory.mktemp("results")
    whole = _record(path / "whole.json", before + after, mode)
    _record(path / "parts.json", before, mode)
    parts = _record(path / "parts.json", after, mode, iteration=len(before))
    # Without completed iterations there is nothing to resume.
    if before:
        assert parts.best == whole.best and parts.last == whole.last
        assert parts.exhausted(patience) == whole.exhausted(patience)


def test_scores_after_the_resumed_iteration_do_not_count_twice(tmp_path):
    _record(tmp_path / "results.json", [5.0, 4.0, 3.0])
    resumed = Results(tmp_path / "results.json", KEY, "max", iteration=1)
    assert not resumed.exhausted(2)
    resumed.record(2, {KEY: 4.0})
    assert not resumed.exhausted(2) and resumed.exhausted(1)
    assert resumed.best.iteration == 1


def test_a_repeated_evaluation_counts_once(tmp_path):
    _record(tmp_path / "results.json", [5.0, 4.0, 3.0, 2.0])
    resumed = Results(tmp_path / "results.json", KEY, "max", iteration=3)
    assert resumed.known(3) is None and resumed.known(4) == resumed.last.results
    resumed.record(3, {KEY: 3.0})
    assert resumed.exhausted(2) and not resumed.exhausted(3)


def test_another_batch_size_renumbers_iterations(tmp_path):
    """30 steps with 2 images become 15 steps with 4 images."""
    results = Results(tmp_path / "results.json", KEY, "max", iteration=0)
    for i, score in ((10, 5.0), (20, 4.0), (30, 3.0)):
        results.record(i, {KEY: score})
    resumed = Results(tmp_path / "results.json", KEY, "max", iteration=30, start=15)
    assert resumed.best.iteration == 5 and resumed.known(15)
    assert resumed.exhausted(2) and not resumed.exhausted(3)


def test_without_a_metric_nothing_is_compared(tmp_path, caplog):
    _record(tmp_path / "results.json", [5.0])
    Results(tmp_path / "results.json", None, "max", iteration=1)
    assert "train.best" not in caplog.text


def test_another_mode_discards_the_best(tmp_path):
    _record(tmp_path / "results.json", [5.0, 4.0])
    resumed = Results(tmp_path / "results.json", KEY, "min", iteration=2)
    assert resumed.best is None and resumed.is_better({KEY: 9.0})


def test_draws_are_kept_for_the_last_and_the_best_evaluation(tmp_path):
    folder = tmp_path / "resamples"
    folder.mkdir()
    results = Results(tmp_path / "results.json", KEY, "max", iteration=0)
    for i, score in enumerate((1.0, 5.0, 4.0, 3.0), start=1):
        (folder / f"{i}.npz").touch()
        ends = {KEY: (score - 1, score + 1)}
        results.record(i, {KEY: score}, intervals=ends, samples=f"{i}.npz", caveats=["few"])
        # A kill before results.json is written leaves the new file, and all that the old one names.
        named = [results.last.samples, results.best.samples]
        assert {file.name for file in folder.iterdir()} == set(named)
    assert named == ["4.npz", "2.npz"]
    resumed = Results(tmp_path / "results.json", KEY, "max", iteration=4)
    assert resumed.best.intervals == {KEY: (4.0, 6.0)} and resumed.best == results.best
    assert resumed.last == results.last and resumed.last.caveats == ["few"]
    results.record(5, {KEY: 2.0})  # intervals were turned off
    assert [file.name for file in folder.iterdir()] == ["2.npz"]


def test_files_without_intervals_are_read(tmp_path):
    _record(tmp_path / "results.json", [1.0, 5.0])
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["best"].keys() == {"iteration", "metric", "mode", "results"}
    assert not Results(tmp_path / "results.json", KEY, "max", iteration=2).best.intervals


def test_validation_losses_are_known_after_a_resume(tmp_path):
    loss = "val/validation_loss/total_loss"
    results = Results(tmp_path / "results.json", KEY, "max", iteration=0)
    results.record(1, {KEY: 1.0}, {loss: 0.5})
    results.record(2, {KEY: 0.0}, {loss: math.nan})
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["last"]["results"] == {KEY: 0.0} and content["last"]["losses"] == {loss: None}
    assert content["best"]["results"] == {KEY: 1.0} and content["best"]["losses"] == {loss: 0.5}
    resumed = Results(tmp_path / "results.json", KEY, "max", iteration=2)
    assert resumed.known(2) == {KEY: 0.0, loss: None} and resumed.known(1) is None
    results.record(3, {KEY: 0.0})
    assert "losses" not in json.loads((tmp_path / "results.json").read_text())["last"]
