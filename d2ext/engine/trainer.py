"""The training loop, based on Detectron2's hooks and event storage."""

import contextlib
import itertools
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from d2ext.engine.nonfinite import FiniteLossGuard, NonFinitePolicy
from d2ext.engine.resource_errors import batch_words, resource_errors_explained
from d2ext.errors import UserError, errors_located
from d2ext.launch.collectives import sync_step
from d2ext.launch.signals import StopSignals, StopWaiting
from d2ext.modeling.gpu.deferred_storage import DeferredStorage
from d2ext.seeding import seed_torch
from d2ext.waiting import interruptible

logger = logging.getLogger(__name__)

WINDOW = 20  # iterations whose median is logged and shown
_MAX_OVERFLOWS = 30  # consecutive ones; then the loss scale is below 1e-4, fairseq's minimum
_OF_THE_MACHINE = ("time", "data_time", "memory_mb")


class Trainer:
    """Run optimizer steps and hooks from one iteration to another, or until a signal.

    Unlike Detectron2's SimpleTrainer, it can stop between steps, and the randomness of each step
    depends only on (seed, iteration), not on the history of the process.

    Every method of Detectron2's hooks is called. `after_backward` is called once per step, after
    the last micro-batch; the gradients are not clipped yet and, with float16, still scaled.

    Args:
        model: Detectron2 model in a `FiniteLossGuard`, which may be wrapped for several processes.
        optimizer: Optimizer of the model's parameters.
        loader: Infinite iterable of this rank's micro-batches.
        hooks: Hooks in the order in which they are called.
        seed: Seed of the run.
        accumulate: Micro-batches per step.
        autocast: Function that returns the context of a forward pass.
        scaler: Loss scaler; None disables scaling.
        clip_grad_norm: Upper bound of the gradients' L2 norm over all parameters, or None.
        nonfinite: Policy for non-finite losses; None stops the run.
        first_step: Function that returns the context of the first iteration's forward and backward
            passes.
        on_stop: Function that saves the state for a resumed run; called before any hook's
            `after_train` if the run stops before its end without an error.

    Attributes:
        model, optimizer: The arguments; after training, the model is no longer wrapped.
        iter: Current iteration, counted from 0.
        start_iter, max_iter: First iteration and end of this run.
        storage: Detectron2's EventStorage, open during training.
        stopped_by: Reason why the run was stopped, one of `signals.REASONS`.
        updated: Whether the current step was taken; a non-finite loss or an overflow prevents it.
        skipped_steps: Number of steps that were not taken, including those before a resume;
            schedules ignore them.
        ended_early: Reason why the run ends before `max_iter`, or None; the same on all ranks.
        error: Exception that ends the run, for `after_train`.
        bad_images: Number of samples that were replaced, over all ranks and including those before
            a resume.
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
        nonfinite: NonFinitePolicy | None = None,
        first_step: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        on_stop: Callable[[], object] = lambda: None,
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
        self._nonfinite = nonfinite or NonFinitePolicy()
        self._first_step = first_step
        self._on_stop = on_stop
        self._device = next(model.parameters()).device
        self._sends_objects = sends_objects(model)
        self._batch: list[dict] = []
        self._images_before = 0
        self.bad_images = 0
        self.updated = False
        self._overflows = 0  # steps that the scaler skipped
        self._overflows_in_a_row = 0
        self._iterations_done = 0
        self._accumulated = 0  # micro-batches of the current step
        self.stopped_by: str | None = None
        self.ended_early: str | None = None
        self.error: BaseException | None = None
        for hook in hooks:
            hook.trainer = weakref.proxy(self)
        _start_momentum(optimizer)

    @property
    def skipped_steps(self) -> int:
        return self._nonfinite.skipped + self._overflows

    def train(
        self,
        start_iter: int,
        max_iter: int,
        signals: StopSignals,
        memory: dict[str, Any] | None = None,
    ) -> None:
        """Train iterations `start_iter` to `max_iter` - 1.

        Args:
            start_iter: First iteration.
            max_iter: End of the run.
            signals: Requests to stop.
            memory: Result of `memory` after `start_iter` iterations, from the checkpoint.

        Raises:
            UserError: The loss is not finite, float16 overflows in every step, an image cannot be
                read, or the machine runs out of a resource.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self.model.train()
        resource_errors = resource_errors_explained(
            lambda: f"at iteration {self.iter}: {batch_words(self._batch)} in a micro-batch",
            "lower dataloader.train.total_batch_size, raise train.accumulate, use smaller images"
            " (dataloader.train.mapper.augmentations), or set train.amp.enabled=True",
            "dataloader.train.num_workers",
        )
        with DeferredStorage(start_iter) as self.storage:
            self._remember(memory or {})
            batches = None
            try:
                with resource_errors:
                    batches = iter(self._loader)
                    self._loop(batches, signals)
                if self.stopped_by or self.ended_early:
                    self._on_stop()  # hooks may swap the weights in after_train
            except BaseException as e:
                self.error = e
                raise
            finally:
                try:
                    self._after_train()  # before `close`, which waits for workers that may hang
                finally:
                    if hasattr(batches, "close"):  # a generator, as with d2ext's loader
                        batches.close()
                    # The wrapper refers to the process group, which must be destroyed even if the
                    # user keeps the run.
                    if isinstance(self.model, DistributedDataParallel):
                        self.model = self.model.module

    def _after_train(self) -> None:
        failure = None
        for hook in self._hooks:
            try:
                with errors_located(f"{type(hook).__name__}.after_train"):
                    hook.after_train()
            except Exception as e:
                # Call the remaining hooks anyway. After an error, hooks may fail on an unfinished
                # step; only the first error is raised.
                if self.error is None and failure is None:
                    failure = e
                else:
                    logger.warning("%s.after_train: %r", type(hook).__name__, e)
        if failure is not None:
            raise failure

    def memory(self) -> dict[str, Any]:
        """Return the history that a resumed run needs, in plain types."""
        hints = self.storage.smoothing_hints()
        smoothed = [name for name, is_so in hints.items() if is_so]
        present = {
            name: value
            for name, (value, i) in self.storage.latest().items()
            if i == self.storage.iter and not hints[name] and name not in _OF_THE_MACHINE
        }
        oldest = self.storage.iter - WINDOW
        recent = {}
        for name in (name for name in smoothed if name not in _OF_THE_MACHINE):
            # Start at the end, because a history contains the entire run.
            backwards = reversed(self.storage.history(name).values())
            kept = itertools.takewhile(lambda pair: pair[1] >= oldest, backwards)
            recent[name] = [[i, value] for value, i in kept][::-1]
        counts = {
            "skipped_steps": self._nonfinite.skipped,
            "overflowed_steps": self._overflows,
            "overflows_in_a_row": self._overflows_in_a_row,
            "bad_images": self.bad_images,
        }
        return {**counts, "recent": recent, "present": present}

    def _remember(self, memory: dict[str, Any]) -> None:
        self._nonfinite.skipped = memory.get("skipped_steps", 0)
        self._overflows = memory.get("overflowed_steps", 0)
        self._overflows_in_a_row = memory.get("overflows_in_a_row", 0)
        self._images_before = self.bad_images = memory.get("bad_images", 0)
        # Logged losses are medians over a window, which must continue without a gap.
        for name, values in memory.get("recent", {}).items():
            for self.storage.iter, value in values:
                self.storage.put_scalar(name, value)
        self.storage.iter = self.start_iter - 1
        self.storage.put_scalars(**memory.get("present", {}), smoothing_hint=False)
        self.storage.iter = self.start_iter

    def _loop(self, batches: Iterator[list[dict]], signals: StopSignals) -> None:
        self._iterations_done = self.start_iter
        # TorchScript optimizes functions, such as RetinaNet's focal loss, after their first calls,
        # which changes their rounding: a resumed run would differ.
        exact = self._device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
        try:
            with torch.jit.optimized_execution(not exact):
                self._steps(batches, signals)
        except StopWaiting:
            # Several ranks must stop after the same step, and a partial step cannot be saved.
            if comm.get_world_size() > 1 or self._accumulated:
                raise
            self.stopped_by = signals.received
        # From here on, the number of completed iterations, as Detectron2's hooks expect.
        self.iter = self.storage.iter = self._iterations_done

    def _steps(self, batches: Iterator[list[dict]], signals: StopSignals) -> None:
        self._call_hooks("before_train")
        first, last = self.start_iter, self.max_iter
        for self.iter in range(first, last):
            if self.ended_early:
                break
            self.storage.iter = self.iter
            self._call_hooks("before_step")
            self._nonfinite.before_step(self.model)
            losses = self._gradients(batches)
            self._call_hooks("after_backward")
            replaced = getattr(self._loader, "replaced", {})  # other loaders have none
            status = sync_step(list(losses.values()), signals.received, sum(replaced.values()))
            good = all(map(math.isfinite, status.means)) and self._clip()
            self.updated = good and self._update()
            if good:
                losses = dict(zip(losses, status.means, strict=True))
                self.storage.put_scalars(**{**losses, "total_loss": sum(status.means)})
            else:
                lr = self.optimizer.param_groups[0]["lr"]
                self._nonfinite.note_skipped(self.model, self.iter, lr, self._seed)
                self.storage.put_scalar(
                    "skipped_steps", self._nonfinite.skipped, smoothing_hint=False
                )
            self.optimizer.zero_grad()
            self._accumulated, self._iterations_done = 0, self.iter + 1
            if self._overflows:
                self.storage.put_scalar("overflowed_steps", self._overflows, smoothing_hint=False)
            self.bad_images = self._images_before + status.bad_images
            if self.bad_images:
                self.storage.put_scalar("bad_images", self.bad_images, smoothing_hint=False)
            self._call_hooks("after_step")
            if status.stop and self._iterations_done < last:
                self.stopped_by = status.stop
                break

    def _gradients(self, batches: Iterator[list[dict]]) -> dict[str, float]:
        """Compute a step's gradients; return this rank's losses, averaged over its micro-batches.

        Return an empty dict if a forward pass failed; the gradients are invalid in that case.
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
            seed_torch(int(words[0]))
            last = k + 1 == self._accumulate
            # Gradients are exchanged once per step, in the last micro-batch.
            wait = isinstance(self.model, DistributedDataParallel) and not last
            with (
                self.model.no_sync() if wait else contextlib.nullcontext(),
                self._first_step() if first else contextlib.nullcontext(),
            ):
                batch = sent(self._batch, self._device, self._sends_objects)
                losses.append(self._backward(batch))
            self._accumulated += 1
        self.storage.put_scalar("data_time", data_time)
        if not all(losses):
            return {}
        return {name: sum(part[name] for part in losses) / len(losses) for name in losses[0]}

    def _backward(self, batch: list[dict]) -> dict[str, float]:
        """Add a micro-batch's gradients to those of the step; return its losses."""
        with self._autocast(), self.storage.deferring():
            losses = self.model(batch)
        self._scaler.scale(sum(losses.values()) / self._accumulate).backward()
        # Transfer all losses and logged numbers at once.
        values = dict(zip(losses, self.storage.values_of(list(losses.values())), strict=True))
        if FiniteLossGuard.FAILED in values:
            wrapped = isinstance(self.model, DistributedDataParallel)
            guard = self.model.module if wrapped else self.model
            self._nonfinite.note({}, batch, guard.reason)
            return {}
        if not all(map(math.isfinite, values.values())):
            self._nonfinite.note(values, batch)
        return values

    def _clip(self) -> bool:
        """Clip the gradients identically on all ranks; return False if they are not finite.

        With float16, return True in any case: the scaler handles non-finite gradients.
        """
        if not self._clip_grad_norm:
            return True
        self._scaler.unscale_(self.optimizer)
        norm = float(clip_grad_norm_(self.model.parameters(), self._clip_grad_norm))
        if math.isfinite(norm):  # JSON has no infinity
            self.storage.put_scalar("grad_norm", norm)
        elif not self._scaler.is_enabled():
            self._nonfinite.note({"grad_norm": norm}, self._batch)
            return False
        return True

    def _update(self) -> bool:
        """Take the optimizer's step; return False if float16's scaler skipped it for an overflow.

        Raises:
            UserError: Too many consecutive steps overflowed; raised on all ranks.
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
                f" steps, up to iteration {self.iter} and a loss scale of"
                f" {self._scaler.get_scale():g}; set train.amp.dtype=bfloat16, or lower"
                " optimizer.lr"
            )
        return False

    def _call_hooks(self, moment: str) -> None:
        for hook in self._hooks:
            with errors_located(f"{type(hook).__name__}.{moment}"):
                getattr(hook, moment)()


def sends_objects(model: nn.Module) -> bool:
    """Return whether `sent` may send objects: pictures of training need theirs on the CPU."""
    return not any(getattr(module, "vis_period", 0) for module in model.modules())


def sent(batch: list[dict], device: torch.device, with_objects: bool) -> list[dict]:
    """Return the batch with its images and tensors of objects on the model's device.

    They are copied from pinned memory, so that the host, unlike in Detectron2, does not wait. The
    loader has pinned the images.
    """
    if device.type == "cpu":
        return batch
    made = []
    for sample in batch:
        sample = dict(sample)
        if torch.is_tensor(sample.get("image")):
            sample["image"] = sample["image"].to(device, non_blocking=True)
        if with_objects and isinstance(sample.get("instances"), Instances):
            sample["instances"] = _sent_objects(sample["instances"], device)
        made.append(sample)
    return made


def _sent_objects(objects: Instances, device: torch.device) -> Instances:
    """Return objects with their tensors on a device; polygons and others stay."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == "cpu" and tensor.layout is torch.strided:
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    made = Instances(objects.image_size)
    for name, value in objects.get_fields().items():
        if type(value) in (BitMasks, Boxes, Keypoints):
            value = type(value)(moved(value.tensor))
        elif torch.is_tensor(value):
            value = moved(value)
        made.set(name, value)
    return made


def _start_momentum(optimizer: Optimizer) -> None:
    """Start the momentum of a fused SGD at zero.

    torch creates the momentum uninitialized in the first step, writes nothing to it if that step
    overflows, and cannot create it for a parameter whose first gradient comes later. Starting at
    zero gives the same first step, except that dampening would apply to it as well.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") and group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
