"""Run a model as on a GPU, without one, and count what its host waits for and launches.

    with FakeCuda() as gpu:
        model.to("cuda")
        losses = model(batch)
    print(gpu.waits, gpu.launches)

Tensors on `cuda:0` hold their data on the CPU, which computes all results. Mixing devices raises
the error that CUDA raises. Results are those of a CPU, so that losses of both can be compared;
times are meaningless. Not supported: streams, autocast, and code that asks torch.cuda.

In C++, such tensors are on the device `meta`, whose backward pass needs no driver. Device arguments
are therefore translated by a function mode, and operations are executed by a dispatch mode.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torchvision  # noqa: F401  registers its operations
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
META = torch.device("meta")

# Operations that the host has to wait for: for a value in Python, or for the size of the result.
_WAITS = {
    aten._local_scalar_dense: "item",
    aten.equal: "item",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten._unique2: "unique",
    aten.unique_consecutive: "unique",
    aten.unique_dim: "unique",
    aten.bincount: "bincount",
    torch.ops.torchvision.nms: "nms",  # its last kernel is a masked_select
}
_NO_LAUNCH = {
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided),
    *(aten._local_scalar_dense, aten._unsafe_view, aten.detach, aten.lift_fresh),
}
_INDEXING = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
_FROM_DATA = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


class CudaTensor(Tensor):
    """A tensor that claims to be on `cuda:0`; `data_on_cpu` holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, data: Tensor) -> "CudaTensor":
        """Return a tensor with the shape, strides and type of `data`, but without storage."""
        return Tensor._make_wrapper_subclass(
            cls,
            data.shape,
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=META,
        )

    def __init__(self, data: Tensor):
        self.data_on_cpu = data

    def __repr__(self, **_: Any) -> str:
        return f"{self.data_on_cpu!r} on {CUDA}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse operations outside of `FakeCuda`, whose mode comes first inside of it."""
        raise RuntimeError(f"{func} of a tensor on {CUDA}, outside of FakeCuda")


class FakeCuda(ExitStack):
    """Context in which `cuda:0` exists.

    Attributes:
        waits: Number of times that the host waits for the device, by cause: `item` (a value in
            Python, also `bool`), `nonzero`, `mask` (indexing by booleans), `masked_select`, `nms`,
            `repeat_interleave`, `unique`, `bincount`, `to CPU`, and `to GPU` (a copy from memory
            that is not pinned, or that is not `non_blocking`).
        launches: Number of operations on the device, without views and allocations. Each of them
            launches at least one kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.launches = 0

    def __enter__(self) -> "FakeCuda":
        super().__enter__()
        self.enter_context(_Operations(self))
        self.enter_context(_Devices())
        return self

    def reset(self) -> None:
        """Reset the counts."""
        self.waits.clear()
        self.launches = 0


class _Devices(TorchFunctionMode):
    """Replace `cuda` by `meta` in arguments, and pin memory without a driver."""

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args = tuple(map(_on_meta, args))
        kwargs = {name: _on_meta(value) for name, value in (kwargs or {}).items()}
        if func is Tensor.cuda:
            return args[0].to(META, *args[1:], **kwargs)
        if func is Tensor.pin_memory:
            if isinstance(args[0], CudaTensor) or args[0].layout is not torch.strided:
                raise RuntimeError(
                    f"cannot pin '{args[0].type()}' only dense CPU tensors can be pinned"
                )
            pinned = args[0].clone()
            pinned.pinned_here = True
            return pinned
        if func is Tensor.is_pinned:
            return hasattr(args[0], "pinned_here")
        if func is Tensor.tolist and isinstance(args[0], CudaTensor):
            return args[0].to("cpu").tolist()
        from_data = func in _FROM_DATA and not isinstance(args[0], CudaTensor)
        if from_data and kwargs.get("device") == META:
            # torch would create them on `meta` at once, without their values.
            return func(*args, **{**kwargs, "device": torch.device("cpu")}).to(META)
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """Run operations on the data of their arguments, and count them."""

    def __init__(self, counts: FakeCuda):
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        reads = any(isinstance(t, CudaTensor) for t in tensors)
        device = kwargs.get("device")
        writes = reads if device is None else device == META
        if not reads and not writes:
            return func(*args, **kwargs)
        op = func.overloadpacket
        if op in (aten._to_copy, aten.copy_):
            self._count_copy(args, kwargs, writes)
        else:
            _check_devices(func, op, args, tensors)
            self._count(func, op, args, kwargs)
        on_cpu, named = pytree.tree_map(_data, (args, kwargs))
        out = func(*on_cpu, **named)
        if not writes:
            return out
        out = pytree.tree_map(lambda x: CudaTensor(x) if isinstance(x, Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _count_copy(self, args: Any, kwargs: Any, writes: bool) -> None:
        """Count a copy; `copy_` has its target and its source as its first arguments."""
        source = args[1] if len(args) > 1 else args[0]
        target_on_gpu = isinstance(args[0], CudaTensor) if len(args) > 1 else writes
        source_on_gpu = isinstance(source, CudaTensor)
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        if source_on_gpu and target_on_gpu:
            self._counts.launches += 1
        elif source_on_gpu and waits:
            self._counts.waits["to CPU"] += 1
        elif target_on_gpu and (waits or not hasattr(source, "pinned_here")):
            self._counts.waits["to GPU"] += 1

    def _count(self, func: Any, op: Any, args: Any, kwargs: Any) -> None:
        if op in _WAITS:
            self._counts.waits[_WAITS[op]] += 1
        if op is aten.repeat_interleave and kwargs.get("output_size") is None:
            self._counts.waits["repeat_interleave"] += 1
        if op in _INDEXING:
            indices = [index for index in args[1] if index is not None]
            if on_cpu := sum(not isinstance(index, CudaTensor) for index in indices):
                self._counts.waits["to GPU"] += on_cpu
            masks = sum(index.dtype in (torch.bool, torch.uint8) for index in indices)
            if masks and (op is aten.index or args[2].numel() != 1):  # fills one value by mask
                self._counts.waits["mask"] += masks
        self._counts.launches += not func.is_view and op not in _NO_LAUNCH


def _check_devices(func: Any, op: Any, args: Any, tensors: list[Tensor]) -> None:
    """Raise CUDA's error if tensors of other devices than CUDA have dimensions."""
    if op in _INDEXING:  # indices may be on the CPU
        tensors = [value for value in (args[0], *args[2:]) if isinstance(value, Tensor)]
    if any(not isinstance(tensor, CudaTensor) and tensor.dim() for tensor in tensors):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices,"
            f" {CUDA} and cpu! (when checking the arguments of {func})"
        )


def _on_meta(value: Any) -> Any:
    is_device = isinstance(value, torch.device) and value.type == "cuda"
    return META if is_device or isinstance(value, str) and value in ("cuda", "cuda:0") else value


def _data(value: Any) -> Any:
    if isinstance(value, CudaTensor):
        return value.data_on_cpu
    return torch.device("cpu") if value == META and isinstance(value, torch.device) else value
