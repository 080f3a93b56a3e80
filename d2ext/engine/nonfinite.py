"""Handle non-finite losses: no rank takes the step, and the run stops or skips it."""

import logging
import math
from collections.abc import Mapping

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from d2ext.config.options import BadLoss
from d2ext.engine.losses import losses_of
from d2ext.errors import UserError

logger = logging.getLogger(__name__)


class FiniteLossGuard(nn.Module):
    """Return losses even if the forward pass fails, so that no rank waits indefinitely.

    Detectron2's RPN raises an error for NaN before there is a loss. Because the other ranks wait
    for this rank's gradients, it provides some for every parameter, and a loss of NaN.

    Args:
        model: Model that returns a dict of losses, or one loss, in training.
    """

    FAILED = "forward_failed"

    def __init__(self, model: nn.Module):
        super().__init__()
        self.module = model
        self.reason = ""

    def forward(self, batch: list[dict]) -> dict[str, Tensor]:
        """Return the model's losses, or NaN under the name `FAILED`."""
        try:
            return losses_of(self.module(batch))
        except FloatingPointError as e:
            self.reason = str(e)
            some = sum(p.sum() * 0 for p in self.module.parameters() if p.requires_grad)
            return {self.FAILED: some + math.nan}


class NonFinitePolicy:
    """Stop a run at a step whose loss is not finite on some rank, or skip the step.

    The exchange before the optimizer's step informs all ranks, so that no rank changes its weights.
    Running statistics, which the forward pass changes, are restored.

    Args:
        policy: `stop`, or `skip` to continue with the next step and the next images.
        max_skipped: Number of steps that a run may skip; one more stops it.

    Attributes:
        skipped: Steps skipped so far.
    """

    def __init__(self, policy: str = BadLoss.policy, max_skipped: int = BadLoss.max_skipped):
        self._skips = policy == "skip"
        self._max_skipped = max_skipped
        self._noted: list[str] = []
        self._buffers: list[Tensor] = []
        self.skipped = 0

    def before_step(self, model: nn.Module) -> None:
        """Copy the model's buffers before a step."""
        if self._skips:
            self._buffers = [b.detach().clone() for b in model.buffers()]

    def note(self, losses: Mapping[str, float], batch: list[dict], reason: str = "") -> None:
        """Record a non-finite micro-batch of this rank; `reason` replaces its losses."""
        each = reason or ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        files = ", ".join(str(sample.get("file_name", "?")) for sample in batch)
        self._noted.append(f"{each}; images {files}")

    def note_skipped(self, model: nn.Module, iteration: int, lr: float, seed: int) -> None:
        """Restore the buffers from before the step; every rank calls this for a non-finite loss.

        Raises:
            UserError: The policy is to stop, or too many steps were skipped; raised on all ranks.
        """
        noted = comm.all_gather(self._noted)
        rank, text = next((rank, texts[0]) for rank, texts in enumerate(noted) if texts)
        self._noted = []
        where = f" on rank {rank}" if comm.get_world_size() > 1 else ""
        said = (
            f"the loss is not finite at iteration {iteration}{where} ({text}; lr {lr:.3g},"
            f" seed {seed})"
        )
        if not self._skips:
            raise UserError(
                f"{said}; try a lower optimizer.lr, a longer train.warmup_iters or"
                " train.clip_grad_norm=10, or skip such steps with train.bad_loss.policy=skip"
            )
        self.skipped += 1
        if self.skipped > self._max_skipped:
            raise UserError(
                f"{said}; this is one skipped step more than train.bad_loss.max_skipped="
                f"{self._max_skipped} allows"
            )
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        logger.warning("Step skipped (%d of at most %d): %s", self.skipped, self._max_skipped, said)
