"""Check fields of a config that must be consistent with each other, the model or the data."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import RandomFlip
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import ImageMode

from d2ext.config.tiles import tile_options
from d2ext.data.datasets.keypoints import flip_indices
from d2ext.data.datasets.label_maps import maps_remedy
from d2ext.data.formats.annotation_kinds import NO_MASK
from d2ext.data.loading.mapper import Mapper
from d2ext.data.records.columns import Columns
from d2ext.data.records.records import columns_of
from d2ext.data.validation.dataset_dicts import DatasetSummary, check_masks
from d2ext.errors import UserError, config_errors
from d2ext.text import shortened

_HEADS = ("box", "mask", "keypoint")  # of Detectron2's StandardROIHeads
_MAPPER = "dataloader.train.mapper"
_YACS = "model.config.MODEL"  # the values of a yacs config
_BOXES_ONLY = "custom/faster_rcnn_lite0_fpn.py"


def check_model_fields(cfg: Any) -> list[str]:
    """Check channels, levels, anchors and input shapes of a model's config.

    Returns:
        Lines for the plan about inconsistent fields that do not prevent training.

    Raises:
        UserError: Two fields contradict each other; the message names both and their values.
    """
    _check_channels(cfg)
    for field, node in _nodes(cfg.model, "model"):
        if "anchor_generator" in node:
            _check_anchors(field, node)
        for name in ("pre_nms_topk", "post_nms_topk"):  # of Detectron2's RPN
            values = node.get(name)
            if isinstance(values, ListConfig) and len(values) != 2:
                raise UserError(
                    f"{field}.{name}={list(values)}: give two numbers, for training and for"
                    " inference"
                )
    _check_pyramid(cfg)
    for prefix in _HEADS:
        _check_roi_head(cfg, prefix)
    return list(_format_notes(cfg))


@dataclass(frozen=True)
class Needs:
    """Annotations that a config trains on: for each kind the field that needs it, or None.

    Attributes:
        masks: Field that needs an outline of each object.
        keypoints: Field that needs the keypoints of each object.
        stuff: Field that needs a label map of each image.
        proposals: Field that needs precomputed proposals for each image.
        keypoints_field: Field with the number of keypoints of an object.
    """

    masks: str | None = None
    keypoints: str | None = None
    stuff: str | None = None
    proposals: str | None = None
    keypoints_field: str = ""


def needs_of(cfg: Any) -> Needs:
    """Return the annotations that the model of a config, or its training mapper, needs.

    Args:
        cfg: Config returned by `load_config`; a model of a yacs config has its values in
            `model.config`.
    """
    mapper = cfg.dataloader.train.get("mapper") or {}

    def first(*fields: str) -> str | None:
        return next((field for field in fields if _get(cfg, field)), None)

    masks = first("model.roi_heads.mask_head", f"{_YACS}.MASK_ON")
    detector = first("model.roi_heads", "model.head_in_features", _YACS)
    if not detector and _argument(mapper, "use_instance_mask"):  # an architecture of others
        masks = f"{_MAPPER}.use_instance_mask"
    if mapper.get("recompute_boxes"):
        masks = masks or f"{_MAPPER}.recompute_boxes"
    proposals = first(f"{_MAPPER}.precomputed_proposal_topk", f"{_YACS}.LOAD_PROPOSALS")
    if cfg.model.get("roi_heads") and cfg.model.get("proposal_generator", "") is None:
        proposals = "model.proposal_generator=null"
    stuff = first("model.sem_seg_head", "model.roi_heads.semantic")
    if _get(cfg, f"{_YACS}.META_ARCHITECTURE") in ("PanopticFPN", "SemanticSegmentor"):
        stuff = f"{_YACS}.META_ARCHITECTURE"
    keypoints = first("model.roi_heads.keypoint_head", f"{_YACS}.KEYPOINT_ON")
    number = "model.roi_heads.keypoint_head.num_keypoints"
    if keypoints == f"{_YACS}.KEYPOINT_ON":
        number = f"{_YACS}.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
    return Needs(masks, keypoints, stuff, proposals, number)


def check_annotations(
    cfg: Any, name: str, records: Sequence[dict], classes: Sequence[str]
) -> Iterator[str]:
    """Check that a training set has the annotations that the model needs, and yield notes.

    Args:
        cfg: Config returned by `load_config`.
        name: Name of the training set.
        records: Dataset dicts of the training set.
        classes: Class names by `category_id`.

    Raises:
        UserError: Annotations are missing, or the mapper drops them.
    """
    needs = needs_of(cfg)
    mapper = cfg.dataloader.train.get("mapper") or {}
    reads_masks = _argument(mapper, "use_instance_mask")
    reads_keypoints = _argument(mapper, "use_keypoint")
    if needs.masks and reads_masks is False:
        raise UserError(
            f"{needs.masks} needs masks, but {_MAPPER}.use_instance_mask=False; set it to True, or"
            f" train only boxes with {_BOXES_ONLY}"
        )
    objects = columns_of(records).objects_only()
    if reads_masks and (needs.masks or np.any(objects.masks != NO_MASK)):
        check_masks(name, records, _argument(mapper, "instance_mask_format") or "polygon")
    _check_copy_paste(cfg, name, records, reads_masks)
    if needs.keypoints and reads_keypoints is False:
        raise UserError(
            f"{needs.keypoints} needs keypoints, but {_MAPPER}.use_keypoint=False; set it to True,"
            " or use a model without that head"
        )
    if needs.keypoints:
        yield from _check_keypoints(cfg, needs, name, objects, classes)
    elif count := int(np.sum(objects.keypoints[:, 1] > 0)):
        have = "object has" if count == 1 else "objects have"
        yield f"{name}: {count} {have} keypoints, which are not trained on"
    detectron2s = reads_masks is not None  # a custom mapper may create the label maps itself
    if detectron2s and needs.stuff and "sem_seg_file_name" not in records[0]:
        if label_root := MetadataCatalog.get(name).get("label_root"):
            raise UserError(
                f"{needs.stuff} needs label maps, but the folder {label_root} does not exist;"
                f" {maps_remedy(label_root)}"
            )
        raise UserError(
            f"{needs.stuff} needs a label map for each image, but dataset {name!r} has no"
            " sem_seg_file_name; add it to the records (label_root of a coco_dataset), or use a"
            " model without that head"
        )


def _check_copy_paste(
    cfg: Any, name: str, records: Sequence[dict], reads_masks: bool | None
) -> None:
    """Raise a UserError if objects are to be pasted by masks that the samples do not have."""
    field = "dataloader.train.copy_paste"
    if not _get(cfg, field):
        return
    masks = columns_of(records).objects_only().masks
    if reads_masks is False:
        problem = f"{_MAPPER}.use_instance_mask=False; set it to True"
    elif lacking := int(np.sum(masks == NO_MASK)):
        problem = f"{lacking} of {len(masks)} objects of dataset {name!r} have none; add them"
    else:
        return
    raise UserError(f"{field} needs masks, but {problem}, or set {field}=null")


def check_proposals(cfg: Any, split: str, name: str, records: Sequence[dict]) -> None:
    """Check that a dataset has the precomputed proposals that the model needs.

    Args:
        cfg: Config returned by `load_config`.
        split: Split of its loader, train, val or test.
        name: Name of the dataset.
        records: Dataset dicts.

    Raises:
        UserError: Neither the loader nor the records have proposals.
    """
    field = f"dataloader.{split}.dataset.proposal_files"
    needed = needs_of(cfg).proposals
    if needed and not _get(cfg, field) and "proposal_boxes" not in records[0]:
        raise UserError(
            f"{needed} needs precomputed proposals, but dataset {name!r} has none; give their files"
            f" in {field}, or use a model with a proposal generator"
        )


def check_levels(config: Any, model: Any) -> None:
    """Check the levels that heads read against those of a model's backbone.

    Args:
        config: Config of the model.
        model: Model.

    Raises:
        UserError: A level does not exist, or its stride differs from that of anchors or poolers.
    """
    backbone = getattr(model, "backbone", None)
    if not hasattr(backbone, "output_shape"):
        return
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    for features_field, field in _level_fields(config):
        features, values = _get(config, features_field), _get(config, field)
        if not features or not values:
            continue
        if unknown := [name for name in features if name not in strides]:
            raise UserError(
                f"model.{features_field}={list(features)}: the backbone has no level {unknown[0]};"
                f" choose from {', '.join(strides)}"
            )
        expected = [strides[name] for name in features]
        given = [round(1 / v) if field.endswith("scales") else v for v in values]
        if None not in expected and given != expected:
            scales = "1/" if field.endswith("scales") else ""
            raise UserError(
                f"model.{field}={list(values)}, but model.{features_field}={list(features)} have"
                f" the strides {expected}; give {', '.join(f'{scales}{s}' for s in expected)}"
            )


def detection_notes(
    cfg: Any, summaries: Mapping[str, DatasetSummary], tested: Sequence[str]
) -> Iterator[str]:
    """Yield a line for each limit on detections that an image's objects exceed.

    Args:
        cfg: Config returned by `load_config`.
        summaries: Summaries of the run's datasets, by name.
        tested: Names of the datasets that are evaluated.
    """
    most = {name: s.most for name, s in summaries.items()}
    predictors = _get(cfg, "model.roi_heads.box_predictors") or []
    places = [
        ("model.roi_heads.box_predictor", "test_topk_per_image"),
        (f"model.roi_heads.box_predictors[{len(predictors) - 1}]", "test_topk_per_image"),
        ("model", "max_detections_per_image"),
    ]
    for place, argument in places:
        node = _get(cfg, place)
        limit = _argument(node, argument) if isinstance(node, DictConfig) else None
        if tile_options(cfg):  # the limit applies to each tile
            continue
        for name in most if isinstance(limit, int) else ():
            if most[name] > limit:
                yield (
                    f"{name} has up to {most[name]} objects in an image, but the model returns at"
                    f" most {limit}; set {place}.{argument}={_hundreds(most[name])}"
                )
    for metric, node in cfg.evaluators.items():
        limits = _argument(node, "max_detections") if node and "_target_" in node else None
        if not isinstance(limits, Sequence) or not limits:  # another metric's argument of that name
            continue
        for name in tested:
            if summaries[name].most_of_a_class > limits[-1]:
                wanted = [*limits[:-1], _hundreds(summaries[name].most_of_a_class)]
                yield (
                    f"{name} has up to {summaries[name].most_of_a_class} objects of a class in an"
                    f" image, but evaluators.{metric} counts only {limits[-1]} detections; set"
                    f' "evaluators.{metric}.max_detections={wanted}"'
                )


def size_note(model: Any, sample: dict) -> str | None:
    """Return a line for the plan if an image is smaller than a cell of the coarsest level."""
    strides = _get(model, "proposal_generator.anchor_generator.strides")
    strides = strides or _get(model, "anchor_generator.strides")
    height, width = sample["image"].shape[-2:]
    if strides and min(height, width) < max(strides):
        return (
            f"the mapper returns images of {height} x {width} pixels, smaller than a cell of the"
            f" coarsest level ({max(strides)} pixels); use a larger short_edge_length"
        )
    return None


def _hundreds(number: int) -> int:
    return -(-number // 100) * 100


def _check_channels(cfg: Any) -> None:
    image_format = _image_format(cfg)
    stds = cfg.model.get("pixel_std")
    for value in stds if isinstance(stds, ListConfig) else ():
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise UserError(
                f"model.pixel_std={list(stds)}: pixels are divided by it; give positive numbers"
            )
    counts = {}
    if image_format:
        counts[f"the image format {image_format[1]} ({image_format[0]})"] = _channels(*image_format)
    for name in ("pixel_mean", "pixel_std"):
        values = cfg.model.get(name)
        if isinstance(values, ListConfig):
            counts[f"model.{name}={list(values)}"] = len(values)
    if not counts:
        return
    # One value is broadcast to all channels, and one channel to several means.
    widest = max(counts, key=counts.__getitem__)
    for field, count in counts.items():
        if count not in (1, counts[widest]):
            raise UserError(
                f"{field} has {count} channels, but {widest} has {counts[widest]}; give"
                " model.pixel_mean and model.pixel_std one value per channel"
            )
    for field in ("model.backbone.bottom_up", "model.backbone"):
        channels = _channels_taken(_get(cfg, field))
        if channels not in (None, counts[widest]):
            raise UserError(
                f"{field} takes {channels} channels, but {widest} has {counts[widest]};"
                f" {_channels_remedy(cfg, field, channels, counts[widest])}"
            )


def _channels_remedy(cfg: Any, backbone: str, taken: int, given: int) -> str:
    """Return advice on which fields to set so that a backbone gets the channels it takes."""
    if taken != 3:
        return f"set {backbone}.stem.in_channels={given}"
    means = "model.pixel_mean and model.pixel_std three values each"
    for field in ("model.input_format", "dataloader.train.mapper.image_format"):
        if _get(cfg, field) not in (None, "RGB", "BGR"):
            return f"set {field}=RGB (gray photos become three equal channels), and give {means}"
    return f"give {means}"


def _channels_taken(backbone: Any) -> int | None:
    """Return the input channels of a ResNet or a backbone of d2ext; None for others."""
    if not isinstance(backbone, DictConfig):
        return None
    channels = _get(backbone, "stem.in_channels")
    return getattr(_target(backbone), "in_channels", None) if channels is None else channels


def _image_format(cfg: Any) -> tuple[str, str] | None:
    """Return the field that defines the image format, and its value."""
    for field in ("dataloader.train.mapper.image_format", "model.input_format"):
        if value := _get(cfg, field):
            return field, value
    return None


def _channels(field: str, image_format: str) -> int:
    """Return the number of channels that Detectron2's `read_image` returns."""
    if image_format in ("BGR", "YUV-BT.601"):
        return 3
    try:
        return len(ImageMode.getmode(image_format).bands)
    except KeyError:
        raise UserError(
            f"{field}={image_format!r} is not an image format; give RGB, BGR or L (gray)"
        ) from None


