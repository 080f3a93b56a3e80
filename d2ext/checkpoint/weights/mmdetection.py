"""MMDetection's models: their tensor names, and what their checkpoints say about the model."""

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from d2ext.config.recipes import recipes
from d2ext.text import shortened

Tensors = dict[str, Tensor]

_STAGES = 3  # mask heads of MMDetection's Cascade Mask R-CNN
_RATIOS = 3  # of the anchors in all of MMDetection's RPN and RetinaNet configs
# By the number of blocks in the third stage, and whether these have three convolutions.
_DEPTHS = {
    (2, False): 18,
    (6, False): 34,
    (6, True): 50,
    (23, True): 101,
    (36, True): 152,
}
_COUNT = ".num_batches_tracked"
_CORNERNET = "cornernet_hourglass104"
_HOURGLASS_DEPTH = 5


def from_mmdetection(tensors: Mapping[str, Tensor]) -> Tensors:
    """Rename the tensors of an MMDetection model to those of Detectron2's.

    Ratios of anchors vary slowest in MMDetection and fastest in Detectron2, so the channels that
    predict them are reordered where a cell has anchors of several sizes. Tensors without a
    counterpart keep their names.

    Args:
        tensors: Tensors by MMDetection's name.

    Returns:
        Tensors by Detectron2's name, in the same order.
    """
    laterals = _count(tensors, r"neck\.lateral_convs\.\d+\.conv\.weight")
    pairs = _pairs(6 - laterals if laterals else None)
    found = {}
    for name, tensor in tensors.items():
        new = _renamed(name, pairs) or name
        found[new] = _anchors_reordered(new, tensor, tensors, theirs=True)
    return found


