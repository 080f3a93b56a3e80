"""Intervals of a run's results: in results.json, the log, checkpoints and the report."""

import json
import shutil

import pytest

from d2ext.evaluation.bootstrap.intervals import intervals
from d2ext.evaluation.bootstrap.resampling import read_samples

# With these, the tiny model finds some objects, so that results are not all 0.
OPTIONS = [
    "train.eval_period=1",
    "train.checkpointer.period=1",
    "train.best.metric=coco/bbox/AR100",
    "optimizer.lr=0.01",
]
COUNT = "+evaluators.count={_target_: tests.cli.test_intervals.Count}"


class Count:
    """Count detections, without a method `resampled`."""

    def __call__(self, ground_truth, detections):
        return {"bbox/AP": float(len(detections.scores))}


@pytest.fixture
def results(train_net, tiny, tmp_path):
    """Train and evaluate with overrides; return the run directory and its results.json."""

    def run(folder, *overrides, length=2):
        out = tmp_path / folder
        flags = ("--work-dir", out, "--resume")
        done = train_net(*flags, *tiny, *OPTIONS, f"train.max_iter={length}", *overrides)
        assert done.status == 0, done.stderr
        return out, json.loads((out / "results.json").read_text())

    return run


@pytest.mark.slow
def test_every_result_has_an_interval(results):
    run, content = results("run", length=4)
    for which in ("last", "best"):
        evaluation = content[which]
        ends = evaluation["intervals"]
        assert ends.keys() == evaluation["results"].keys()
        for key, value in evaluation["results"].items():
            assert (ends[key] is None) is (value is None)
            assert value is None or ends[key][0] <= value <= ends[key][1]
        # The draws of the whole test set are kept, those of single classes are not.
        samples = read_samples(run / "resamples" / evaluation["samples"])["balloon_val"]
        drawn = {f"balloon_val/{key}": row for key, row in intervals(samples).items()}
        assert drawn.keys() == {key for key in ends if "-" not in key}
        recall = "balloon_val/coco/bbox/AR100"
        assert drawn[recall] == pytest.approx(ends[recall], abs=1e-3)
    assert ends[recall][1] > 0  # or it proves nothing
    names = {content[which]["samples"] for which in ("last", "best")}
    assert {file.name for file in (run / "resamples").iterdir()} == names
    key = "balloon_val/coco/bbox/AP"
    score, (low, high) = (content["last"][part][key] for part in ("results", "intervals"))
    assert f"{key} {score:.1f} [{low:.1f}, {high:.1f}]" in (run / "log.txt").read_text()
    # As if the run had been killed after the third step: the rest gives the same.
    files = {file.name: file.read_bytes() for file in (run / "resamples").iterdir()}
    shutil.rmtree(run / "resamples")
    (run / "results.json").unlink()
    for name in ("model_0000003.pth", "model_final.pth"):
        (run / name).unlink()
    (run / "last_checkpoint").write_text("model_0000002.pth")
    assert results("run", length=4)[1] == content
    assert files.items() >= {f.name: f.read_bytes() for f in (run / "resamples").iterdir()}.items()


def test_intervals_may_be_off(results):
    for overrides in (["train.intervals=False"], ["train.resamples=0"]):
        run, content = results("off", *overrides, length=1)
        assert not {"intervals", "samples", "caveats"} & content["last"].keys()
        assert not (run / "resamples").exists()
        assert "A result has no interval if" in (run / "report.html").read_text()
        shutil.rmtree(run)


def test_metrics_without_draws_have_no_intervals(results):
    run, content = results("own", COUNT, length=1)
    ends = content["last"]["intervals"]
    assert "balloon_val/coco/bbox/AP" in ends and "balloon_val/count/bbox/AP" not in ends
    assert "no intervals of count, which cannot compute draws" in (run / "log.txt").read_text()
    assert "A result has no interval if" in (run / "report.html").read_text()
    (caveat,) = content["last"]["caveats"]
    assert "balloon_val: 1 of 1 class has fewer than 20 objects (balloon): AP" in caveat
    assert caveat in (run / "report.html").read_text()


@pytest.mark.slow
def test_evaluate_and_compare_runs(results, d2ext_command, tmp_path):
    run, _ = results("old", "train.intervals=False")
    new, _ = results("new", "train.seed=1")
    done = d2ext_command("report", new, run, "--output", tmp_path / "page.html")
    assert done.status == 0, done.stderr
    assert "old is not compared: it has no draws" in done.stdout
    assert f"d2ext evaluate {run} --intervals" in done.stdout
    done = d2ext_command("evaluate", run, "--intervals", "--resamples", 200)
    assert done.status == 0, done.stderr
    assert "intervals from 200 draws of the images" in done.stdout
    done = d2ext_command("report", new, run, "--output", tmp_path / "page.html")
    assert done.status == 0 and "those of old/eval are compared" in done.stdout
    assert "balloon_val/coco/bbox/AP: old " in done.stdout
    assert done.stdout.endswith(f"{tmp_path / 'page.html'}\n")
