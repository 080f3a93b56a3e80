"""Conversion of epochs to iterations."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ext.config.options import TrainOptions
from d2ext.config.schedule import resolve_schedule
from d2ext.errors import UserError


def _train(**fields):
    defaults = dict(max_epochs=None, max_iter=None, eval_period="1 epoch", warmup_iters=5)
    return TrainOptions.from_config(defaults | dict(checkpointer=dict(period=100)) | fields)


def test_the_epochs_of_mmdetection():
    schedule = resolve_schedule(_train(max_epochs=12), batch_size=16, num_images=118_000)
    assert schedule.max_iter == 88_500
    assert schedule.warmup_iters == 5


def test_a_schedule_that_warms_up_for_longer_keeps_its_fraction():
    train = TrainOptions(max_iter=100, warmup_iters=1000)
    assert resolve_schedule(train, 16, 1000, warmup_fraction=1.0).warmup_iters == 100
    assert resolve_schedule(train, 16, 1000, warmup_fraction=0.8).warmup_iters == 80
    assert resolve_schedule(train, 16, 1000, warmup_fraction=0.3).warmup_iters == 50


def test_warmup_takes_at_most_half_of_a_short_run():
    assert resolve_schedule(_train(max_iter=6), 2, 10).warmup_iters == 3
    assert resolve_schedule(_train(max_iter=1), 2, 10).warmup_iters == 1
    assert resolve_schedule(_train(max_iter=1, warmup_iters=0), 2, 10).warmup_iters == 0
    assert resolve_schedule(_train(max_iter=6, warmup_iters=None), 2, 10).warmup_iters is None


@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 7), st.integers(1, 3))
def test_each_period_of_epochs_is_due_once(batch, images, epochs, every):
    train = _train(max_epochs=epochs, eval_period=f"{every} epochs")
    schedule = resolve_schedule(train, batch, images)
    due = [i for i in range(1, schedule.max_iter + 1) if schedule.eval_period.due(i, schedule)]
    # An iteration is due when it is the first to have seen all images of a period, and only then.
    ends = {-(-every * k * images // batch) for k in range(1, epochs // every + 1)}
    assert set(due) >= ends
    assert all(schedule.epoch(i) // every > schedule.epoch(i - 1) // every for i in due)
    assert schedule.max_iter * batch >= epochs * images > (schedule.max_iter - 1) * batch


def test_periods_in_iterations():
    schedule = resolve_schedule(_train(max_iter=10, eval_period=4), 1, 3)
    assert [i for i in range(1, 11) if schedule.eval_period.due(i, schedule)] == [4, 8]
    schedule = resolve_schedule(_train(max_iter=10, eval_period=0), 1, 3)
    assert not any(schedule.eval_period.due(i, schedule) for i in range(1, 11))


def _due(answer, schedule):
    return [i for i in range(1, schedule.max_iter + 1) if answer(i)]


def test_due_iterations():
    """The last iteration is always due; metrics are also logged at each evaluation."""
    train = _train(max_iter=10, eval_period=4, checkpointer=dict(period=3), log_period=5)
    schedule = resolve_schedule(train, 1, 3)
    assert _due(schedule.evaluation_due, schedule) == [4, 8, 10]
    assert _due(schedule.checkpoint_due, schedule) == [3, 6, 9, 10]
    assert _due(schedule.log_due, schedule) == [4, 5, 8, 10]


def test_due_iterations_with_periods_in_epochs():
    train = _train(max_epochs=3, eval_period="1 epoch", checkpointer=dict(period="2 epochs"))
    schedule = resolve_schedule(train, 2, 5)  # epochs end within the iterations 3, 5 and 8
    assert _due(schedule.evaluation_due, schedule) == [3, 5, 8]
    assert _due(schedule.checkpoint_due, schedule) == [5, 8]
    assert _due(schedule.log_due, schedule) == [3, 5, 8]  # every 20 iterations by default


def test_no_evaluation_is_due_without_validation():
    schedule = resolve_schedule(_train(max_iter=10, eval_period=4), 1, 3, evaluates=False)
    assert _due(schedule.evaluation_due, schedule) == []
    assert _due(schedule.log_due, schedule) == [10]


def test_a_run_that_ends_early_evaluates_at_its_end():
    schedule = resolve_schedule(_train(max_iter=10, eval_period=4), 1, 3)
    assert replace(schedule, max_iter=7).evaluation_due(7)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(), "exactly one"),
        (dict(max_iter=3, max_epochs=3), "exactly one"),
        (dict(max_iter=0), "train.max_iter=0"),
        (dict(max_epochs=-1), "train.max_epochs=-1"),
        (dict(max_iter=3, eval_period="2 years"), "train.eval_period='2 years'"),
        (dict(max_iter=3, eval_period="0 epochs"), "train.eval_period"),
        (dict(max_iter=3, eval_period=-1), "train.eval_period=-1"),
        (dict(max_iter=3, warmup_iters=-1), "train.warmup_iters"),
    ],
)
def test_an_invalid_length_names_its_field(fields, words):
    with pytest.raises(UserError, match=words):
        resolve_schedule(_train(**fields), 1, 10)
