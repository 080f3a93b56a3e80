"""Out-of-memory errors name what to lower."""

import errno

import pytest
import torch
from torch import nn

from d2ext.engine.nonfinite import FiniteLossGuard
from d2ext.engine.trainer import Trainer
from d2ext.errors import UserError
from d2ext.launch.signals import StopSignals

OTHER_WORDS = (
    "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable assertions.",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "NCCL error in: NCCLUtils.cpp:94\nLast error:\nCuda failure 2 'out of memory'",
)


class Hungry(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self._error = error

    def forward(self, batch):
        raise self._error


def _train(error):
    model = Hungry(error)
    batch = [{"image": torch.zeros(3, 8 * n, 30), "file_name": ""} for n in (1, 2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with StopSignals() as signals:
        Trainer(FiniteLossGuard(model), optimizer, iter([batch]), [], 0).train(3, 5, signals)


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "out of GPU memory",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        *((RuntimeError(text), "out of GPU memory") for text in OTHER_WORDS),
    ],
)
def test_the_error_has_the_batch_its_size_and_what_to_lower(error, first):
    with pytest.raises(UserError) as e:
        _train(error)
    assert str(e.value).startswith(f"{first} at iteration 3: 2 images, padded to 16 x 30 pixels")
    for words in ("dataloader.train.total_batch_size", "train.accumulate", "train.amp.enabled"):
        assert words in str(e.value)


def test_a_gpu_without_kernels_is_explained():
    text = "CUDA error: no kernel image is available for execution on the device\nCompile with"
    with pytest.raises(UserError, match=r"not built for this GPU \(CUDA .*device\); d2ext doctor"):
        _train(RuntimeError(text))


@pytest.mark.parametrize(
    "text", ["of its own", "out of resource: shared memory, Required: 98304, Hardware limit: 65536"]
)
def test_other_runtime_errors_of_the_model_are_raised_unchanged(text):
    with pytest.raises(RuntimeError, match=text):
        _train(RuntimeError(text))


class Unstartable:
    """A loader whose workers cannot be started."""

    def __init__(self, error):
        self._error = error

    def __iter__(self):
        raise self._error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory at iteration 3.*workers"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "worker died"),
        (RuntimeError("DataLoader worker 7 was ended by SIGBUS"), "ran out of shared memory .*shm"),
        (RuntimeError("received 0 items of ancillary data"), "ran out of open files .*ulimit -n"),
        (OSError(errno.EROFS, "Read-only file system", "/dev/shm"), "ran out of shared memory"),
        (
            OSError(
                "Caught OSError in DataLoader worker process 0.\n[Errno 24] Too many open files"
            ),
            "ran out of open files .*lower dataloader.train.num_workers; 0 needs none",
        ),
    ],
)
def test_errors_of_loader_workers_name_the_limit(error, words):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(FiniteLossGuard(model), optimizer, Unstartable(error), [], 0)
    with StopSignals() as signals, pytest.raises(UserError, match=words):
        trainer.train(3, 5, signals)


def test_other_os_errors_are_raised_unchanged():
    with pytest.raises(OSError, match="disk"):
        _train(OSError(errno.ENOSPC, "no disk"))
