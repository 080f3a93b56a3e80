"""The training loop, over Detectron2's hooks and event storage."""

import contextlib
import itertools
import logging
import math
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from d2ext.engine.nonfinite import FiniteLossGuard, NonFinitePolicy
from d2ext.engine.resource_errors import batch_words, resource_errors_explained
from d2ext.errors import UserError
from d2ext.launch.collectives import sync_step
from d2ext.launch.signals import StopSignals, StopWaiting
from d2ext.waiting import interruptible

logger = logging.getLogger(__name__)

_WINDOW = 20  # iterations whose median Detectron2's writers show
_MAX_OVERFLOWS = 30  # consecutive; the loss scale is then below 1e-4, fairseq's minimum
_PLAIN = (str, bytes, bool, int, float, type(None))
_OF_THE_MACHINE = ("time", "data_time", "memory_mb")


class Trainer:
    """Runs optimizer steps and hooks from one iteration to another, or until a signal.

    Detectron2's SimpleTrainer cannot stop between steps and starts each run with the generators
    where history left them; here each step's randomness follows from (seed, iteration).

    Hooks run at Detectron2's moments. `after_backward` comes once per step, after the last
    micro-batch; the gradients are not clipped yet and, with float16, still scaled.

    Args:
        model: Detectron2's in a `FiniteLossGuard`, which may be wrapped for several processes.
        optimizer: of its parameters.
        loader: gives this rank's micro-batches for ever.
        hooks: in the order in which they are called.
        seed: of the run.
        accumulate: micro-batches per step.
        autocast: makes the context of a forward pass.
        scaler: of the losses; None does not scale.
        clip_grad_norm: upper bound of the gradients' L2 norm over all parameters, or None.
        bad_loss: what to do about a loss that is not finite; None stops.
        first_step: makes the context of the forward and backward passes of the first iteration.

    Attributes:
        model, optimizer: as given.
        iter: the current iteration, counted from 0.
        start_iter, max_iter: of this run.
        storage: Detectron2's EventStorage, open while training.
        stopped_by: why the run was stopped, of `signals.REASONS`.
        updated: whether the present step was taken, which a bad loss or an overflow prevents.
        skipped_steps: steps not taken so far, over all parts of the run; schedules ignore them.
        ended_early: why a hook has ended the run before `max_iter`, or None; hooks set it, on all
            ranks alike.
        error: the exception that ends the run, for `after_train`.
        bad_images: samples that were replaced over all ranks and parts of the run.
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
        bad_loss: NonFinitePolicy | None = None,
        first_step: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
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
        self._bad_loss = bad_loss or NonFinitePolicy()
        self._first_step = first_step
        self._device = next(model.parameters()).device
        self._batch: list[dict] = []
        self._images_before = 0
        self.bad_images = 0
        self.updated = False
        self._overflows = 0  # steps that the scaler skipped
        self._overflows_in_a_row = 0
        self._done = 0  # iterations
        self._accumulated = 0  # micro-batches of the present step
        self.stopped_by: str | None = None
        self.ended_early: str | None = None
        self.error: BaseException | None = None
        for hook in hooks:
            hook.trainer = weakref.proxy(self)
        _start_momentum(optimizer)

    @property
    def skipped_steps(self) -> int:
        return self._bad_loss.skipped + self._overflows

    def train(
        self,
        start_iter: int,
        max_iter: int,
        signals: StopSignals,
        memory: dict[str, Any] | None = None,
    ) -> None:
        """Trains iterations `start_iter` to `max_iter` - 1.

        Args:
            start_iter: the first one.
            max_iter: of the run.
            signals: what asks it to stop.
            memory: of `memory()` after `start_iter` iterations.

        Raises:
            UserError: the loss is not finite, float16 overflows in every step, an image cannot be
                read, or the machine runs out of something.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self.model.train()
        shortages = resource_errors_explained(
            lambda: f"at iteration {self.iter}: {batch_words(self._batch)} in a micro-batch",
            "lower dataloader.train.total_batch_size, raise train.accumulate, take smaller images"
            " (dataloader.train.mapper.augmentations) or train.amp.enabled=True",
            "dataloader.train.num_workers",
        )
        with EventStorage(start_iter) as self.storage:
            self._remember(memory or {})
            batches = None
            try:
                with shortages:
                    batches = iter(self._loader)
                    self._loop(batches, signals)
            except BaseException as e:
                self.error = e
                raise
            finally:
                try:
                    self._after_train()  # saves, which does not wait for workers that hang
                finally:
                    if hasattr(batches, "close"):  # a generator, as d2ext's loader is
                        batches.close()

    def _after_train(self) -> None:
        for hook in self._hooks:
            try:
                hook.after_train()
            except Exception as e:
                # Behind an error hooks find what they do not expect, such as a step without an end;
                # the error is what is to be told.
                if self.error is None:
                    raise
                logger.warning("%s.after_train: %r", type(hook).__name__, e)

    def memory(self) -> dict[str, Any]:
        """What a resumed run has to know of its past, in plain types."""
        hints = self.storage.smoothing_hints()
        smoothed = [name for name, is_so in hints.items() if is_so]
        present = {
            name: value
            for name, (value, i) in self.storage.latest().items()
            if i == self.storage.iter and not hints[name]
        }
        oldest = self.storage.iter - _WINDOW
        recent = {}
        for name in (name for name in smoothed if name not in _OF_THE_MACHINE):
            # From the end, since a history holds the whole run.
            backwards = reversed(self.storage.history(name).values())
            kept = itertools.takewhile(lambda pair: pair[1] >= oldest, backwards)
            recent[name] = [[i, value] for value, i in kept][::-1]
        counts = {
            "skipped_steps": self._bad_loss.skipped,
            "overflowed_steps": self._overflows,
            "overflows_in_a_row": self._overflows_in_a_row,
            "bad_images": self.bad_images,
        }
        return {**counts, "recent": recent, "present": present, "hooks": self._hook_states()}

    def _remember(self, memory: dict[str, Any]) -> None:
        self._bad_loss.skipped = memory.get("skipped_steps", 0)
        self._overflows = memory.get("overflowed_steps", 0)
        self._overflows_in_a_row = memory.get("overflows_in_a_row", 0)
        self._images_before = self.bad_images = memory.get("bad_images", 0)
        # Logged losses are medians, which go on as if nothing had happened.
        for name, values in memory.get("recent", {}).items():
            for self.storage.iter, value in values:
                self.storage.put_scalar(name, value)
        self.storage.iter = self.start_iter - 1
        self.storage.put_scalars(**memory.get("present", {}), smoothing_hint=False)
        self.storage.iter = self.start_iter
        self._load_hook_states(memory.get("hooks", []))

    def _numbered_hooks(self) -> Iterator[tuple[tuple[str, int], HookBase]]:
        """Yield each hook with its class's name and its number among the hooks of that name.

        Ranks other than 0 lack some hooks, so that positions in the whole list would differ.
        """
        numbers: Counter[str] = Counter()
        for hook in self._hooks:
            name = type(hook).__qualname__
            yield (name, numbers[name]), hook
            numbers[name] += 1

    def _hook_states(self) -> list[dict[str, Any]]:
        states = []
        for (name, number), hook in self._numbered_hooks():
            if not (state := hook.state_dict()):
                continue
            if (kind := _unsafe(state)) is not None:
                raise UserError(
                    f"{name}.state_dict() holds a {kind}, which no checkpoint can hold; return"
                    " tensors, numbers, strings, lists and dicts"
                )
            states.append({"hook": name, "number": number, "state": state})
        return states

    def _load_hook_states(self, states: Sequence[dict[str, Any]]) -> None:
        hooks = dict(self._numbered_hooks())
        for entry in states:
            hook = hooks.get((entry["hook"], entry["number"]))
            if hasattr(hook, "load_state_dict"):
                hook.load_state_dict(entry["state"])
                continue
            reason = "this run has no such hook" if hook is None else "it has no load_state_dict"
            logger.warning(
                "The checkpoint's state of the hook %s is ignored: %s", entry["hook"], reason
            )

    def _loop(self, batches: Iterator[list[dict]], signals: StopSignals) -> None:
        self._done = self.start_iter
        try:
            self._steps(batches, signals)
        except StopWaiting:
            # Ranks stop after the same step, and half a step cannot be saved.
            if comm.get_world_size() > 1 or self._accumulated:
                raise
            self.stopped_by = signals.received
        # From here on, as Detectron2's hooks expect, the number of iterations done.
        self.iter = self.storage.iter = self._done

    def _steps(self, batches: Iterator[list[dict]], signals: StopSignals) -> None:
        self._call_hooks("before_train")
        first, last = self.start_iter, self.max_iter
        for self.iter in range(first, last):
            if self.ended_early:
                break
            self.storage.iter = self.iter
            self._call_hooks("before_step")
            self._bad_loss.before_step(self.model)
            losses = self._gradients(batches)
            self._call_hooks("after_backward")
            replaced = getattr(self._loader, "replaced", {})  # of a loader of the user's: none
            status = sync_step(list(losses.values()), signals.received, sum(replaced.values()))
            good = all(map(math.isfinite, status.means)) and self._clip()
            self.updated = good and self._update()
            if good:
                losses = dict(zip(losses, status.means, strict=True))
                self.storage.put_scalars(total_loss=sum(status.means), **losses)
            else:
                lr = self.optimizer.param_groups[0]["lr"]
                self._bad_loss.note_skipped(self.model, self.iter, lr, self._seed)
                self.storage.put_scalar(
                    "skipped_steps", self._bad_loss.skipped, smoothing_hint=False
                )
            self.optimizer.zero_grad()
            self._accumulated, self._done = 0, self.iter + 1
            if self._overflows:
                self.storage.put_scalar("overflowed_steps", self._overflows, smoothing_hint=False)
            self.bad_images = self._images_before + status.bad_images
            if self.bad_images:
                self.storage.put_scalar("bad_images", self.bad_images, smoothing_hint=False)
            self._call_hooks("after_step")
            if status.stop and self._done < last:
                self.stopped_by = status.stop
                break

    def _gradients(self, batches: Iterator[list[dict]]) -> dict[str, float]:
        """Gradients of a step; returns this rank's losses, means over its micro-batches.

        Without any where a forward pass failed; the gradients are of no use then.
        """
        data_time, losses = 0.0, []
        first = self.iter == self.start_iter
        for k in range(self._accumulate):
            start = time.perf_counter()
            with interruptible():
                self._batch = next(batches)
            data_time += time.perf_counter() - start
            # Proposal sampling and dropout draw from torch's generator.
            number = comm.get_rank() * self._accumulate + k
            words = np.random.SeedSequence((self._seed, self.iter, number)).generate_state(1)
            torch.manual_seed(int(words[0]))
            last = k + 1 == self._accumulate
            # Gradients are exchanged once a step, behind the last micro-batch.
            wait = isinstance(self.model, DistributedDataParallel) and not last
            with (
                self.model.no_sync() if wait else contextlib.nullcontext(),
                self._first_step() if first else contextlib.nullcontext(),
            ):
                losses.append(self._backward(_sent(self._batch, self._device)))
            self._accumulated += 1
        self.storage.put_scalar("data_time", data_time)
        if not all(losses):
            return {}
        return {name: sum(part[name] for part in losses) / len(losses) for name in losses[0]}

    def _backward(self, batch: list[dict]) -> dict[str, float]:
        """One micro-batch's losses; its gradients are added to those of the step."""
        with self._autocast():
            losses = self.model(batch)
        self._scaler.scale(sum(losses.values()) / self._accumulate).backward()
        # One transfer for all losses; Detectron2's heads synchronise many times before.
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        values = dict(zip(losses, values, strict=True))
        if FiniteLossGuard.FAILED in values:
            wrapped = isinstance(self.model, DistributedDataParallel)
            guard = self.model.module if wrapped else self.model
            self._bad_loss.note({}, batch, guard.reason)
            return {}
        if not all(map(math.isfinite, values.values())):
            self._bad_loss.note(values, batch)
        return values

    def _clip(self) -> bool:
        """Clip the gradients, the same on all ranks; return False if they are not finite.

        Those of float16 may overflow: that is for its scaler to judge.
        """
        if not self._clip_grad_norm:
            return True
        self._scaler.unscale_(self.optimizer)
        norm = float(clip_grad_norm_(self.model.parameters(), self._clip_grad_norm))
        if math.isfinite(norm):  # JSON has no infinity
            self.storage.put_scalar("grad_norm", norm)
        elif not self._scaler.is_enabled():
            self._bad_loss.note({"grad_norm": norm}, self._batch)
            return False
        return True

    def _update(self) -> bool:
        """Take the optimizer's step; return False if float16's scaler skipped it for an overflow.

        Raises:
            UserError: on all ranks alike, if nothing but overflows has happened for long.
        """
        scale = self._scaler.get_scale()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if not self._scaler.get_scale() < scale:
            self._overflows_in_a_row = 0
            return True
        self._overflows += 1
        self._overflows_in_a_row += 1
        if self._overflows_in_a_row >= min(_MAX_OVERFLOWS, self.max_iter):
            raise UserError(
                f"the float16 gradients overflowed in each of the last {self._overflows_in_a_row}"
                f" steps, up to iteration {self.iter}, down to a loss scale of"
                f" {self._scaler.get_scale():g}; set train.amp.dtype=bfloat16, or lower"
                " optimizer.lr"
            )
        return False

    def _call_hooks(self, moment: str) -> None:
        for hook in self._hooks:
            getattr(hook, moment)()


def _sent(batch: list[dict], device: torch.device) -> list[dict]:
    """The batch with its images on a GPU, where Detectron2's models then find them.

    The loader has pinned them, so the host does not wait for the copy, as it does for Detectron2's.
    """
    if device.type == "cpu":
        return batch
    return [
        {**sample, "image": sample["image"].to(device, non_blocking=True)}
        if torch.is_tensor(sample.get("image"))
        else sample
        for sample in batch
    ]


def _start_momentum(optimizer: Optimizer) -> None:
    """Start the momentum of a fused SGD at zero.

    torch creates it uninitialized in the first step, writes nothing to it if that step overflows,
    and cannot add that of a parameter whose first gradient comes later. From zero, the first step
    has the same result, unless there is dampening: then it is dampened as well.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") and group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


def _unsafe(value: Any) -> str | None:
    """Return the name of a type in a hook's state that `weights_only` does not load, or None."""
    # Exact types: numpy's float64 is a float to Python, but not to torch's reader.
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return None
    if type(value) in (dict, OrderedDict):
        value = [*value.keys(), *value.values()]
    if type(value) in (list, tuple):
        return next(filter(None, map(_unsafe, value)), None)
    return type(value).__name__
