"""Tensors that hold CPU data and claim to be on a GPU, and what is counted on them."""

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.fake_cuda import FakeCuda
from tests.tiny_models import batch, smaller


@pytest.fixture
def gpu():
    with FakeCuda() as gpu:
        yield gpu


def test_devices_may_not_be_mixed(gpu):
    x = torch.ones(3, device="cuda")
    assert x.device == torch.device("cuda:0") and x.is_cuda
    assert (x * torch.tensor(2.0)).tolist() == [2, 2, 2]  # CUDA takes numbers of the CPU
    with pytest.raises(RuntimeError, match="same device.*cuda:0 and cpu"):
        x + torch.ones(3)


def test_tensors_of_a_gpu_cannot_be_pinned(gpu):
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        torch.ones(3, device="cuda").pin_memory()


def test_training_equals_the_cpu(gpu):
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardtanh(inplace=True))
        layers.to(device)
        optimizer = torch.optim.SGD(layers.parameters(), 0.1, momentum=0.9, fused=True)
        for _ in range(2):
            out = layers(torch.rand(2, 3, 8, 8).to(device))
            out = out + 0
            out[:, 0] = 0
            loss = out.flatten(1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert layers[0].weight.device.type == device
        results.append([loss.item(), *(t.cpu() for t in layers.state_dict().values())])
    for of_cpu, of_gpu in zip(*results, strict=True):
        assert torch.equal(torch.as_tensor(of_cpu), torch.as_tensor(of_gpu))


x = torch.arange(4.0)
WAITS = {
    "item": lambda t: t.sum().item(),
    "nonzero": lambda t: t.nonzero(),
    "mask": lambda t: t[t > 1],
    "masked_select": lambda t: t.masked_select(t > 1),
    "repeat_interleave": lambda t: torch.repeat_interleave(t, t.long()),
    "to CPU": lambda t: t.cpu(),
    "to GPU": lambda t: t + torch.tensor([1.0], device=t.device),
}


@pytest.mark.parametrize("cause", WAITS)
def test_what_the_host_waits_for_is_counted(gpu, cause):
    on_gpu = x.to("cuda")
    gpu.reset()
    WAITS[cause](on_gpu)
    assert gpu.waits == {cause: 1}


def test_what_needs_no_wait_is_not_counted(gpu):
    on_gpu = x.pin_memory().to("cuda", non_blocking=True)
    on_gpu[on_gpu > 1] = 0
    on_gpu.view(2, 2).unsqueeze_(0).transpose(0, 1)
    torch.repeat_interleave(on_gpu, on_gpu.long(), output_size=1)
    assert not gpu.waits.total()
    gpu.reset()
    on_gpu.view(2, 2)[0].add(1)
    assert gpu.launches == 1


@pytest.mark.slow
def test_a_step_of_stock_detectron2_waits_as_often_as_reviewed(gpu, repo):
    """Mask R-CNN R50-FPN, whose images the loader has pinned, waits 44 + 24 n times a step."""
    cfg = LazyConfig.load(str(repo / "configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py")).model
    smaller(cfg)
    model = instantiate(cfg).to("cuda")
    for n in (1, 2, 4):
        images = batch(n)
        for sample in images:
            sample["image"] = sample["image"].pin_memory().to("cuda", non_blocking=True)
        gpu.reset()
        with EventStorage():
            sum(model(images).values()).backward()
        assert gpu.waits.total() == 44 + 24 * n
        assert gpu.launches > 1100 + 180 * n