def to_mmdetection(tensors: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
    """Rename the tensors of a Detectron2 model to those of MMDetection's.

    BatchNorms get the batch counts and statistics that Detectron2's frozen ones may lack. A single
    mask head of a Cascade R-CNN becomes the mask head of each stage.

    Args:
        tensors: Tensors by Detectron2's name.

    Returns:
        Tensors by MMDetection's name, in the same order, and the names without a counterpart.
    """
    levels = [int(match[1]) for match in _matches(tensors, r"backbone\.fpn_lateral(\d)\.weight")]
    pairs = [(ours, theirs) for theirs, ours in _pairs(min(levels, default=None))]
    head = "roi_heads.mask_head."
    if (
        "roi_heads.box_predictor.0.cls_score.weight" in tensors
        and f"{head}deconv.weight" in tensors
        and "roi_heads.relay_head.fc.weight" not in tensors  # SCNet has one, too
    ):
        single = [name for name in tensors if name.startswith(head)]
        rest = {name: tensor for name, tensor in tensors.items() if name not in single}
        tensors = rest | {
            f"{head}{stage}.{name.removeprefix(head)}": tensors[name]
            for stage in range(_STAGES)
            for name in single
        }
    found: Tensors = {}
    unknown = []
    for name, tensor in _with_statistics(tensors):
        if new := _renamed(name, pairs):
            found[new] = _anchors_reordered(name, tensor, tensors, theirs=False)
        else:
            unknown.append(name)
    return found, unknown


def with_one_mask_head(tensors: Mapping[str, Tensor]) -> Tensors:
    """Rename the last of three mask heads to the one of Detectron2's Cascade Mask R-CNN.

    Args:
        tensors: Tensors by Detectron2's name.

    Returns:
        All tensors; those of the other mask heads keep their names.
    """
    last = f"roi_heads.mask_head.{_STAGES - 1}."
    return {name.replace(last, "roi_heads.mask_head."): t for name, t in tensors.items()}


def is_background_first(tensors: Iterable[str], version: str) -> bool:
    """Return whether a checkpoint is from MMDetection 1.x.

    Its background class is the first, not the last one, and its boxes are a pixel wider.

    Args:
        tensors: The tensors' names.
        version: Version of MMDetection that wrote the checkpoint; "" if unknown.
    """
    old = r"(bbox_head\.(\d\.)?fc_(cls|reg)|mask_head\.(\d\.)?conv_logits)\.\w+"
    return version.startswith(("0.", "1.")) or bool(_count(tensors, old))


def expected_input(config: str) -> dict[str, Any]:
    """Return the input that a model expects, as far as the text of its config says so.

    Args:
        config: Text of a config in Python, as in the metadata of a checkpoint; it is not executed.

    Returns:
        `input_format`, `pixel_mean`, `pixel_std` and `stride_in_1x1`; ambiguous ones are missing.
    """
    try:
        tree = ast.parse(config)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    inputs, styles = [], []
    for fields in map(_fields, ast.walk(tree)):
        mean, std = fields.get("mean"), fields.get("std")
        if isinstance(mean, list | tuple) and isinstance(std, list | tuple) and len(mean) == 3:
            # 3.x has `bgr_to_rgb`, which is off by default, and 2.x `to_rgb`, which is on.
            old = fields.get("type", "Normalize") == "Normalize"
            rgb = fields.get("bgr_to_rgb", fields.get("to_rgb", old))
            found = {"input_format": "RGB" if rgb else "BGR"}
            inputs.append(found | {"pixel_mean": list(mean), "pixel_std": list(std)})
        if fields.get("style") in ("caffe", "pytorch"):
            styles.append({"stride_in_1x1": fields["style"] == "caffe"})
    expected: dict[str, Any] = {}
    for choices in (inputs, styles):
        if choices and all(choice == choices[0] for choice in choices):
            expected |= choices[0]
    return expected


def is_detector(names: Iterable[str]) -> bool:
    """Return whether tensors are those of MMDetection, not of another program of OpenMMLab.

    Args:
        names: The tensors' names.
    """
    return any(name.startswith(("neck.", "rpn_head.", "bbox_head.", "roi_head.")) for name in names)


def describe(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Describe the model of a checkpoint by its tensors.

    Args:
        tensors: Tensors by MMDetection's name.

    Returns:
        A description such as "Mask R-CNN with ResNeXt-101 32x4d and FPN", and how the file names of
        its recipes begin, such as "mask_rcnn_x101_32x4d"; both "" for models that d2ext lacks.
    """
    if "bbox_head.tl_pool.0.direction1_conv.conv.weight" in tensors:
        return "CornerNet with Hourglass-104", _CORNERNET
    cascade = "roi_head.bbox_head.0.fc_cls.weight" in tensors
    kinds = []
    if "bbox_head.retina_cls.weight" in tensors:
        kinds = ["RetinaNet"]
    elif cascade or "roi_head.bbox_head.fc_cls.weight" in tensors:
        masks = any(name.startswith("roi_head.mask_head.") for name in tensors)
        kinds = [*(["Cascade"] if cascade else []), *(["Mask"] if masks else []), "R-CNN"]
        kinds = ["Faster", *kinds] if kinds == ["R-CNN"] else kinds
        kinds = ["SCNet"] if "roi_head.glbctx_head.fc.weight" in tensors else kinds
    blocks = _count(tensors, r"backbone\.layer3\.\d+\.conv1\.weight")
    depth = _DEPTHS.get((blocks, "backbone.layer1.0.conv3.weight" in tensors))
    conv = tensors.get("backbone.layer1.0.conv2.weight")
    if not kinds or depth is None or conv is None or "neck.fpn_convs.0.conv.weight" not in tensors:
        return "", ""
    width = conv.shape[1]
    groups = conv.shape[0] // width
    net, short, grouped = (
        ("ResNeXt", "x", f"{groups}x{width}d") if groups > 1 else ("ResNet", "r", "")
    )
    text = f"{' '.join(kinds)} with {net}-{depth}{grouped and ' ' + grouped} and FPN"
    parts = ["_".join(kinds).lower().replace("-", ""), f"{short}{depth}", grouped]
    return text, "_".join(filter(None, parts))


def fitting_recipes(tensors: Mapping[str, Tensor], caffe: bool | None) -> str:
    """Say in a clause which model a checkpoint holds, and which recipes build it.

    Args:
        tensors: Tensors by MMDetection's name.
        caffe: Whether the model is caffe style; None if unknown.
    """
    text, start = describe(tensors)
    if not text:
        return "d2ext has no recipe for its model"
    styles = {True: ["_caffe_fpn"], False: ["_fpn"], None: ["_fpn", "_caffe_fpn"]}[caffe]
    if start == _CORNERNET:
        styles = [""]
    known = [name for name, _ in recipes() if name.endswith("_coco.py")]
    names = [
        name
        for style in styles
        for name in known
        if PurePath(name).name.startswith(f"{start}{style}_")
    ]
    if not names:
        return f"its model is {text}, for which d2ext has no recipe"
    return f"its model is {text}, as in {shortened(names, 3)}"


def _pairs(lowest: int | None) -> list[tuple[str, str]]:
    """Return patterns of names in MMDetection and Detectron2.

    `{i}` is a number, `{i+1}` the number after it, and `{leaf}` the last part of a name.

    Args:
        lowest: First level of the FPN; None without an FPN.
    """
    body = "backbone." if lowest is None else "backbone.bottom_up."
    pairs = [
        ("backbone.conv1.{leaf}", f"{body}stem.conv1.{{leaf}}"),
        ("backbone.bn1.{leaf}", f"{body}stem.conv1.norm.{{leaf}}"),
    ]
    for theirs, ours in (("backbone.", body), ("roi_head.shared_head.", "roi_heads.")):
        block = (f"{theirs}layer{{s}}.{{b}}.", f"{ours}res{{s+1}}.{{b}}.")
        for left, right in (
            ("conv{k}.{leaf}", "conv{k}.{leaf}"),
            ("bn{k}.{leaf}", "conv{k}.norm.{leaf}"),
            ("downsample.0.{leaf}", "shortcut.{leaf}"),
            ("downsample.1.{leaf}", "shortcut.norm.{leaf}"),
        ):
            pairs.append((block[0] + left, block[1] + right))
    for level in range(lowest or 8, 8):
        i = level - (lowest or 0)
        top = f"fpn_output{level}" if level < 6 else f"top_block.p{level}"
        pairs.append(
            (f"neck.lateral_convs.{i}.conv.{{leaf}}", f"backbone.fpn_lateral{level}.{{leaf}}")
        )
        pairs.append((f"neck.fpn_convs.{i}.conv.{{leaf}}", f"backbone.{top}.{{leaf}}"))
    rpn = "proposal_generator.rpn_head."
    pairs += [
        ("rpn_head.rpn_conv.{leaf}", f"{rpn}conv.{{leaf}}"),
        ("rpn_head.rpn_cls.{leaf}", f"{rpn}objectness_logits.{{leaf}}"),
        ("rpn_head.rpn_reg.{leaf}", f"{rpn}anchor_deltas.{{leaf}}"),
        ("bbox_head.retina_cls.{leaf}", "head.cls_score.{leaf}"),
        ("bbox_head.retina_reg.{leaf}", "head.bbox_pred.{leaf}"),
    ]
    for i in range(4):
        pairs.append(
            (f"bbox_head.cls_convs.{i}.conv.{{leaf}}", f"head.cls_subnet.{2 * i}.{{leaf}}")
        )
        pairs.append(
            (f"bbox_head.reg_convs.{i}.conv.{{leaf}}", f"head.bbox_subnet.{2 * i}.{{leaf}}")
        )
    for stage in ("", "{s}."):
        theirs, ours = f"roi_head.bbox_head.{stage}", "roi_heads.box_"
        pairs += [
            (f"{theirs}shared_fcs.{{i}}.{{leaf}}", f"{ours}head.{stage}fc{{i+1}}.{{leaf}}"),
            (f"{theirs}fc_cls.{{leaf}}", f"{ours}predictor.{stage}cls_score.{{leaf}}"),
            (f"{theirs}fc_reg.{{leaf}}", f"{ours}predictor.{stage}bbox_pred.{{leaf}}"),
        ]
        theirs, ours = f"roi_head.mask_head.{stage}", f"roi_heads.mask_head.{stage}"
        pairs += [
            (f"{theirs}convs.{{i}}.conv.{{leaf}}", f"{ours}mask_fcn{{i+1}}.{{leaf}}"),
            (f"{theirs}upsample.{{leaf}}", f"{ours}deconv.{{leaf}}"),
            (f"{theirs}conv_logits.{{leaf}}", f"{ours}predictor.{{leaf}}"),
        ]
    return pairs + _scnet_pairs() + _cornernet_pairs()


def _scnet_pairs() -> list[tuple[str, str]]:
    pairs = []
    for theirs, ours in (
        ("mask_head.convs.{i}.conv{k}", "mask_head.convs.{i}.conv{k}"),
        ("semantic_head.lateral_convs.{i}.conv", "semantic_head.laterals.{i}"),
        ("semantic_head.convs.{i}.conv{k}", "semantic_head.convs.{i}.conv{k}"),
        ("semantic_head.conv_embedding.conv", "semantic_head.embedding"),
        ("semantic_head.conv_logits", "semantic_head.predictor"),
        ("glbctx_head.convs.{i}.conv{k}", "context_head.convs.{i}.conv{k}"),
        ("glbctx_head.fc", "context_head.predictor"),
        ("feat_relay_head.fc", "relay_head.fc"),
    ):
        pairs.append((f"roi_head.{theirs}.{{leaf}}", f"roi_heads.{ours}.{{leaf}}"))
    return pairs


def _cornernet_pairs() -> list[tuple[str, str]]:
    blocks = [("stem.1.0", "stem.1"), ("inters.{i}", "merged.{i}")]
    for depth in range(_HOURGLASS_DEPTH):
        theirs = f"hourglass_modules.{{m}}{'.low2' * depth}"
        ours = f"hourglasses.{{m}}{'.inner' * depth}"
        blocks += [(f"{theirs}.up1.{{b}}", f"{ours}.skip.{{b}}")]
        blocks += [(f"{theirs}.low1.{{b}}", f"{ours}.down.{{b}}")]
        blocks += [(f"{theirs}.low2.{{b}}", f"{ours}.inner.{{b}}")]  # the innermost one
        blocks += [(f"{theirs}.low3.{{b}}", f"{ours}.up.{{b}}")]
    pairs = []
    for theirs, ours in blocks:
        for left, right in (
            ("conv{k}", "conv{k}"),
            ("bn{k}", "conv{k}.norm"),
            ("downsample.0", "shortcut"),
            ("downsample.1", "shortcut.norm"),
        ):
            names = f"backbone.{theirs}.{left}.{{leaf}}", f"backbone.{ours}.{right}.{{leaf}}"
            pairs.append(names)
    layers = [
        ("backbone.stem.0", "backbone.stem.0"),
        ("backbone.out_convs.{i}", "backbone.outputs.{i}"),
        ("backbone.conv1x1s.{i}", "backbone.from_input.{i}"),
        ("backbone.remap_convs.{i}", "backbone.from_output.{i}"),
    ]
    for short, corner in (("tl", "top_left"), ("br", "bottom_right")):
        for theirs, ours in (
            ("direction1_conv", "vertical"),
            ("direction2_conv", "horizontal"),
            ("aftpool_conv", "pooled"),
            ("conv1", "shortcut"),
            ("conv2", "output"),
        ):
            names = f"bbox_head.{short}_pool.{{i}}.{theirs}", f"heads.{corner}.{{i}}.pooling.{ours}"
            layers.append(names)
        for theirs, ours in (("heat", "heat"), ("emb", "embedding"), ("off", "offset")):
            names = f"bbox_head.{short}_{theirs}.{{i}}.{{k}}", f"heads.{corner}.{{i}}.{ours}.{{k}}"
            layers.append(names)
    for theirs, ours in layers:
        pairs.append((f"{theirs}.conv.{{leaf}}", f"{ours}.{{leaf}}"))
        pairs.append((f"{theirs}.bn.{{leaf}}", f"{ours}.norm.{{leaf}}"))
    return pairs


def _renamed(name: str, pairs: Sequence[tuple[str, str]]) -> str | None:
    """Rename a tensor by the first pair of patterns whose first one fits; None if none does."""
    for source, target in pairs:
        if values := _parsed(name, source):
            return re.sub(
                r"\{(\w+)(\+1)?\}",
                lambda m: str(int(values[m[1]]) + 1) if m[2] else values[m[1]],
                target,
            )
    return None


def _parsed(name: str, pattern: str) -> dict[str, str] | None:
    """Return the values of a pattern's fields in a name."""
    if not (match := _expression(pattern).fullmatch(name)):
        return None
    values = match.groupdict()
    for field in re.findall(r"\{(\w)\+1\}", pattern):
        values[field] = str(int(values[field]) - 1)
    return values


@functools.cache
def _expression(pattern: str) -> re.Pattern:
    expression = re.escape(pattern).replace(r"\{leaf\}", r"(?P<leaf>\w+)")
    return re.compile(re.sub(r"\\\{(\w)(\\\+1)?\\\}", r"(?P<\1>\\d+)", expression))


def _anchors_reordered(
    name: str, tensor: Tensor, tensors: Mapping[str, Tensor], theirs: bool
) -> Tensor:
    """Reorder the channels of a layer that predicts anchors.

    Args:
        name: Detectron2's name of the tensor.
        tensor: The tensor.
        tensors: All tensors, by either name.
        theirs: Whether the channels are in MMDetection's order; otherwise in Detectron2's.
    """
    deltas = {
        "proposal_generator.rpn_head.": ("rpn_head.rpn_reg", "anchor_deltas"),
        "head.": ("bbox_head.retina_reg", "bbox_pred"),
    }
    for prefix, (their_deltas, our_deltas) in deltas.items():
        layers = ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred")
        layer = name.removeprefix(prefix).partition(".")[0]
        if not name.startswith(prefix) or layer not in layers:
            continue
        boxes = tensors.get(f"{their_deltas if theirs else prefix + our_deltas}.bias")
        anchors = 0 if boxes is None else len(boxes) // 4
        sizes = anchors // _RATIOS
        if anchors != sizes * _RATIOS or sizes < 2 or len(tensor) % anchors:
            continue
        order = torch.arange(anchors)
        shape = (_RATIOS, sizes) if theirs else (sizes, _RATIOS)
        order = order.view(shape).T.flatten()
        return tensor.unflatten(0, (anchors, -1))[order].flatten(0, 1)
    return tensor


def _with_statistics(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors, after each norm those that MMDetection's BatchNorm has in addition."""
    for name, tensor in tensors.items():
        yield name, tensor
        norm, _, leaf = name.rpartition(".")
        if not norm.endswith(".norm"):
            continue
        bare = f"{norm}.running_var" not in tensors
        if leaf == "bias" and bare:  # the statistics are part of weight and bias
            yield f"{norm}.running_mean", torch.zeros_like(tensor)
            yield f"{norm}.running_var", torch.ones_like(tensor)
        last = leaf == "bias" if bare else leaf == "running_var"
        if last and norm + _COUNT not in tensors:
            yield norm + _COUNT, torch.zeros((), dtype=torch.int64)


def _matches(names: Iterable[str], pattern: str) -> Iterator[re.Match]:
    return filter(None, (re.fullmatch(pattern, name) for name in names))


def _count(names: Iterable[str], pattern: str) -> int:
    return sum(1 for _ in _matches(names, pattern))


def _fields(node: ast.AST) -> dict[str, Any]:
    """Return the literal fields of a `dict(...)` or `{...}`; empty for anything else."""
    found: dict[str, Any] = {}
    pairs: list[tuple[Any, ast.expr]] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
    elif isinstance(node, ast.Dict):
        pairs = [
            (key.value, value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        ]
    for key, value in pairs:
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue  # an expression
    return found
