"""Models may return losses by name, or one loss, as in Detectron2's SimpleTrainer."""

import itertools

import pytest
import torch
from torch import nn

from d2ext.engine.losses import losses_of
from d2ext.engine.nonfinite import FiniteLossGuard
from d2ext.engine.trainer import Trainer
from d2ext.errors import UserError
from d2ext.launch.signals import StopSignals


class OneLoss(nn.Module):
    """Return w squared, in a dict or as it is."""

    def __init__(self, named):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.named = named

    def forward(self, batch):
        loss = self.w.square().sum()
        return {"loss": loss} if self.named else loss


@pytest.mark.parametrize("named", [True, False])
def test_a_model_trains_with_one_loss(named):
    model = OneLoss(named)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    trainer = Trainer(FiniteLossGuard(model), optimizer, itertools.repeat([{}]), [], 0)
    with StopSignals() as signals:
        trainer.train(0, 1, signals)
    assert model.w.item() == 0.5
    assert trainer.storage.history("total_loss").latest() == 1


@pytest.mark.parametrize("output", [{}, None, [torch.ones(1)]])
def test_an_output_without_losses_is_an_error(output):
    with pytest.raises(UserError, match="the model returns no loss in training"):
        losses_of(output)