def _format_notes(cfg: Any) -> Iterator[str]:
    fields = ["model.input_format"]
    fields += [f"dataloader.{split}.mapper.image_format" for split in ("train", "val", "test")]
    values = {field: value for field in fields if (value := _get(cfg, field))}
    if len(set(values.values())) > 1:
        words = ", ".join(f"{field}={value}" for field, value in values.items())
        yield f"the image formats differ, which reduces accuracy: {words}"


def _check_anchors(field: str, node: DictConfig) -> None:
    """Check Detectron2's DefaultAnchorGenerator against the head that uses it."""
    generator = node.anchor_generator
    if "strides" not in generator or "angles" in generator:
        return
    levels, strides = len(generator.strides), list(generator.strides)
    for name in ("in_features", "head_in_features"):
        features = node.get(name)
        if features and len(features) != levels:
            raise UserError(
                f"{field}.{name}={list(features)} has {len(features)} levels, but"
                f" {field}.anchor_generator.strides={strides} has {levels}; give one stride per"
                " level"
            )
    sizes, ratios = (
        _per_level(f"{field}.anchor_generator", name, generator.get(name), strides)
        for name in ("sizes", "aspect_ratios")
    )
    if not sizes or not ratios:
        return
    counts = [a * b for a, b in zip(sizes, ratios, strict=True)]
    made = (
        f"{field}.anchor_generator.sizes={_plain(generator.sizes)} with"
        f" aspect_ratios={_plain(generator.aspect_ratios)}"
    )
    if len(set(counts)) > 1:
        raise UserError(
            f"{made} make {counts} anchors per cell of each level; give all levels the same number"
        )
    anchors = _get(node, "head.num_anchors")
    if isinstance(anchors, int) and anchors != counts[0]:
        raise UserError(
            f"{field}.head.num_anchors={anchors}, but {made} make {counts[0]} anchors per cell; set"
            f" {field}.head.num_anchors={counts[0]}, or change the anchors"
        )


