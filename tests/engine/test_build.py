"""What a training is built of, where the machine decides."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from torch import nn

from d2ext.engine.build import build_model


@pytest.mark.parametrize(
    ("capability", "stated", "expected"),
    [("AVX512", None, True), ("AVX2", None, False), ("AVX2", True, True), ("AVX512", False, False)],
)
def test_channels_last_is_for_cpus_with_avx512(monkeypatch, capability, stated, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    conv = L(nn.Conv2d)(in_channels=3, out_channels=4, kernel_size=3)
    cfg = OmegaConf.create({"model": conv, "train": {"channels_last": stated}})
    weight = build_model(cfg, SimpleNamespace(device="cpu", classes=["a"])).weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == expected
