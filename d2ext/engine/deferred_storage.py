"""Numbers for the log that stay on the GPU until the losses are read."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

from d2ext._compat import scoped_name


class DeferredStorage(EventStorage):
    """Detectron2's EventStorage, which keeps tensors until `values_of` reads them.

    Reading a number waits for the GPU, and the layers of a model log a dozen of them in each step.
    """

    def __init__(self, start_iter: int = 0):
        super().__init__(start_iter)
        self._deferred: list[tuple[str, Tensor, dict[str, Any]]] = []

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add a number, or keep a tensor of one element for `values_of`."""
        options = {
            "smoothing_hint": smoothing_hint,
            "cur_iter": self.iter if cur_iter is None else cur_iter,
        }
        if torch.is_tensor(value):
            self._deferred.append((scoped_name(self, name), value.detach(), options))
        else:
            super().put_scalar(name, value, **options)

    def values_of(self, losses: Sequence[Tensor]) -> list[float]:
        """Return the values of losses; read and add the kept numbers in the same transfer.

        Numbers that are not finite, such as an accuracy without objects, are dropped.
        """
        deferred, self._deferred = self._deferred, []
        tensors = [*(loss.detach() for loss in losses), *(value for _, value, _ in deferred)]
        values = torch.stack(tensors).tolist()
        for (name, _, options), value in zip(deferred, values[len(losses) :], strict=True):
            if math.isfinite(value):
                super().put_scalar(name, value, **options)
        return values[: len(losses)]
