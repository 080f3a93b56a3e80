"""Test what only a GPU can show; all other tests use the CPU, also on a machine with a GPU."""

import subprocess
import sys

import pytest
import torch
from detectron2.layers import ROIAlign
from torch import nn

from d2ext.modeling.deterministic_roi_align import DeterministicROIAlign
from d2ext.modeling.roi_align import use_embedding_bag_roi_align
from tests.conftest import LITE0, REPO

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU (make test-gpu)"),
]


def test_pooling_of_deterministic_runs_repeats_its_gradients():
    model = nn.ModuleList([ROIAlign((7, 7), 0.25, 0)])
    use_embedding_bag_roi_align(model, DeterministicROIAlign)
    features = torch.randn(1, 256, 200, 336, device="cuda", requires_grad=True)
    corner = torch.rand(512, 2, device="cuda") * 600
    rois = torch.cat((torch.zeros(512, 1, device="cuda"), corner, corner + 200), 1)
    rois[0, 1:] = torch.tensor([0, 0, 1344, 800])  # gives all boxes more samples than a call takes

    def gradient():
        (found,) = torch.autograd.grad(model[0](features, rois).square().sum(), features)
        return found

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(5))


def test_deterministic_runs_resume_bit_for_bit(tiny, tmp_path):
    """Both runs have processes of their own, because earlier tests have initialized cuBLAS."""
    command = [sys.executable, REPO / "tools/train_net.py", "--config-file", REPO / LITE0]
    options = ["--no-validate", "--options", *tiny, "train.checkpointer.period=2"]
    options.append("train.deterministic=True")
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    resume = ["--resume-from", whole / "model_0000001.pth"]
    for start in (["--work-dir", whole], ["--work-dir", rest, *resume]):
        subprocess.run([*command, *start, *options], check=True)
    weights = [torch.load(folder / "model_final.pth")["model"] for folder in (whole, rest)]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_trains(train_net, tiny, tmp_path, dtype):
    options = [*tiny, "train.amp.enabled=True", f"train.amp.dtype={dtype}"]
    assert train_net("--work-dir", tmp_path, "--no-validate", "--options", *options).status == 0
    weights = torch.load(tmp_path / "model_final.pth")["model"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
