"""Collectives between the ranks of a run; no-ops in a single process."""

import logging
import math
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from d2ext._compat import gloo_group, set_group_timeout
from d2ext.config.options import DDP
from d2ext.errors import UserError, user_message
from d2ext.launch.signals import REASONS
from d2ext.waiting import waiting_for

logger = logging.getLogger(__name__)

_SLOTS = 256  # maximum number of losses of a model; each step exchanges 2 KB


def set_timeout(seconds: float) -> None:
    """Set the timeout of collectives on plain values, which always use gloo.

    Detectron2 creates their group in addition to NCCL's, always with torch's default of 30 minutes.
    """
    if comm.get_world_size() > 1:
        set_group_timeout(gloo_group(), seconds)


def speaks_for_machine() -> bool:
    """Return whether this rank prints wait messages for all ranks of its machine."""
    try:
        return comm.get_local_rank() == 0
    except AssertionError:  # Detectron2 has not created the machines' groups yet
        return True


def wait_for_ranks(what: str) -> None:
    """Wait until every rank has called this; print a message if that takes long.

    Args:
        what: What this rank waits for, as text for the message.
    """
    with waiting_for(what, needed=speaks_for_machine):
        comm.synchronize()


def broadcast_from_rank0(make: Callable[[], Any]) -> Any:
    """Call `make` on rank 0 and return its result on every rank.

    Raises:
        UserError: On every rank, if `make` failed on rank 0 because of a user error.
    """
    if comm.get_world_size() == 1:
        return make()
    content: list[Any] = [None, None]
    if comm.is_main_process():
        try:
            content[0] = make()
        except (UserError, OSError) as e:
            content[1] = user_message(e)
            if content[1] is None:
                raise
    others = "the other ranks" if comm.is_main_process() else "rank 0"
    with waiting_for(others, needed=speaks_for_machine):
        dist.broadcast_object_list(content, src=0, group=gloo_group())
    if content[1] is not None:
        raise UserError(content[1])
    return content[0]


def broadcast_weights(model: nn.Module) -> None:
    """Broadcast rank 0's weights, so that only rank 0 reads the files."""
    if comm.get_world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def broadcast_buffers(model: nn.Module) -> None:
    """Broadcast rank 0's running statistics, which checkpoints contain."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def distributed(model: nn.Module, options: DDP, device: str) -> nn.Module:
    """Wrap a model to average gradients over the ranks; a single process returns it unchanged."""
    if comm.get_world_size() == 1:
        return model
    ids = [torch.cuda.current_device()] if device == "cuda" else None
    return create_ddp_model(model, **{"device_ids": ids, **options.arguments()})


def check_own_gpus() -> None:
    """Check that each rank has a GPU of its own, before NCCL connects.

    Raises:
        UserError: Two ranks use the same GPU; raised on all ranks.
    """
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    ranks: dict[tuple[str, str], int] = {}
    for rank, own in enumerate(comm.all_gather((socket.gethostname(), str(gpu.uuid)))):
        if (other := ranks.setdefault(own, rank)) != rank:
            raise UserError(
                f"ranks {other} and {rank} on {own[0]} use the same GPU; start at most one process"
                " per GPU; with srun, --gpus-per-task=1 gives each its own"
            )


def log_ranks(device: str) -> None:
    """Log a table of all processes on rank 0: rank, local rank, host, process id and device."""
    if device == "cuda":
        device = f"cuda:{torch.cuda.current_device()} {torch.cuda.get_device_name()}"
    mine = (comm.get_rank(), comm.get_local_rank(), socket.gethostname(), os.getpid(), device)
    rows = comm.gather(mine)
    if len(rows) > 1:
        logger.info("%s", tabulate(rows, headers=("rank", "local", "host", "pid", "device")))


class StepStatus(NamedTuple):
    """The state that all ranks share after a step.

    Attributes:
        means: Means of the losses over the ranks; not finite if any rank's loss is not.
        stop: Reason to stop, one of `signals.REASONS`; None if no rank asks for it.
        bad_images: Number of samples that were replaced, over all ranks.
    """

    means: list[float]
    stop: str | None
    bad_images: int


def sync_step(values: Sequence[float], stop: str | None, bad_images: int = 0) -> StepStatus:
    """Exchange losses and stop requests between all ranks; call it in every step.

    The exchange takes place between the backward pass and the optimizer's step. Either all ranks
    take a step or none does, and all stop after the same step although signals arrive at different
    times. It uses the CPU even if gradients use NCCL; the ranks have just synchronized anyway.

    Args:
        values: Losses of this rank; as many on every rank, or none if its forward pass failed.
        stop: Reason why this rank asks to stop, or None.
        bad_images: Number of samples that this rank has replaced so far.
    """
    if comm.get_world_size() == 1:
        return StepStatus(list(values) or [math.nan], stop, bad_images)
    if len(values) > _SLOTS:
        raise ValueError(f"the model has {len(values)} losses; at most {_SLOTS} are supported")
    head = [REASONS.index(stop), bad_images, len(values)]
    rest = [math.nan] * (_SLOTS - len(values))
    sent = torch.tensor([*head, *values, *rest], dtype=torch.float64)
    received = [torch.empty_like(sent) for _ in range(comm.get_world_size())]
    with waiting_for("the other ranks' step", needed=speaks_for_machine):
        dist.all_gather(received, sent, group=gloo_group())
    table = torch.stack(received)
    reasons, images, counts = table[:, :3].long().T
    means = table[:, 3 : 3 + max(int(counts.max()), 1)].mean(dim=0)
    return StepStatus(means.tolist(), REASONS[int(reasons.max())], int(images.sum()))