def _per_level(field: str, name: str, values: Any, strides: list) -> list[int]:
    """Return the number of values for each level after Detectron2's broadcasting."""
    if not isinstance(values, ListConfig) or not values:
        return []
    if not isinstance(values[0], ListConfig):
        return [len(values)] * len(strides)
    if len(values) == 1:
        return [len(values[0])] * len(strides)
    if len(values) != len(strides):
        raise UserError(
            f"{field}.{name}={_plain(values)} has {len(values)} levels, but {field}.strides="
            f"{strides} has {len(strides)}; give one list per level, or one for all"
        )
    return [len(level) for level in values]


def _check_pyramid(cfg: Any) -> None:
    """Check an FPN against the levels that it reads and the heads that read from it."""
    made, read = "model.backbone.bottom_up.out_features", "model.backbone.in_features"
    features, known = _get(cfg, read), _get(cfg, made)
    if features and known and (unknown := [f for f in features if f not in known]):
        raise UserError(
            f"{read}={list(features)}: {unknown[0]} is missing from {made}={list(known)}"
        )
    if not known:
        return
    fields = ["model.proposal_generator.head.in_channels"]
    heads = [head for prefix in _HEADS for head in _heads(cfg, prefix)]
    fields += [f"{head}.input_shape.channels" for head in heads]
    levels = _get(cfg, "model.head.input_shape") or []
    fields += [f"model.head.input_shape[{i}].channels" for i in range(len(levels))]
    for field in fields:
        _agree(cfg, field, "model.backbone.out_channels")


