"""A budget of time becomes the length of a run."""

import pytest

import d2ext
from d2ext.config import by_hand as keys
from d2ext.config.options import TrainOptions
from d2ext.config.schedule import Period, resolve_schedule
from d2ext.errors import UserError
from d2ext.preflight.budget import Speed, check_budget, choose_length, longest, seconds_of
from d2ext.text import as_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10 min", 600),
        ("90 s", 90),
        ("90s", 90),
        ("1h30m", 5400),
        ("1 h 30 min", 5400),
        ("2 hours", 7200),
        ("2 hrs", 7200),
        ("10 mins", 600),
        ("10  min", 600),
        ("1d12h", 129600),
        ("3h50m", 13800),
        ("1.5 h", 5400),
        ("0.5d1.25h30.5m7.5s", 49537.5),
        *((text, 0) for text in ("", "10", "0 s", "0.0 h", "-5 min", "soon", "5 min 1 h", "10 ms")),
        *((text, 0) for text in ("1,5 h", "1.5", "1. h", "1.5.5 h", "1 .5 h")),
    ],
)
def test_durations(text, seconds):
    assert as_seconds(text) == seconds


def test_a_budget_that_is_not_a_duration_is_an_error():
    with pytest.raises(UserError, match=r"train.budget='soon': give hours, .* '10 min' or '1h30m'"):
        seconds_of("soon")


def test_a_number_is_not_a_budget():
    cfg = d2ext.get_config("custom/mask_rcnn_lite0_fpn.py", ["train.budget=10"])
    with pytest.raises(UserError, match="train.budget=10: give hours, minutes or seconds, as in"):
        check_budget(cfg)


def _schedule(eval_period, iterations, images=60, batch=4, evaluates=True):
    options = TrainOptions(max_iter=iterations, eval_period=eval_period)
    return resolve_schedule(options, batch, images, evaluates=evaluates)


@pytest.mark.parametrize("eval_period", [0, 7, 100, "1 epoch", "4 epochs"])
@pytest.mark.parametrize("evaluates", [True, False])
def test_the_longest_run_fits_and_one_more_step_does_not(eval_period, evaluates):
    """The time is counted step by step with the schedule of the run."""

    def seconds(iterations):
        schedule = _schedule(eval_period, iterations, evaluates=evaluates)
        steps = range(1, iterations + 1)
        return 3 + sum(2.0 + 11.0 * schedule.evaluation_due(i) for i in steps)

    usable = 0.97 * 400
    found = longest(400, Speed(3, 2.0, 11.0), 15, _schedule(eval_period, 1).eval_period, evaluates)
    assert seconds(found.iterations) <= usable < seconds(found.iterations + 1)
    schedule = _schedule(eval_period, found.iterations, evaluates=evaluates)
    due = [schedule.evaluation_due(i) for i in range(1, found.iterations + 1)]
    assert found.evaluations == sum(due) and found.period is None


@pytest.mark.parametrize(("cost", "most"), [(1.0, 6), (40.0, 6), (100.0, 2), (500.0, 1)])
def test_chosen_periods_take_a_quarter_of_the_budget(cost, most):
    found = longest(1000, Speed(5, 0.5, cost), 15, None)
    schedule = _schedule(f"{found.period} epochs", found.iterations)
    due = sum(schedule.evaluation_due(i) for i in range(1, found.iterations + 1))
    assert due == found.evaluations <= most
    spent = 5 + found.iterations * 0.5 + due * cost
    assert spent <= 970
    assert spent > 970 - cost - 1  # at most one evaluation is saved
    assert due * cost <= 250 or due == 1


def test_the_choice_has_the_units_of_the_config():
    speed = Speed(1, 1.0, 5.0)
    epochs = resolve_schedule(TrainOptions(max_epochs=24), 4, 60)
    choices = choose_length("10 min", 600, speed, epochs, periods=True)
    assert [choice.key for choice in choices] == [keys.EPOCHS, keys.EVALUATIONS, keys.CHECKPOINTS]
    length = resolve_schedule(TrainOptions(max_epochs=choices[0].value), 4, 60).max_iter
    assert length == longest(600, speed, 15, None).iterations
    assert f"{length} steps" in choices[0].reason and "in 10 min: 1 s per step" in choices[0].reason
    # In iterations, which `train.auto_scale_lr` divides by 2 later.
    iterations = _schedule("1 epoch", 100)
    choice, *others = choose_length("10 min", 600, speed, iterations, scale=2.0)
    fixed = longest(600, speed, 15, Period(epochs=1)).iterations
    assert (choice.key, choice.value, others) == (keys.ITERATIONS, 2 * fixed, [])
    kept = choose_length("10 min", 600, speed, epochs, [keys.EVALUATIONS], periods=True)
    assert [choice.key for choice in kept] == [keys.EPOCHS]


def test_a_short_run_has_a_shorter_warmup():
    speed, schedule = Speed(1, 1.0, 0.0), _schedule("1 epoch", 9000)

    def chosen(warmup, by_hand=()):
        found = choose_length("10 min", 600, speed, schedule, by_hand, warmup=warmup)
        return {choice.key: choice.value for choice in found}

    assert chosen(1000) == {keys.ITERATIONS: 581, keys.WARMUP: 58}
    assert chosen(58).keys() == chosen(None).keys() == {keys.ITERATIONS}
    assert chosen(1000, [keys.WARMUP]).keys() == {keys.ITERATIONS}


def test_a_config_without_periodic_evaluations_stays_so():
    speed, schedule = Speed(1, 1.0, 5.0), _schedule(0, 100)
    [choice] = choose_length("10 min", 600, speed, schedule, periods=True)
    assert choice.key == keys.ITERATIONS and choice.reason.endswith("1 evaluation")


def test_small_budgets():
    schedule = resolve_schedule(TrainOptions(max_epochs=24), 4, 60_000)
    choice, *_ = choose_length("1 min", 60, Speed(5, 2.0, 10.0), schedule, periods=True)
    assert 0 < choice.value < 1 and choice.reason.endswith("; not every image is trained on")
    with pytest.raises(UserError) as caught:
        choose_length("20 s", 14, Speed(5, 2.0, 10.0), schedule, periods=True)
    assert str(caught.value) == (
        "train.budget='20 s' is too short: the start takes 11 s, and a run 2 s per step and 10 s"
        " per evaluation; give at least 24 s"
    )
