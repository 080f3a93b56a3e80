"""Hooks: when each method is called, and which state a checkpoint keeps."""

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from torch import nn

from d2ext.checkpoint.files import read_checkpoint, save_checkpoint
from d2ext.config.schedule import Period, Schedule
from d2ext.engine.hooks import MemoryHook, hook_states, load_hook_states
from d2ext.engine.trainer import Trainer
from d2ext.errors import UserError
from d2ext.launch.signals import StopSignals


class Line(nn.Module):
    """The loss is w * x, so that the gradient is x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, batch):
        return {"loss": (self.w * batch[0]["x"]).sum()}


def _train(hooks, steps=2, start=0, states=(), **options):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batches = iter(lambda: [{"x": torch.tensor([3.0, 4.0]), "file_name": ""}], None)
    trainer = Trainer(model, optimizer, batches, hooks, 0, **options)
    load_hook_states(hooks, states)
    with StopSignals() as signals:
        trainer.train(start, steps, signals)
    return trainer


class Moments(HookBase):
    """Record each call with the gradient and the weight at that moment."""

    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name in ("before_train", "before_step", "after_backward", "after_step", "after_train"):
            return lambda: self._note(name)
        return super().__getattribute__(name)

    def _note(self, name):
        w = self.trainer.model.w
        self.calls.append((name, None if w.grad is None else w.grad[0].item(), w[0].item()))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_methods_are_called_at_the_right_moments(accumulate):
    """`after_backward` sees the whole step's gradients, before clipping and before the step."""
    hook = Moments()
    _train([hook], clip_grad_norm=1.0, accumulate=accumulate)
    names, gradients, weights = zip(*hook.calls, strict=True)
    step = ("before_step", "after_backward", "after_step")
    assert names == ("before_train", *step, *step, "after_train")
    after_backward = [i for i, name in enumerate(names) if name == "after_backward"]
    assert [gradients[i] for i in after_backward] == pytest.approx([3.0, 3.0])
    assert [weights[i] for i in after_backward] == pytest.approx([0.0, -0.3], rel=1e-5)


def test_memory_is_read_only_in_steps_that_are_logged():
    """Reading a GPU's memory statistics is slow."""
    schedule = Schedule(4, 1, 5, None, False, Period(), Period(), log_period=2, evaluates=False)
    trainer = _train([MemoryHook(schedule)], steps=5)
    logged = trainer.storage.history("memory_mb").values()
    assert [i for _, i in logged] == [1, 3, 4] and logged[0][0] > 10
    assert "memory_mb" not in trainer.memory()["present"]  # it is the machine's


class Calls(HookBase):
    """Record each call with the trainer's counters and weights, and the step's gradient."""

    def __init__(self):
        self.calls = []

    def _note(self, name):
        trainer = self.trainer
        counters = (trainer.iter, trainer.storage.iter, trainer.start_iter, trainer.max_iter)
        self.calls.append((name, counters, trainer.model.w.tolist()))

    def before_train(self):
        self._note("before_train")

    def before_step(self):
        self._note("before_step")

    def after_backward(self):
        self._note(("after_backward", self.trainer.model.w.grad.tolist()))

    def after_step(self):
        self._note("after_step")

    def after_train(self):
        self._note("after_train")


@pytest.mark.parametrize(("start", "steps"), [(0, 5), (2, 5)])
def test_calls_agree_with_detectron2_s_trainer(start, steps):
    ours, theirs = Calls(), Calls()
    _train([ours], steps, start)
    model = Line()
    batches = iter(lambda: [{"x": torch.tensor([3.0, 4.0])}], None)
    trainer = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.5))
    trainer.register_hooks([theirs])
    trainer.train(start, steps)
    assert len(ours.calls) == 2 + 3 * (steps - start)
    assert ours.calls == theirs.calls


def test_after_train_of_all_hooks_runs_even_if_one_fails():
    """One of the others saves the last step."""

    class Fails(HookBase):
        def after_train(self):
            raise ValueError("of the hook")

    last = Calls()
    with pytest.raises(ValueError, match="of the hook"):
        _train([Fails(), last])
    assert last.calls[-1][0] == "after_train"


class Ends(HookBase):
    """End the run after its first step, or raise an error there."""

    def __init__(self, error=None):
        self._error = error

    def after_step(self):
        if self._error:
            raise self._error
        self.trainer.ended_early = "enough"


def test_a_run_that_ends_early_is_saved_before_after_train():
    calls = Calls()
    _train([Ends(), calls], steps=3, on_stop=lambda: calls.calls.append("on_stop"))
    assert calls.calls[-2] == "on_stop" and calls.calls[-1][:2] == ("after_train", (1, 1, 0, 3))
    stops = []
    _train([], steps=3, on_stop=lambda: stops.append("at the end"))
    with pytest.raises(ValueError, match="in a step"):
        _train([Ends(ValueError("in a step"))], on_stop=lambda: stops.append("after an error"))
    assert stops == []


def test_a_hook_can_change_gradients():
    class Freeze(HookBase):
        def after_backward(self):
            self.trainer.model.w.grad[0] = 0

    assert _train([Freeze()], steps=1).model.w.tolist() == [0, -2]


class Counts(HookBase):
    def __init__(self, by):
        self._by, self.count = by, 0

    def after_step(self):
        self.count += self._by

    def state_dict(self):
        return {"count": self.count, "last": torch.tensor([self.count]), "more": [("a", None)]}

    def load_state_dict(self, state):
        assert state["last"].tolist() == [state["count"]] and state["more"] == [("a", None)]
        self.count = state["count"]


class Other(HookBase):
    """A hook without state."""


def test_several_hooks_of_a_class_each_restore_their_state(tmp_path):
    """Detectron2 would keep the state of only one hook per class."""
    hooks = [Counts(1), Other(), Counts(10)]
    _train(hooks, steps=3)
    content = {"model": {}, "optimizer": {}, "iterations_done": 3, "images_seen": 3}
    save_checkpoint(tmp_path / "a.pth", content | {"hooks": hook_states(hooks)})
    one, ten = Counts(1), Counts(10)
    _train([one, Other(), ten], 5, 3, read_checkpoint(tmp_path / "a.pth")["hooks"])
    assert (one.count, ten.count) == (5, 50)


def test_a_state_that_no_hook_loads_is_reported(caplog):
    class Forgets(HookBase):
        def state_dict(self):
            return {"a": 1}

    hooks = [Forgets(), Counts(1)]
    _train(hooks)
    with caplog.at_level("WARNING"):
        _train([Forgets()], 4, 2, hook_states(hooks))
    lines = [r.getMessage() for r in caplog.records if "is ignored" in r.getMessage()]
    assert len(lines) == 2
    assert "Forgets is ignored: it has no load_state_dict" in lines[0]
    assert "Counts is ignored: this run has no such hook" in lines[1]


@pytest.mark.parametrize("value", [np.float64(1), {"x": [Line()]}, {1, 2}])
def test_a_state_that_cannot_be_loaded_again_is_refused(value):
    class Odd(HookBase):
        def state_dict(self):
            return {"a": value}

    with pytest.raises(UserError, match=r"Odd.state_dict\(\) contains a (float64|Line|set)"):
        hook_states([Odd()])
