"""A loss that is not finite: no rank takes the step; then the run stops, or leaves the step out."""

import logging
import math
from collections.abc import Mapping

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from d2ext.config.options import BadLoss
from d2ext.errors import UserError

logger = logging.getLogger(__name__)


class FiniteLossGuard(nn.Module):
    """A model whose forward pass always gives losses, so that no rank waits for another for ever.

    Detectron2's RPN raises where it meets NaN, before there is a loss. The other ranks would wait
    for this one's gradients: it gives some for every parameter, and a loss of NaN.

    Args:
        model: returns a dict of losses in training.
    """

    FAILED = "forward_failed"

    def __init__(self, model: nn.Module):
        super().__init__()
        self.module = model
        self.reason = ""

    def forward(self, batch: list[dict]) -> dict[str, Tensor]:
        """The model's losses, or NaN under the name `FAILED`."""
        try:
            return self.module(batch)
        except FloatingPointError as e:
            self.reason = str(e)
            some = sum(p.sum() * 0 for p in self.module.parameters() if p.requires_grad)
            return {self.FAILED: some + math.nan}


class NonFinitePolicy:
    """What a run does about steps whose loss is not finite on any rank.

    All ranks learn of it before the optimizer's step, from the exchange that there is in each step,
    so no weights are changed on any of them. Running statistics, which the forward pass changes,
    are put back.

    Args:
        policy: `stop`, or `skip`: the step is left out, and the next one has the next images.
        max_skipped: so many steps may be left out in a run; one more stops it.

    Attributes:
        skipped: steps left out so far.
    """

    def __init__(self, policy: str = BadLoss.policy, max_skipped: int = BadLoss.max_skipped):
        self._skips = policy == "skip"
        self._max_skipped = max_skipped
        self._noted: list[str] = []
        self._buffers: list[Tensor] = []
        self.skipped = 0

    def before_step(self, model: nn.Module) -> None:
        """Keeps the buffers of a model as they are before a step."""
        if self._skips:
            self._buffers = [b.detach().clone() for b in model.buffers()]

    def note(self, losses: Mapping[str, float], batch: list[dict], reason: str = "") -> None:
        """Takes down a bad micro-batch of this rank; `reason` takes the place of its losses."""
        each = reason or ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        files = ", ".join(str(sample.get("file_name", "?")) for sample in batch)
        self._noted.append(f"{each}; images {files}")

    def note_skipped(self, model: nn.Module, iteration: int, lr: float, seed: int) -> None:
        """Puts the model back as it was before the step; every rank calls this for a bad one.

        Raises:
            UserError: on all ranks alike, where the policy is to stop or enough is enough.
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
                f"{said}; a lower optimizer.lr, a longer train.warmup_iters or"
                " train.clip_grad_norm=10 is the usual remedy; train.bad_loss.policy=skip leaves"
                " such steps out"
            )
        self.skipped += 1
        if self.skipped > self._max_skipped:
            raise UserError(
                f"{said}; that is one step more than train.bad_loss.max_skipped="
                f"{self._max_skipped} allows"
            )
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        logger.warning(
            "Step left out (%d of at most %d): %s", self.skipped, self._max_skipped, said
        )
