"""Numbers on a GPU are added to the event storage when the losses are read."""

import pytest
import torch

from benchmarks.fake_cuda import FakeCuda
from d2ext.modeling.gpu.deferred_storage import DeferredStorage


def test_numbers_are_read_with_the_losses():
    with FakeCuda() as gpu, DeferredStorage(5) as storage:
        losses = [torch.tensor(float(i)).to("cuda") for i in range(3)]
        gpu.reset()
        with storage.deferring():
            with storage.name_scope("stage0"):
                storage.put_scalar("accuracy", losses[1] / 2)
            storage.put_scalar("undefined", losses[0] / 0)
            storage.put_scalar("plain", 3)
        assert list(storage.latest()) == ["plain"] and not gpu.waits
        storage.iter = 6
        assert storage.values_of(losses) == [0, 1, 2]
        assert gpu.waits.total() == 1
        assert storage.latest() == {"plain": (3, 5), "stage0/accuracy": (0.5, 5)}
        storage.put_scalar("of a hook", losses[2])  # after the forward pass
        assert storage.latest()["of a hook"] == (2, 6)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tensors_of_one_element_are_numbers(device):
    with FakeCuda(), DeferredStorage() as storage, storage.deferring():
        storage.put_scalar("x", torch.tensor([4.0]).to(device))
        storage.values_of([torch.tensor(1.0).to(device)])
        assert storage.latest() == {"x": (4, 0)}


def test_numbers_are_as_exact_as_in_float32():
    with FakeCuda(), DeferredStorage() as storage:
        with storage.deferring():
            storage.put_scalar("count", torch.tensor(1001).to("cuda"))
        loss = torch.tensor(0.1, dtype=torch.bfloat16).to("cuda")
        assert storage.values_of([loss]) == [loss.item()]
        assert storage.latest() == {"count": (1001, 0)}
