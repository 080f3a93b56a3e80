"""Losses on test sets: their means, and what computing them leaves unchanged."""

import math
import random

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from d2ext.data.loading.loader import build_loss_loader
from d2ext.evaluation.validation_loss import ValidationLoss


class Stateful(nn.Module):
    """A model with everything that a forward pass in training may change."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.frozen = nn.BatchNorm1d(2).eval()
        self.dropout = nn.Dropout()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("queue", torch.zeros(2))
        self.calls = 0

    def forward(self, batch):
        """Return losses; `noise` depends on all random generators, `calls` on earlier images."""
        assert self.training and self.dropout.training and not torch.is_grad_enabled()
        self.calls += 1
        self.last = batch
        x = torch.stack([sample["x"] for sample in batch])
        self.mean = self.mean + x.mean(0)
        self.queue += 1
        get_event_storage().put_scalar("inside", 1.0)
        noise = random.random() + np.random.rand() + self.dropout(torch.ones(8)).sum()
        normed = self.norm(x) + self.frozen(x)
        return {
            "loss_norm": normed.square().mean(),
            "noise": torch.as_tensor(noise),
            "calls": self.calls + self.queue[0] + 0 * self.mean[0],
        }


def _compute(model, count=3, sample=lambda i: {"x": torch.tensor([1.0, i])}, losses=None):
    records = [{"file_name": f"{i}.jpg", "height": 1, "width": 1, "i": i} for i in range(count)]
    loader = build_loss_loader(records, lambda record: sample(record["i"]), num_workers=0)
    validation = ValidationLoss({"set": loader})
    return validation.compute(model, losses or model, 7), validation


def _states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_nothing_of_the_model_and_of_the_process_changes():
    model = Stateful().train()
    model.frozen.eval()  # as a hook of a user may have done
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = dict(model.named_buffers())
    states = _states()
    with EventStorage(3) as storage:
        first, _ = _compute(model)
        assert not storage.histories() and storage.iter == 3
    assert _states() == states
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(tensors[name] is value for name, value in model.named_buffers())
    assert model.calls == 0 and not hasattr(model, "last")
    assert model.training and not model.frozen.training
    # Each image is the first one, and its randomness depends on its position only.
    assert first["set/validation_loss/calls"] == 2
    torch.rand(1)
    assert _compute(model)[0] == first
    # Norms use their running statistics, which are 0 and 1.
    expected = np.mean([4 * (1 + i * i) / 2 for i in range(3)])
    assert first["set/validation_loss/loss_norm"] == pytest.approx(expected, rel=1e-4)
    names = ("loss_norm", "noise", "calls")
    total = math.fsum(first[f"set/validation_loss/{name}"] for name in names)
    assert first["set/validation_loss/total_loss"] == total


def test_images_have_different_randomness():
    model = Stateful()
    one, two = (_compute(model, count)[0]["set/validation_loss/noise"] for count in (1, 2))
    assert one != two


def test_a_failing_set_is_reported_once_and_dropped(caplog):
    model = Stateful().eval()

    def sample(i):
        return {"x": torch.tensor([1.0, i])} if i < 2 else {}

    found, validation = _compute(model, sample=sample)
    assert found == {} and model.calls == 0 and not model.training
    assert "No validation loss on set in the rest of this run: KeyError: 'x'" in caplog.text
    assert "test_validation_loss.py:" in caplog.text
    caplog.clear()
    assert validation.compute(model, model, 8) == {} and not caplog.text


def test_a_loss_that_is_not_finite_names_an_image(caplog):
    def losses(batch):
        if batch[0]["x"][1] == 1:
            raise FloatingPointError("Predicted boxes contain NaN")
        return {"loss": torch.tensor(math.inf if batch[0]["x"][1] == 2 else 1.0)}

    found, _ = _compute(Stateful(), losses=losses)
    assert list(found) == ["set/validation_loss/total_loss"]
    assert math.isnan(found["set/validation_loss/total_loss"])
    assert "is not finite on 2 of 3 images (such as 1.jpg)" in caplog.text


def test_losses_that_only_some_images_have():
    def losses(batch):
        named = {"loss_a": torch.tensor(3.0)}
        return named if batch[0]["x"][1] else {**named, "loss_b": torch.tensor(3.0)}

    found, _ = _compute(Stateful(), losses=losses)
    means = {name.rpartition("/")[2]: value for name, value in found.items()}
    assert means == {"loss_a": 3.0, "loss_b": 1.0, "total_loss": 4.0}
