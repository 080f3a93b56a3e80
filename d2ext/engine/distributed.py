"""What the ranks of a run tell one another; all of it does nothing in a single process."""

import datetime
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from d2ext.errors import UserError, user_message

logger = logging.getLogger(__name__)


def set_timeout(seconds: float) -> None:
    """How long the exchanges of plain values wait, which go over gloo in any case.

    Detectron2 makes their group beside NCCL's, with torch's 30 minutes whatever the user says.
    """
    if comm.get_world_size() > 1:
        # The name from torch 2.8 on, and the one before.
        set_on_group = getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)
        set_on_group(datetime.timedelta(seconds=seconds), comm._get_global_gloo_group())


def from_main(make: Callable[[], Any]) -> Any:
    """What `make` returns on rank 0, on every rank.

    Raises:
        UserError: on every rank, if the user's mistake made it fail on rank 0.
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
    dist.broadcast_object_list(content, src=0, group=comm._get_global_gloo_group())
    if content[1] is not None:
        raise UserError(content[1])
    return content[0]


def copy_from_main(model: nn.Module) -> None:
    """Gives every rank the weights of rank 0, which alone needs to reach the files."""
    if comm.get_world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def distributed(model: nn.Module, cfg: Any, device: str) -> nn.Module:
    """The model, wrapped to average gradients over the ranks; options from `train.ddp`."""
    if comm.get_world_size() == 1:
        return model
    ids = [torch.cuda.current_device()] if device == "cuda" else None
    return create_ddp_model(model, **{"device_ids": ids, **cfg.train.get("ddp", {})})


def log_ranks(device: str) -> None:
    """Rank, its number on its host, host and device of every process, as a table on rank 0."""
    if device == "cuda":
        device = f"cuda:{torch.cuda.current_device()} {torch.cuda.get_device_name()}"
    mine = (comm.get_rank(), comm.get_local_rank(), socket.gethostname(), os.getpid(), device)
    rows = comm.gather(mine)
    if len(rows) > 1:
        logger.info("%s", tabulate(rows, headers=("rank", "local", "host", "pid", "device")))


def agree(values: Sequence[float], mine: str | None) -> tuple[list[float], str | None]:
    """Means over the ranks, and a signal that any of them got; each step, every rank calls this.

    So all ranks stop behind the same step, though a signal reaches them at different times. It goes
    over the CPU, also where gradients go over NCCL, which have just made the ranks wait anyway.

    Args:
        values: of this rank; as many on every rank.
        mine: the signal that this rank has received, or None.
    """
    if comm.get_world_size() == 1:
        return list(values), mine
    sent = torch.tensor([signal.Signals[mine] if mine else 0, *values], dtype=torch.float64)
    received = [torch.empty_like(sent) for _ in range(comm.get_world_size())]
    dist.all_gather(received, sent, group=comm._get_global_gloo_group())
    table = torch.stack(received)
    number = int(table[:, 0].max())
    return table[:, 1:].mean(dim=0).tolist(), signal.Signals(number).name if number else None
