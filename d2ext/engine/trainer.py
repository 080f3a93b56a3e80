"""The training loop, over Detectron2's hooks and event storage."""

import contextlib
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from d2ext.engine.distributed import agree
from d2ext.engine.signals import StopSignals
from d2ext.errors import UserError

logger = logging.getLogger(__name__)


class Trainer:
    """Runs optimizer steps and hooks from one iteration to another, or until a signal.

    Detectron2's SimpleTrainer cannot stop between steps and starts each run with the generators
    where history left them; here each step's randomness follows from (seed, iteration).

    Args:
        model: Detectron2's; it may be wrapped for several processes.
        optimizer: of its parameters.
        loader: gives this rank's micro-batches for ever.
        hooks: in the order in which they are called.
        seed: of the run.
        accumulate: micro-batches per step.
        autocast: makes the context of a forward pass.
        scaler: of the losses; None does not scale.
        clip_grad_norm: upper bound of the gradients' L2 norm over all parameters, or None.

    Attributes:
        model, optimizer: as given.
        iter: the current iteration, counted from 0.
        start_iter, max_iter: of this run.
        storage: Detectron2's EventStorage, open while training.
        stopped_by: the signal that stopped the run, or None.
        ended_early: why a hook has ended the run before `max_iter`, or None; hooks set it, on all
            ranks alike.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loader: Iterable[list[dict]],
        hooks: Sequence[HookBase],
        seed: int,
        accumulate: int = 1,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        scaler: torch.amp.GradScaler | None = None,
        clip_grad_norm: float | None = None,
    ):
        self.model = model
        self.optimizer = optimizer
        self._loader = loader
        self._hooks = hooks
        self._seed = seed
        self._accumulate = accumulate
        self._autocast = autocast
        self._scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
        self._clip_grad_norm = clip_grad_norm
        self.stopped_by: str | None = None
        self.ended_early: str | None = None
        for hook in hooks:
            hook.trainer = weakref.proxy(self)

    def train(self, start_iter: int, max_iter: int, signals: StopSignals) -> None:
        """Trains iterations `start_iter` to `max_iter` - 1.

        Raises:
            UserError: the loss is not finite, or an image cannot be read.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self.model.train()
        with EventStorage(start_iter) as self.storage:
            try:
                self._call_hooks("before_train")
                batches, done = iter(self._loader), start_iter
                for self.iter in range(start_iter, max_iter):
                    if self.ended_early:
                        break
                    self.storage.iter = self.iter
                    self._call_hooks("before_step")
                    losses = self._step(batches)
                    means, stop = agree(list(losses.values()), signals.received)
                    losses = dict(zip(losses, means, strict=True))
                    self.storage.put_scalars(total_loss=sum(means), **losses)
                    self._call_hooks("after_step")
                    done = self.iter + 1
                    if stop and done < max_iter:
                        self.stopped_by = stop
                        break
                # From here on, as Detectron2's hooks expect, the number of iterations done.
                self.iter = self.storage.iter = done
            finally:
                self._call_hooks("after_train")

    def _step(self, batches: Iterator[list[dict]]) -> dict[str, float]:
        """One optimizer step; returns this rank's losses, means over its micro-batches."""
        data_time, losses = 0.0, []
        for k in range(self._accumulate):
            start = time.perf_counter()
            batch = next(batches)
            data_time += time.perf_counter() - start
            # Proposal sampling and dropout draw from torch's generator.
            number = comm.get_rank() * self._accumulate + k
            words = np.random.SeedSequence((self._seed, self.iter, number)).generate_state(1)
            torch.manual_seed(int(words[0]))
            last = k + 1 == self._accumulate
            # Gradients are exchanged once a step, behind the last micro-batch.
            wait = isinstance(self.model, DistributedDataParallel) and not last
            with self.model.no_sync() if wait else contextlib.nullcontext():
                losses.append(self._backward(batch))
        if self._clip_grad_norm:
            self._scaler.unscale_(self.optimizer)
            norm = clip_grad_norm_(self.model.parameters(), self._clip_grad_norm)
            if math.isfinite(norm := float(norm)):  # JSON has no infinity; float16 overflows
                self.storage.put_scalar("grad_norm", norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        self.storage.put_scalar("data_time", data_time)
        return {name: sum(part[name] for part in losses) / len(losses) for name in losses[0]}

    def _backward(self, batch: list[dict]) -> dict[str, float]:
        """One micro-batch's losses; its gradients are added to those of the step."""
        try:
            with self._autocast():
                losses = self.model(batch)
        except FloatingPointError as e:  # Detectron2's RPN noticed before the loss could
            raise self._diverged(batch, str(e)) from e
        self._scaler.scale(sum(losses.values()) / self._accumulate).backward()
        # One transfer for all losses; Detectron2's heads synchronise many times before.
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        if not math.isfinite(sum(values)):
            each = (f"{name} {value:.3g}" for name, value in zip(losses, values, strict=True))
            raise self._diverged(batch, ", ".join(each))
        return dict(zip(losses, values, strict=True))

    def _diverged(self, batch: list[dict], reason: str) -> UserError:
        files = ", ".join(sample["file_name"] for sample in batch)
        return UserError(
            f"the loss is not finite at iteration {self.iter} ({reason}; lr"
            f" {self.optimizer.param_groups[0]['lr']:.3g}; images {files}); a lower optimizer.lr or"
            " a longer train.warmup_iters is the usual remedy"
        )

    def _call_hooks(self, moment: str) -> None:
        for hook in self._hooks:
            getattr(hook, moment)()
