"""Numbers for the log that stay on the GPU until the losses are read."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

from d2ext._compat import scoped_name


class DeferredStorage(EventStorage):
    """Detectron2's EventStorage, which can defer reading numbers that are on a GPU.

    Reading a number waits for the GPU, and the layers of a model log a dozen of them in each step.
    """

    def __init__(self, start_iter: int = 0):
        super().__init__(start_iter)
        self._defers = False
        self._deferred: list[tuple[str, Tensor, dict[str, Any]]] = []

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        """Keep numbers on a GPU that are added in the block, until `values_of` reads them."""
        self._defers = True
        try:
            yield
        finally:
            self._defers = False

    def defers(self, value: Any) -> bool:
        """Return whether `put_scalar` keeps this number until `values_of` reads it."""
        return self._defers and torch.is_tensor(value) and value.device.type != "cpu"

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add a number; see `deferring`."""
        options = {
            "smoothing_hint": smoothing_hint,
            "cur_iter": self.iter if cur_iter is None else cur_iter,
        }
        if self.defers(value):
            # The losses' type, such as bfloat16, may be less exact.
            number = value.detach().float().reshape(())
            self._deferred.append((scoped_name(self, name), number, options))
        else:
            super().put_scalar(name, value, **options)

    def values_of(self, losses: Sequence[Tensor]) -> list[float]:
        """Return the values of losses; read and add the kept numbers in the same transfer.

        Numbers that are not finite, such as an accuracy without objects, are dropped.
        """
        deferred, self._deferred = self._deferred, []
        numbers = [number for _, number, _ in deferred]
        values = torch.stack([*(loss.detach() for loss in losses), *numbers]).tolist()
        for (name, _, options), value in zip(deferred, values[len(losses) :], strict=True):
            if math.isfinite(value):
                super().put_scalar(name, value, **options)
        return values[: len(losses)]