def _check_roi_head(cfg: Any, prefix: str) -> None:
    """Check a pooler of Detectron2's StandardROIHeads against the levels and heads around it."""
    heads = f"model.roi_heads.{prefix}"
    features, scales = _get(cfg, f"{heads}_in_features"), _get(cfg, f"{heads}_pooler.scales")
    if features and scales and len(features) != len(scales):
        raise UserError(
            f"{heads}_in_features={list(features)} has {len(features)} levels, but"
            f" {heads}_pooler.scales={list(scales)} has {len(scales)}; give one scale per level"
        )
    for head in _heads(cfg, prefix):
        predictor = head.replace(f"{heads}_head", f"{heads}_predictor")
        for side in ("height", "width"):
            _agree(cfg, f"{head}.input_shape.{side}", f"{heads}_pooler.output_size")
        if dims := _get(cfg, f"{head}.fc_dims"):
            _agree(cfg, f"{predictor}.input_shape.channels", f"{head}.fc_dims[{len(dims) - 1}]")


def _heads(cfg: Any, prefix: str) -> list[str]:
    """Return the fields of the heads of one kind: several in a cascade."""
    heads = f"model.roi_heads.{prefix}"
    for name in (f"{heads}_heads", f"{heads}_head"):
        if isinstance(several := _get(cfg, name), ListConfig):
            return [f"{name}[{i}]" for i in range(len(several))]
    return [f"{heads}_head"]


