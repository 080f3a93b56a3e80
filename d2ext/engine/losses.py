"""Read the losses of a model, and keep RetinaNet's and FCOS's normalizer equal on all ranks.

Detectron2's dense detectors divide their losses by a running mean of the number of matched anchors
or points. Each process updates its own in each forward pass, and checkpoints lack it. Here, all
micro-batches of a step start from the mean of the last step's, so that the result depends neither
on the number of processes nor on interruptions.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import Tensor, nn

from d2ext._compat import gloo_group
from d2ext.errors import UserError

_NAME = "loss_normalizer"  # attribute that Detectron2's `_ema_update` creates


def losses_of(output: Any) -> dict[str, Tensor]:
    """Return a model's losses by name; a single loss is called `total_loss`, as in Detectron2.

    Args:
        output: What the model returns in training: losses by name, or one loss.

    Raises:
        UserError: The model returns something else, or no loss.
    """
    if torch.is_tensor(output):
        return {"total_loss": output}
    if isinstance(output, Mapping) and output:
        return dict(output)
    raise UserError(
        f"the model returns no loss in training (a {type(output).__name__}); return a dict of"
        " losses, or one loss"
    )


class LossNormalizer(HookBase):
    """Average a dense detector's normalizer over the micro-batches of each step.

    Args:
        detector: The model, unwrapped.
        value: Normalizer of the resumed checkpoint; None lets the model start with its own.
    """

    def __init__(self, detector: DenseDetector, value: float | None = None):
        self.value = value
        self._made: list[float] = []
        detector.register_forward_pre_hook(self._before_forward)
        detector.register_forward_hook(self._after_forward)

    @contextlib.contextmanager
    def for_images(self, detector: DenseDetector, batch_size: int) -> Iterator[None]:
        """Divide the losses of single images by their share of the mean; the mean stays as it is.

        Args:
            detector: The model or its average.
            batch_size: Images in a micro-batch, whose matched anchors the mean counts.
        """
        value, made = self.value, self._made
        self._made = []
        if value is not None:
            self.value = value / batch_size
            setattr(detector, _NAME, self.value)  # an average lacks the hooks
        try:
            yield
        finally:
            self.value, self._made = value, made

    def _before_forward(self, detector: nn.Module, _: Any) -> None:
        if self.value is not None:
            setattr(detector, _NAME, self.value)
        elif _NAME in vars(detector):
            delattr(detector, _NAME)

    def _after_forward(self, detector: nn.Module, *_: Any) -> None:
        if detector.training and _NAME in vars(detector):
            self._made.append(vars(detector)[_NAME])

    def after_step(self) -> None:
        """Set the normalizer of the next step on all ranks."""
        total = torch.tensor([sum(self._made), len(self._made)], dtype=torch.float64)
        self._made.clear()
        if comm.get_world_size() > 1:
            dist.all_reduce(total, group=gloo_group())
        if total[1]:  # otherwise all forward passes failed
            self.value = float(total[0] / total[1])
