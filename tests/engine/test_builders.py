"""Build models and schedules: memory formats by CPU, and errors that name the failing part."""

from types import SimpleNamespace

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from torch import nn

from benchmarks.fake_cuda import FakeCuda
from d2ext.config.load import load_config
from d2ext.config.options import Amp, TrainOptions
from d2ext.config.overrides import apply_overrides
from d2ext.config.schedule import resolve_schedule
from d2ext.engine.builders import build_model, build_multiplier, channels_last_pays, with_device
from d2ext.errors import UserError


@pytest.mark.parametrize(
    ("capability", "stated", "expected"),
    [("AVX512", None, True), ("AVX2", None, False), ("AVX2", True, True), ("AVX512", False, False)],
)
def test_channels_last_is_the_default_on_cpus_with_avx512(
    monkeypatch, capability, stated, expected
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    conv = L(nn.Conv2d)(in_channels=3, out_channels=4, kernel_size=3)
    cfg = OmegaConf.create({"model": conv, "train": {"channels_last": stated}})
    weight = build_model(cfg, SimpleNamespace(device="cpu", classes=["a"])).weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == expected


@pytest.mark.parametrize("enabled", [True, False, "auto"])
def test_channels_last_is_the_default_on_gpus_with_mixed_precision(enabled):
    chosen = channels_last_pays("cuda", nn.Conv2d(3, 4, 3), Amp(enabled=enabled))
    assert chosen == bool(enabled)


@pytest.mark.parametrize("fast", [True, False])
def test_models_on_a_gpu_get_layers_that_wait_less(repo, fast):
    options = [f"train.fast_layers={fast}"]
    cfg = load_config(repo / "configs/custom/mask_rcnn_lite0_fpn.py", options)
    with FakeCuda():
        model = build_model(cfg, SimpleNamespace(device="cuda", classes=["a"]))
        assert model.device == torch.device("cuda:0")
    names = {type(module).__name__ for module in model.modules()}
    chosen = {"AsyncRPN", "AsyncROIHeads", "AsyncBoxPredictor", "AsyncMaskHead"}
    assert chosen & names == (chosen if fast else set())
    assert "SampledRPN" not in names


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("roi_heads.box_head.fc_dims=[]", ["roi_heads.box_head ", "fc_dims=[]"]),
        (
            "roi_heads.proposal_matcher.thresholds=[0.7, 0.3]",
            ["roi_heads.proposal_matcher ", "thresholds=[0.7, 0.3]", "labels="],
        ),
        (
            "proposal_generator.anchor_matcher.labels=[0, 1]",
            ["proposal_generator.anchor_matcher ", "labels=[0, 1]"],
        ),
        (
            "backbone.bottom_up.name=resnet18",
            ["backbone.bottom_up ", "name=resnet18", "freeze_at=3"],
        ),
    ],
)
def test_errors_name_the_part_of_a_model_that_cannot_be_built(repo, override, words):
    cfg = load_config(repo / "configs/custom/mask_rcnn_lite0_fpn.py")
    apply_overrides(cfg, [f"model.{override}"])
    with pytest.raises(UserError) as e:
        build_model(cfg, SimpleNamespace(device="cpu", classes=["a"]))
    message = str(e.value)
    assert message.startswith(f"model.{words[0]}cannot be built: ") and "\n" not in message
    assert all(word in message.partition("; its arguments: ")[2] for word in words[1:]), message


def test_errors_name_parts_in_lists_by_index():
    broken = L(nn.Conv2d)(in_channels=0, out_channels=1, kernel_size=1, groups=0)
    cfg = OmegaConf.create(
        {"lr_multiplier": L(nn.Sequential)(parts=[L(nn.ReLU)(), broken], unused={"a": broken})}
    )
    with pytest.raises(UserError, match=r"lr_multiplier.parts\[1\] cannot be built.*groups=0"):
        build_multiplier(cfg, SimpleNamespace(warmup_iters=None))


@pytest.mark.parametrize("length", [90000, 900])
def test_detectron2_schedules_keep_their_shares_of_a_run_of_any_length(length):
    found = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
    cfg = OmegaConf.create({"lr_multiplier": found})
    options = TrainOptions(max_iter=length)
    fraction = cfg.lr_multiplier.warmup_length
    schedule = resolve_schedule(options, 16, 118000, fraction)
    assert schedule.warmup_iters == length // 90
    multiplier = build_multiplier(cfg, schedule)
    shares = [0, 1 / 180, 1 / 90, 0.66, 0.67, 0.88, 0.89]
    expected = [0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01]
    assert [multiplier(share) for share in shares] == pytest.approx(expected)


def test_channels_last_is_not_chosen_for_models_of_other_packages(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    class Theirs(nn.Conv2d):
        """A layer whose code is unknown."""

    for device, amp in (("cpu", Amp()), ("cuda", Amp(enabled=True))):
        assert channels_last_pays(device, nn.Sequential(nn.Conv2d(3, 4, 3)), amp)
        assert not channels_last_pays(device, nn.Sequential(Theirs(3, 4, 3)), amp)


def test_models_with_a_device_get_that_of_the_run():
    lazy = OmegaConf.create({"_target_": "x.Model"})
    assert with_device(lazy, "cuda:1") == lazy
    assert with_device(OmegaConf.create({**lazy, "device": "cuda"}), "cpu").device == "cpu"
    yacs = OmegaConf.create({**lazy, "config": {"MODEL": {"META_ARCHITECTURE": "Model"}}})
    assert with_device(yacs, "cuda:1").device == "cuda:1"