def _agree(cfg: Any, field: str, other: str) -> None:
    """Raise a UserError if both fields are integers and differ."""
    value, wanted = _get(cfg, field), _get(cfg, other)
    if isinstance(value, int) and isinstance(wanted, int) and value != wanted:
        raise UserError(f"{field}={value}, but {other}={wanted}; set {field}={wanted}")


def _check_keypoints(
    cfg: Any, needs: Needs, name: str, objects: Columns, classes: Sequence[str]
) -> Iterator[str]:
    """Check the number of keypoints and their mirror images; yield a note if none are known."""
    numbers = objects.keypoints[:, 0]
    first = {n: i for i, n in reversed(list(enumerate(numbers.tolist())))}
    label = {n: classes[objects.categories[i]] for n, i in first.items()}
    mapper = cfg.dataloader.train.get("mapper") or {}
    lacking = label.pop(0, None)
    if not label:
        raise UserError(
            f"{needs.keypoints} needs keypoints, but dataset {name!r} has none; annotate them, or"
            " use a model without that head"
        )
    choose = f"choose classes with data.classes=[...] (or datasets.{name}.classes)"
    if len(label) > 1:
        each = ", ".join(f"{c!r} has {n}" for n, c in sorted(label.items()))
        raise UserError(
            f"{needs.keypoints} needs the same number of keypoints for all objects, but in dataset"
            f" {name!r} {each}; {choose}"
        )
    (number,) = label
    if lacking and not (_target(mapper) is Mapper and mapper.get("keypoint_hflip_indices")):
        raise UserError(
            f"dataset {name!r}: {int(np.sum(numbers == 0))} of {len(numbers)} objects have no"
            f" keypoints (such as {lacking!r}), but {label[number]!r} has {number}; {choose}, or"
            " take them as not labeled with the mapper d2ext.data.loading.mapper.Mapper and its"
            " keypoint_hflip_indices"
        )
    predicted = _get(cfg, needs.keypoints_field)
    if predicted not in (None, number):
        raise UserError(
            f"{needs.keypoints_field}={predicted}, but dataset {name!r} has {number} keypoints (x,"
            f" y, visibility) per object; set it to {number}"
        )
    return _check_flips(mapper, name, number)


