"""The lines of the progress panel."""

import pytest

from d2ext.config.schedule import Period, Schedule
from d2ext.engine.progress import panel_lines, resuming
from d2ext.run_dir.results import Results

SCHEDULE = Schedule(60, 4, 30, None, False, Period(), Period())
NUMBERS = {
    "time": 2.0,
    "lr": 5e-4,
    "memory_mb": 1536,
    "total_loss": 1.25,
    "loss_cls": 0.5,
    "loss_mask": 0.75,
}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.json", "coco/segm/AP", "max", iteration=0)


def test_lines_before_an_evaluation(results):
    assert panel_lines(15, SCHEDULE, NUMBERS, results) == [
        "epoch 2 of 2   iteration 15 of 30   ETA 0:00:30   2 images/s",
        "loss 1.25   cls 0.5   mask 0.75",
        "lr 0.0005   memory 1.50 GB   no evaluation yet",
    ]


def test_validation_losses_are_not_losses_of_the_step(results):
    numbers = {**NUMBERS, "val/validation_loss/total_loss": 9.0}
    lines = panel_lines(15, SCHEDULE, numbers, results)
    assert lines == panel_lines(15, SCHEDULE, NUMBERS, results)


def test_lines_show_the_last_and_the_best_score(results):
    results.record(10, {"coco/segm/AP": 40.04})
    results.record(20, {"coco/segm/AP": 30.0})
    *_, last = panel_lines(30, SCHEDULE, {}, results, "evaluating")
    assert last == "last coco/segm/AP 30.0 at 20   best coco/segm/AP 40.0 at 10"


def test_lines_without_a_best_metric_and_with_a_nan_score(tmp_path):
    results = Results(tmp_path / "results.json", None, "max", iteration=0)
    results.record(10, {"set/coco/bbox/AP": float("nan"), "set/coco/bbox/AR": 1.0})
    first, last = panel_lines(0, SCHEDULE, {}, results, "evaluating")
    assert first == "epoch 1 of 2   iteration 0 of 30   evaluating"
    assert last == "last set/coco/bbox/AP none at 10"


@pytest.mark.parametrize(
    "program",
    [
        "python tools/train_net.py",
        "d2ext train",
        "python -m d2ext train",
        "torchrun --standalone --nproc-per-node=2 -m d2ext train",
        "torchrun --standalone --nproc-per-node=2 tools/train_net.py",
        "srun --nodes=2 --ntasks-per-node=4 d2ext train",
    ],
)
@pytest.mark.parametrize("config", ["--config-file X", "mine.py"])
def test_the_command_that_resumes_the_run(program, config):
    """--resume comes before the overrides and replaces --overwrite and --resume-from."""
    begun = f"{program} {config} --overwrite train.max_epochs=2"
    resumed = f"{program} --resume {config} train.max_epochs=2"
    assert resuming(begun) == resumed and resuming(resumed) == resumed
    other = f"{program} --resume-from a.pth {config} train.max_epochs=2"
    assert resuming(other) == resuming(other.replace("from a", "from=a")) == resumed