def _check_flips(mapper: Any, name: str, number: int) -> Iterator[str]:
    """Check that a mapper exchanges left and right keypoints of the images that it flips."""
    nodes = [node for _, node in _nodes(mapper.get("augmentations"), "")]
    with config_errors(f"{_MAPPER}.augmentations"):
        flips = [node for node in nodes if _target(node) is RandomFlip]
    if any(_argument(flip, "vertical") for flip in flips):
        yield (
            f"{name}: vertical flips mirror images, but Detectron2 does not exchange left and right"
            " keypoints for them; use a horizontal RandomFlip and"
            " d2ext.data.loading.augment.quarter_turn.RandomQuarterTurn"
        )
    if not any(_argument(flip, "horizontal") for flip in flips):
        return
    field = f"{_MAPPER}.keypoint_hflip_indices"
    with config_errors(field):
        indices = instantiate(mapper.get("keypoint_hflip_indices"))
    known = MetadataCatalog.get(name).get("keypoint_names") or []
    if indices is None or len(indices) != number:
        given = "is not set" if indices is None else f"has {len(indices)} entries"
        right = flip_indices(name) if len(known) == number else "an index for each keypoint"
        raise UserError(
            f"{field} {given}, but images with {number} keypoints per object (dataset {name!r}) are"
            f" flipped; set it to {right}, or remove RandomFlip"
        )
    if list(indices) == list(range(number)):
        names = f" ({shortened(known, 8)})" if known else ""
        yield (
            f"{name}: no two keypoints{names} are known to be mirror images of each other, so"
            " flipped images keep their order; if some are, set"
            f" datasets.{name}.flip_map=[[LEFT, RIGHT], ...], or remove RandomFlip"
        )


def _level_fields(config: Any) -> Iterator[tuple[str, str]]:
    """Yield pairs of fields: the names of levels, and their strides or scales."""
    yield "proposal_generator.in_features", "proposal_generator.anchor_generator.strides"
    yield "head_in_features", "anchor_generator.strides"
    for prefix in _HEADS:
        yield f"roi_heads.{prefix}_in_features", f"roi_heads.{prefix}_pooler.scales"
    yield "roi_heads.in_features", "roi_heads.pooler.scales"


def _nodes(node: Any, field: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig):
        yield field, node
        for key, child in node.items():
            yield from _nodes(child, f"{field}.{key}")
    elif isinstance(node, ListConfig):
        for i, child in enumerate(node):
            yield from _nodes(child, f"{field}[{i}]")


def _argument(node: Any, name: str) -> Any:
    """Return an argument of a lazy call, or its default; None if it has none."""
    if name in node:
        return node[name]
    try:
        parameter = inspect.signature(_target(node)).parameters.get(name)
    except Exception:  # no signature, or cannot be imported, which building it will report
        return None
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _target(node: Any) -> Any:
    target = node.get("_target_")
    return locate(target) if isinstance(target, str) else target


def _get(node: Any, key: str) -> Any:
    return OmegaConf.select(node, key, default=None)


def _plain(values: ListConfig) -> list:
    return OmegaConf.to_container(values)
