"""Translate datasets, loaders, pipelines and evaluators of an MMDetection config."""

import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from d2ext.config.mmdetection.draft import Call, Code, Draft, Interpolation, literal
from d2ext.config.mmdetection.fields import Fields
from d2ext.errors import UserError, format_exception

_DECLARE = "d2ext.data.datasets.declare"
_TRANSFORMS = "detectron2.data.transforms"
_COCO_CLASSES = Code('MetadataCatalog.get("coco_2017_train").thing_classes')
_CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_EVALUATION = ("dataloader", "evaluator", "cfg")
_SPLITS = ("train", "val", "test")
_COCO = ("CocoDataset", "CityscapesDataset")
_VOC = ("VOCDataset", "XMLDataset")
_NO_EFFECT = (  # fields of loaders and datasets
    *("persistent_workers", "collate_fn", "pin_memory", "backend_args", "file_client_args"),
    *("prefetch_factor", "test_mode", "lazy_init", "serialize_data", "max_refetch", "_scope_"),
)
_TASKS = {"bbox": "bbox", "segm": "segm", "proposal": "proposals", "keypoints": "keypoints"}
# Steps of a pipeline without a counterpart, because the loader or the model does their work.
_BY_OTHERS = {
    "LoadImageFromFile": "the mapper reads images",
    "PackDetInputs": "the mapper makes the model's input",
    "ToTensor": "the mapper makes the model's input",
    "Normalize": "the model normalizes images",
}
_METRIC_NAMES = {
    "CocoMetric": "coco",
    "VOCMetric": "voc",
    "OpenImagesMetric": "open_images",
    "CityScapesMetric": "cityscapes",
}


@dataclass
class _Set:
    """A dataset of a loader.

    Attributes:
        fields: Their dataset.
        call: Our dataset function; None if d2ext has none.
        repeat: How often each image is shown per epoch.
        oversample: Threshold of their ClassBalancedDataset.
        name: Its name in the config.
    """

    fields: Fields
    call: Call | None
    repeat: int = 1
    oversample: float | None = None
    name: str = ""


@dataclass
class _Pipeline:
    """Our mapper for a pipeline.

    Attributes:
        augmentations: Detectron2's or our augmentations.
        masks: Whether masks are loaded.
        recompute_boxes: Whether boxes are computed from the cropped masks.
    """

    augmentations: list[Call] = field(default_factory=list)
    masks: bool = False
    recompute_boxes: bool = False


def translate_data(config: Fields, draft: Draft) -> None:
    """Write the sections `dataloader`, `datasets` and `evaluators`.

    Args:
        config: Their config, in the spelling of MMDetection 3.x.
        draft: The config that is written; its section `train` is complete.
    """
    loaders = {split: config.section(f"{split}_dataloader") for split in _SPLITS}
    same_test = config.get("test_dataloader") in (None, config.get("val_dataloader"))
    if same_test and loaders["val"]:
        config.became("test_dataloader", "dataloader.test=None, which is dataloader.val")
    splits = [split for split in _SPLITS if loaders[split] and not (split == "test" and same_test)]
    root = _common_root([loaders[split] for split in splits])
    sets = {s: _sets(loaders[s].section("dataset"), root, s == "train") for s in splits}
    _choose_names(sets)
    _write_class_order(sets, draft)
    draft.start("dataloader", "common/data/loader.py")
    if "train" in sets:
        _translate_train_loader(loaders["train"], sets["train"], draft)
    for split in splits:
        if split != "train":
            _translate_test_loader(loaders[split], split, sets[split], draft)
    _write_datasets(sets, root, draft)
    _translate_evaluators(config, sets, root, same_test, draft)


# ---- datasets


def _common_root(loaders: Sequence[Fields]) -> str:
    """Return the `data_root` of all datasets; "" if they differ or have none."""
    roots = {leaf.get("data_root") for f in loaders for leaf in _leaves(f.section("dataset"))}
    root = roots.pop() if len(roots) == 1 else None
    return root if isinstance(root, str) and "://" not in root and "$" not in root else ""


def _leaves(dataset: Fields) -> list[Fields]:
    """Return the datasets inside those that join or repeat others."""
    if dataset.get("datasets"):
        return [leaf for part in dataset.sections("datasets") for leaf in _leaves(part)]
    if dataset.get("dataset"):
        return _leaves(dataset.section("dataset"))
    return [dataset] if dataset else []


def _sets(dataset: Fields, root: str, training: bool, repeat: int = 1) -> list[_Set]:
    """Translate a dataset and those inside it.

    Args:
        dataset: Their dataset.
        root: Folder that is `data.root` here; "" if there is none.
        training: Whether it is a training set.
        repeat: How often datasets around it repeat it.
    """
    kind = dataset.type
    dataset.unused(_NO_EFFECT, "has no effect on the results")
    if kind == "ConcatDataset":
        dataset.became(["type", "ignore_keys", "separate_eval"], "dataloader.*.dataset.names")
        parts = dataset.sections("datasets")
        return [made for part in parts for made in _sets(part, root, training, repeat)]
    if not dataset.get("dataset"):
        return [_Set(dataset, _declared(dataset, root, training), repeat)] if dataset else []
    inner = dataset.section("dataset")
    if kind == "RepeatDataset":
        times = int(dataset.get("times", 1))
        dataset.became(["type", "times"], f"dataloader.train.dataset.repeat={times}")
        return _sets(inner, root, training, repeat * times)
    made = _sets(inner, root, training, repeat)
    if kind == "ClassBalancedDataset":
        threshold = dataset.get("oversample_thr")
        text = f"dataloader.train.dataset.oversample_threshold={threshold}"
        dataset.became(["type", "oversample_thr", "filter_empty_gt"], text)
        for part in made:
            part.oversample = threshold
    else:
        text = f"{kind} is not supported; the images are used one by one"
        dataset.differs([name for name in dataset if name != "dataset"], text)
    return made


def _declared(f: Fields, root: str, training: bool) -> Call | None:
    """Return our dataset function for their dataset; None if there is none."""
    kind, prefix = f.type, f.section("data_prefix")
    meta = f.section("metainfo")
    given = _class_names(meta)
    classes: dict[str, Any] = {}
    if given:
        classes["classes"] = list(given)
    if meta.get("palette"):
        classes["palette"] = [list(color) for color in meta["palette"]]
    if kind in _COCO:
        _follow_annotations(f, classes)
    meta.became(["classes", "palette"], "classes and palette of the dataset")
    f.became("data_root", f"data.root={_shown(root)}" if root else "paths of the dataset")
    file = _joined(f, root, f.get("ann_file", ""))
    images = _joined(f, root, prefix.get("img", prefix.get("img_path", "")) or "")
    if kind in _COCO:
        default = list(_CITYSCAPES) if kind == "CityscapesDataset" else _COCO_CLASSES
        f.became(["type", "ann_file"], "coco_dataset: json_file")
        prefix.became("img", "coco_dataset: image_root")
        prefix.unused(["seg", "seg_map_path"], "semantic segmentation is not trained here")
        arguments = {"json_file": file, "image_root": images, **{"classes": default, **classes}}
        return Call(f"{_DECLARE}.coco_dataset", arguments)
    if kind in _VOC:
        return _declared_voc(f, root, file, classes, training)
    if kind in ("OpenImagesDataset", "OpenImagesChallengeDataset"):
        return _declared_open_images(f, root, file, images, classes, training)
    text = f"d2ext has no {kind}; give your data with data.train.* and data.val.*"
    f.differs([name for name in f if name not in ("pipeline", "filter_cfg")], text)
    return None


def _class_names(meta: Fields) -> Sequence[str] | None:
    """Return the classes of a dataset: given as names, as one name, or as a file of names."""
    given = meta.get("classes")
    if not isinstance(given, str):
        return given
    path = Path(given)
    if not (path.suffix == ".txt" or "/" in given or path.is_file()):
        return [given]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as e:
        raise UserError(
            f"cannot read {meta.name('classes')}={given}: {format_exception(e)}; import the config"
            " in the folder that the path starts from"
        ) from e
    return [line.strip() for line in lines if line.strip()]


def _follow_annotations(f: Fields, classes: dict[str, Any]) -> None:
    """Order the classes as their COCO file does, which numbers MMDetection's labels."""
    names, meta = classes.get("classes", []), f.section("metainfo")
    path = posixpath.join(f.get("data_root") or "", str(f.get("ann_file")))
    if len(names) < 2:
        return
    if (listed := _categories(path)) is None:
        text = f"classes of the dataset; MMDetection orders them as {path}, which cannot be read"
        meta.became("classes", text)
        return
    known = [name for name in listed if name in names]
    order = [*known, *(name for name in names if name not in known)]
    if order == names:
        return
    text = (
        f"classes={order}, the order in {path}, which numbers MMDetection's labels; checkpoints"
        f" that were trained with it name their classes in the wrong order, {names}, which"
        " train.init_checkpoint_classes corrects"
    )
    meta.differs("classes", text)
    if len(colors := classes.get("palette", [])) == len(names):
        classes["palette"] = [colors[names.index(name)] for name in order]
    classes["classes"] = order


def _categories(path: str) -> list[Any] | None:
    """Return the names of the categories in a COCO file; None if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as opened:
            return [category["name"] for category in json.load(opened)["categories"]]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # preflight will report it


def _write_class_order(sets: Mapping[str, Sequence[_Set]], draft: Draft) -> None:
    """Set `train.init_checkpoint_classes` if a COCO file lists the classes in another order."""
    for part in (part for parts in sets.values() for part in parts):
        row = part.fields.rows.get(part.fields.section("metainfo").name("classes"))
        if part.call and row and row.outcome == "differs":
            draft.set("train.init_checkpoint_classes", part.call.arguments["classes"])
            return


def _declared_voc(f: Fields, root: str, file: str, classes: dict, training: bool) -> Call:
    folder = f.section("data_prefix").get("sub_data_root", "") or ""
    annotations = _joined(f, root, posixpath.join(folder, f.get("ann_subdir", "Annotations")))
    images = _joined(f, root, posixpath.join(folder, f.get("img_subdir", "JPEGImages")))
    arguments = {"list_file": file, "annotation_root": annotations, "image_root": images}
    text = "voc_dataset: boxes are a pixel wider and higher, as they end after their last pixel"
    f.differs("type", text)
    f.became("ann_file", "voc_dataset: list_file")
    f.became("data_prefix", "voc_dataset: annotation_root, image_root")
    f.became(["ann_subdir", "img_subdir"], "voc_dataset: annotation_root, image_root")
    filters = f.section("filter_cfg")
    least = filters.get("bbox_min_size")
    if least and training:
        filters.became("bbox_min_size", f"voc_dataset: min_box_side={least}")
        arguments["min_box_side"] = least
    else:
        filters.unused("bbox_min_size", "all objects count in evaluations")
    return Call(f"{_DECLARE}.voc_dataset", {**arguments, **classes})


def _declared_open_images(
    f: Fields, root: str, file: str, images: str, classes: dict, training: bool
) -> Call:
    labels = f.get("label_file")
    arguments: dict[str, Any] = {"annotation_file": file, "image_root": images}
    if labels:
        arguments["class_file"] = _joined(f, root, labels)
    if training:
        f.differs("type", "open_images_dataset: boxes of groups are not trained on")
    f.became(["type", "ann_file", "label_file"], "open_images_dataset")
    f.section("data_prefix").became("img", "open_images_dataset: image_root")
    f.unused("meta_file", "sizes are read from the images")
    if str(f.get("hierarchy_file", "")).endswith(".json"):
        f.became("hierarchy_file", "evaluators.open_images.hierarchy_file")
    text = "only JSON is read; give bbox_labels_600_hierarchy.json or the challenge's JSON as"
    f.differs("hierarchy_file", f"{text} evaluators.open_images.hierarchy_file")
    text = "image-level labels are not read: detections of unverified classes count as false"
    f.differs("image_level_ann_file", text)
    return Call(f"{_DECLARE}.open_images_dataset", {**arguments, **classes})


def _joined(f: Fields, root: str, path: str) -> str:
    """Return a path in their dataset, with `${data.root}` in place of the common root."""
    folder = f.get("data_root") or ""
    if not isinstance(path, str):
        return str(path)
    if posixpath.isabs(path) or "://" in path:
        return path
    if root and folder == root:
        return Interpolation(f"${{data.root}}/{literal(path)}".rstrip("/"))
    return (posixpath.join(folder, path) if folder else path).rstrip("/") or "."


def _choose_names(sets: Mapping[str, Sequence[_Set]]) -> None:
    """Name the datasets by the folder or the type of the data: `balloon_train`."""
    for split, parts in sets.items():
        for i, part in enumerate(parts):
            if part.call is None:
                part.name = f"custom_{'train' if split == 'train' else 'val'}"
                continue
            folder = os.path.basename(str(part.fields.get("data_root") or "").rstrip("/"))
            stem = re.sub(r"\W+", "_", folder).strip("_").lower()
            if not stem or stem in ("data", "datasets", "custom"):
                stem = part.fields.type.removesuffix("Dataset").lower()
            part.name = f"{stem}_{split}" + (f"_{i + 1}" if len(parts) > 1 else "")


def _write_datasets(sets: Mapping[str, Sequence[_Set]], root: str, draft: Draft) -> None:
    calls = {part.name: part.call for parts in sets.values() for part in parts}
    if None in calls.values() or not calls:
        draft.start("data", "common/data/custom.py")
        draft.start("datasets", "common/data/custom.py")
        for name, call in calls.items():
            if call is not None:
                draft.set(f"datasets.{name}", call)
    else:
        draft.set("data", {"root": root.rstrip("/") or "/"} if root else {})
        draft.set("datasets", calls)
    if any(call and _COCO_CLASSES in call.arguments.values() for call in calls.values()):
        draft.use("detectron2.data", "MetadataCatalog")


# ---- loaders


def _translate_train_loader(f: Fields, sets: Sequence[_Set], draft: Draft) -> None:
    section = "dataloader.train"
    names = [part.name for part in sets]
    draft.set(f"{section}.dataset.names", names[0] if len(names) == 1 else names)
    repeats = [part.repeat for part in sets]
    if set(repeats) - {1}:
        draft.set(f"{section}.dataset.repeat", repeats[0] if len(set(repeats)) == 1 else repeats)
    thresholds = {part.oversample for part in sets}
    if threshold := max((t for t in thresholds if t), default=None):
        draft.set(f"{section}.dataset.oversample_threshold", threshold)
    _translate_filters(sets, draft)
    if (workers := f.get("num_workers")) is not None:
        f.became("num_workers", f"{section}.num_workers={workers}")
        draft.set(f"{section}.num_workers", workers)
    f.unused(_NO_EFFECT, "has no effect on the results")
    f.unused("drop_last", "every batch is full: the next epoch completes it")
    sampler = f.section("sampler")
    if sampler.type in ("", "DefaultSampler", "InfiniteSampler"):
        sampler.became("type", "the sampler of d2ext, which covers each epoch once")
        if sampler.get("shuffle", True):
            sampler.became("shuffle", "images are shuffled")
    text = f"d2ext shuffles all images, without {sampler.type}(shuffle={sampler.get('shuffle')})"
    sampler.differs(list(sampler), text)
    batches = f.section("batch_sampler")
    grouped = batches.type == "AspectRatioBatchSampler"
    if batches and not grouped:
        batches.differs(list(batches), "batches are drawn by d2ext's sampler")
    batches.became(list(batches), "images of a worker share an orientation")
    if not grouped:
        draft.set(f"{section}.aspect_ratio_grouping", False)
        if not batches:
            f.became("batch_sampler", f"{section}.aspect_ratio_grouping=False")
    made = _pipeline_of(f.section("dataset"), training=True)
    _write_mapper(f"{section}.mapper", made, draft)
    if not made.masks:
        draft.set(f"{section}.mapper.use_instance_mask", False)
    if made.recompute_boxes:
        draft.set(f"{section}.mapper.recompute_boxes", True)


def _translate_filters(sets: Sequence[_Set], draft: Draft) -> None:
    """Translate `filter_cfg`, which is common to all training sets here."""
    section = "dataloader.train.dataset"
    filters = [part.fields.section("filter_cfg") for part in sets]
    if not filters:
        return
    first = filters[0]
    for name, default, ours in (
        ("filter_empty_gt", False, "filter_empty"),
        ("min_size", 0, "min_size"),
    ):
        value = first.get(name, default)
        for other in filters:
            if other.get(name, default) == value:
                other.became(name, f"{section}.{ours}={value}")
            else:
                other.differs(name, f"{section}.{ours}={value}, as in the first dataset")
        if value != {"filter_empty": True, "min_size": 0}[ours]:
            draft.set(f"{section}.{ours}", value)


def _translate_test_loader(f: Fields, split: str, sets: Sequence[_Set], draft: Draft) -> None:
    section = f"dataloader.{split}"
    if split == "test":
        draft.set(section, Code('d2ext.get_config("common/data/loader.py").dataloader.val'))
    names = [part.name for part in sets]
    draft.set(f"{section}.dataset.names", names[0] if len(names) == 1 else names)
    if (workers := f.get("num_workers")) is not None:
        f.became("num_workers", f"{section}.num_workers={workers}")
        draft.set(f"{section}.num_workers", workers)
    f.unused([*_NO_EFFECT, "batch_size", "drop_last", "sampler"], "has no effect on the results")
    for part in sets:
        filters = part.fields.section("filter_cfg")
        filters.unused(list(filters), "MMDetection does not filter test images")
    _write_mapper(f"{section}.mapper", _pipeline_of(f.section("dataset"), training=False), draft)


def _write_mapper(section: str, made: _Pipeline, draft: Draft) -> None:
    template = {  # of configs/common/data/loader.py
        "dataloader.train.mapper": [
            _resize_shortest([640, 672, 704, 736, 768, 800], 1333),
            _flip(),
        ],
        "dataloader.val.mapper": [
            Call(f"{_TRANSFORMS}.ResizeShortestEdge", dict(short_edge_length=800, max_size=1333))
        ],
    }
    if made.augmentations != template.get(section):
        draft.set(f"{section}.augmentations", made.augmentations)


# ---- pipelines


def _pipeline_of(dataset: Fields, training: bool) -> _Pipeline:
    """Translate the pipelines of a dataset and of those inside it; the first one is used."""
    leaves = [leaf for leaf in _leaves(dataset) if leaf.get("pipeline")]
    found = [_translate_pipeline(leaf.sections("pipeline"), training) for leaf in leaves]
    for leaf, made in zip(leaves, found, strict=True):
        if made != found[0]:
            text = "the pipeline of the first dataset is used for all"
            for step in leaf.sections("pipeline"):
                step.change(list(step), "differs", text)
    return found[0] if found else _Pipeline()


def _translate_pipeline(steps: Sequence[Fields], training: bool) -> _Pipeline:
    made = _Pipeline()
    for step in steps:
        kind, every = step.type, list(step)
        if kind in _BY_OTHERS:
            step.unused(every, _BY_OTHERS[kind])
        elif kind == "LoadAnnotations":
            _translate_annotations(step, training, made)
        elif translate := _STEPS.get(kind):
            augmentation = translate(step, made)
            if augmentation is not None:
                made.augmentations.append(augmentation)
        else:
            step.differs(every, f"{kind} is not supported; the images are used without it")
    return made


def _translate_annotations(step: Fields, training: bool, made: _Pipeline) -> None:
    made.masks = bool(step.get("with_mask"))
    if not training:
        step.unused(list(step), "evaluations read the annotations from the dataset")
        return
    step.became(["type", "with_bbox", "with_label", "box_type"], "the mapper reads boxes")
    if step.get("with_seg"):
        step.differs("with_seg", "semantic segmentation is not trained here")
    polygons = not step.get("poly2mask", True)
    use = f"dataloader.train.mapper.use_instance_mask={made.masks}"
    if made.masks and not polygons:
        step.differs(
            ["with_mask", "poly2mask"],
            "mask targets are made of polygons, not of bitmaps;"
            " dataloader.train.mapper.instance_mask_format=bitmask makes them of bitmaps",
        )
    step.became("with_mask", use)
    step.became("poly2mask", "masks are polygons" if made.masks else "masks are not read")
    step.unused(list(step), "has no effect on the results")


def _resize_shortest(lengths: Any, longest: int, style: str = "choice") -> Call:
    arguments = {"short_edge_length": lengths, "sample_style": style, "max_size": longest}
    return Call(f"{_TRANSFORMS}.ResizeShortestEdge", arguments)


def _flip(prob: float = 0.5, vertical: bool = False) -> Call:
    arguments: dict[str, Any] = {} if prob == 0.5 else {"prob": prob}
    arguments["horizontal"] = not vertical
    if vertical:
        arguments["vertical"] = True
    return Call(f"{_TRANSFORMS}.RandomFlip", arguments)


def _is_list(value: Any) -> TypeGuard[list | tuple]:
    return isinstance(value, list | tuple)


def _sides(scale: Any) -> tuple[int, int] | None:
    """Return the short and the long side of a scale; None for anything else."""
    if isinstance(scale, int):
        scale = (scale, scale)
    if isinstance(scale, list | tuple) and len(scale) == 2:
        if all(isinstance(side, int | float) for side in scale):
            return int(min(scale)), int(max(scale))
    return None


def _translate_resize(step: Fields, made: _Pipeline) -> Call | None:
    every, scale, sides = list(step), step.get("scale"), _sides(step.get("scale"))
    if sides is None:
        step.differs(every, "d2ext resizes to a `scale` of two numbers; the images keep their size")
        return None
    text = "{}; the same sizes, with antialiasing"
    if not step.get("keep_ratio", False):
        width, height = scale if _is_list(scale) else (scale, scale)
        step.became(every, text.format(f"Resize(shape=[{height}, {width}])"))
        return Call(f"{_TRANSFORMS}.Resize", {"shape": [height, width]})
    step.became(every, text.format(f"ResizeShortestEdge({sides[0]}, max_size={sides[1]})"))
    arguments = {"short_edge_length": sides[0], "max_size": sides[1]}
    return Call(f"{_TRANSFORMS}.ResizeShortestEdge", arguments)


def _translate_choice_resize(step: Fields, made: _Pipeline) -> Call | None:
    every = list(step)
    scales = [_sides(scale) for scale in step.get("scales") or []]
    inner = step.get("resize_cfg") or {}
    keeps = step.get("keep_ratio", inner.get("keep_ratio", False))
    if not scales or None in scales or not keeps:
        step.differs(every, "only `scales` with keep_ratio=True; the images keep their size")
        return None
    sides = [found for found in scales if found]
    shorts, longest = [short for short, _ in sides], max(long for _, long in sides)
    text = f"ResizeShortestEdge({shorts}, max_size={longest}); the same sizes, with antialiasing"
    if len({long for _, long in sides}) > 1:
        step.differs(every, f"{text}, save that all scales have the longest long side")
    step.became(every, text)
    return _resize_shortest(shorts, longest)


def _translate_random_resize(step: Fields, made: _Pipeline) -> Call | None:
    every, scale, ratios = list(step), step.get("scale"), step.get("ratio_range")
    parts = [part for part in scale if _is_list(part)] if _is_list(scale) else []
    pairs = [pair for part in parts if (pair := _sides(part))]
    if len(pairs) == 2 and step.get("keep_ratio"):
        (low, long), (high, other) = sorted(pairs)
        text = f"ResizeShortestEdge([{low}, {high}], range, max_size={max(long, other)})"
        text += "; the same sizes, with antialiasing"
        if long != other:
            step.differs(every, f"{text}, save that the long side is not random")
        step.became(every, text)
        return _resize_shortest([low, high], max(long, other), "range")
    sides = _sides(scale)
    if sides and ratios and step.get("keep_ratio"):
        low, high = ratios
        text = f"scaled by {low} to {high}"
        if sides[0] == sides[1]:
            step.became(every, f"ResizeScale: {text}; the same sizes, with antialiasing")
            arguments = dict(min_scale=low, max_scale=high)
            arguments |= dict(target_height=sides[0], target_width=sides[0])
            return Call(f"{_TRANSFORMS}.ResizeScale", arguments)
        step.differs(every, f"ResizeShortestEdge: {text}, the long side up to {sides[1] * high:g}")
        lengths = [round(sides[0] * low), round(sides[0] * high)]
        return _resize_shortest(lengths, round(sides[1] * high), "range")
    step.differs(every, "only two scales, or one with ratio_range, with keep_ratio=True")
    return None


def _translate_flip(step: Fields, made: _Pipeline) -> Call | None:
    every, prob, direction = list(step), step.get("prob"), step.get("direction", "horizontal")
    if _is_list(direction) and len(direction) == 1:
        direction = direction[0]
    if _is_list(prob) and len(prob) == 1:
        prob = prob[0]
    if not prob:
        step.unused(every, "no image is flipped")
        return None
    if direction not in ("horizontal", "vertical") or not isinstance(prob, int | float):
        step.differs(every, "several or diagonal directions; images are flipped horizontally")
        return _flip()
    step.became(every, f"RandomFlip(prob={prob}, {direction}=True)")
    return _flip(prob, direction == "vertical")


def _translate_crop(step: Fields, made: _Pipeline) -> Call | None:
    kind, size = step.get("crop_type", "absolute"), step.get("crop_size")
    if not isinstance(size, list | tuple) or len(size) != 2:
        step.differs(list(step), "only a `crop_size` of two numbers; the images are not cropped")
        return None
    # Theirs is (width, height), except in ranges, where it is as in Detectron2.
    size = list(size) if kind.endswith("range") else [size[1], size[0]]
    step.became(["type", "crop_size", "crop_type"], f"RandomCrop({kind}, {size})")
    if step.get("recompute_bbox") and made.masks:
        made.recompute_boxes = True
    step.became("recompute_bbox", f"dataloader.train.mapper.recompute_boxes={made.recompute_boxes}")
    if step.get("allow_negative_crop", False):
        step.became("allow_negative_crop", "crops without objects are trained on")
    step.differs(["allow_negative_crop"], "crops without objects are trained on, not drawn again")
    step.became("bbox_clip_border", "boxes are clipped")
    return Call(f"{_TRANSFORMS}.RandomCrop", {"crop_type": kind, "crop_size": size})


def _translate_colors(step: Fields, made: _Pipeline) -> Call:
    names = ("brightness_delta", "contrast_range", "saturation_range", "hue_delta")
    given = {name: step[name] for name in names if name in step}
    step.became(list(step), "PhotoMetricDistortion, clipped to 0..255")
    arguments = {n: list(v) if isinstance(v, tuple) else v for n, v in given.items()}
    path = "d2ext.data.loading.augment.color.PhotoMetricDistortion"
    return Call(path, {**arguments, "image_format": Interpolation("${model.input_format}")})


def _translate_pad(step: Fields, made: _Pipeline) -> None:
    if "size_divisor" in step and not step.get("size"):
        step.unused(list(step), "the model pads its batches")
    step.differs(list(step), "the model pads its batches to their largest image")


def _translate_filter(step: Fields, made: _Pipeline) -> None:
    least = step.get("min_gt_bbox_wh", (1, 1))
    if max(least) > 0.01:
        text = f"objects of less than {least[0]} x {least[1]} pixels are trained on"
        step.differs(["type", "min_gt_bbox_wh"], text)
    text = "objects without area after the augmentations are dropped"
    step.became(["type", "min_gt_bbox_wh", "by_box"], text)
    step.differs(["min_gt_mask_area", "by_mask"], "masks are not filtered by their area")
    step.unused("keep_empty", "images without objects after the augmentations are kept")


_STEPS = {
    "Resize": _translate_resize,
    "RandomChoiceResize": _translate_choice_resize,
    "RandomResize": _translate_random_resize,
    "RandomFlip": _translate_flip,
    "RandomCrop": _translate_crop,
    "PhotoMetricDistortion": _translate_colors,
    "Pad": _translate_pad,
    "FilterAnnotations": _translate_filter,
}


# ---- evaluators


def _translate_evaluators(
    config: Fields, sets: Mapping[str, Sequence[_Set]], root: str, same_test: bool, draft: Draft
) -> None:
    """Write `evaluators`: those of the validation set, and those that a test set has alone."""
    made = _evaluators(config.sections("val_evaluator"), sets.get("val", ()), root)
    if config.get("test_evaluator") in (None, config.get("val_evaluator")):
        config.became("test_evaluator", "evaluators: those of the validation set")
    tests = _evaluators(config.sections("test_evaluator"), sets.get("test", ()), root)
    found: dict[str, Any] = made or {"coco": Call("d2ext.evaluation.coco.CocoMetric", {})}
    if not sets.get("val") and not sets.get("test"):
        draft.set("evaluators", {})
        names = [f"{split}_{part}" for split in ("val", "test") for part in _EVALUATION]
        config.became(names, "train.eval_period=0, evaluators=dict(): no evaluations")
        return
    if not same_test and tests != made and tests:
        draft.set("evaluators", found | {part.name: tests for part in sets.get("test", ())})
        return
    draft.set("evaluators", found)
    if tests != made:
        for f in config.sections("test_evaluator"):
            f.differs(list(f), "the metrics of the validation set are used")


def _evaluators(metrics: Sequence[Fields], sets: Sequence[_Set], root: str) -> dict[str, Call]:
    made = {}
    for f in metrics:
        f.unused([*_NO_EFFECT, "collect_device"], "has no effect on the results")
        f.unused("outfile_prefix", "only names files")
        f.unused("prefix", "only names results")
        if translate := _METRICS.get(f.type):
            made[_METRIC_NAMES[f.type]] = translate(f, sets, root)
        else:
            f.differs(list(f), f"d2ext has no {f.type}; it is not computed")
    return made


def _translate_coco_metric(f: Fields, sets: Sequence[_Set], root: str) -> Call:
    names = f.get("metric", "bbox")
    names = [names] if isinstance(names, str) else list(names)
    tasks = [_TASKS[name] for name in names if name in _TASKS]
    f.became(["type", "metric"], f"evaluators.coco.tasks={tasks}")
    f.became("ann_file", "the annotations of the evaluated dataset")
    f.unused(["format_only", "classwise", "metric_items"], "all results are written")
    arguments: dict[str, Any] = {"tasks": tasks}
    thresholds = f.get("iou_thrs")
    if thresholds:
        arguments["iou_thresholds"] = (
            [thresholds] if isinstance(thresholds, float) else list(thresholds)
        )
        f.became("iou_thrs", "evaluators.coco.iou_thresholds")
    f.unused("iou_thrs", "COCO's thresholds")
    f.differs("proposal_nums", "the numbers of detections are COCO's: 1, 10, 100")
    return Call("d2ext.evaluation.coco.CocoMetric", arguments)


def _translate_voc_metric(f: Fields, sets: Sequence[_Set], root: str) -> Call:
    thresholds = f.get("iou_thrs", 0.5)
    thresholds = [thresholds] if isinstance(thresholds, float) else list(thresholds)
    mode = f.get("eval_mode", "11points")
    arguments: dict[str, Any] = {"iou_thresholds": thresholds, "mode": mode}
    # MMDetection counts the last pixel. Boxes of `voc_dataset` end after it, those of files do not.
    if any(part.fields.type not in _VOC for part in sets):
        arguments["plus_one"] = True
    if f.get("metric", "mAP") not in ("mAP", ["mAP"]):
        f.differs("metric", "AP is computed, not the recall")
    f.became(["type", "metric", "eval_mode"], f"evaluators.voc.mode={mode}")
    f.became("iou_thrs", f"evaluators.voc.iou_thresholds={thresholds}")
    f.differs(["scale_ranges", "proposal_nums"], "not supported: objects of all sizes count")
    return Call("d2ext.evaluation.voc.VocMetric", arguments)


def _translate_open_images_metric(f: Fields, sets: Sequence[_Set], root: str) -> Call:
    arguments: dict[str, Any] = {}
    for part in sets:
        file = part.fields.get("hierarchy_file")
        if file and f.get("get_supercategory", True) and str(file).endswith(".json"):
            arguments["hierarchy_file"] = _joined(part.fields, root, file)
    f.became(["type", "get_supercategory", "use_group_of"], "evaluators.open_images")
    for name in ("iou_thrs", "ioa_thrs"):
        if f.get(name, 0.5) in (0.5, [0.5], (0.5,)):
            f.became(name, "0.5, as in Open Images")
        f.differs(name, "0.5, as in Open Images")
    f.differs("filter_labels", "image-level labels are not read")
    return Call("d2ext.evaluation.open_images.OpenImagesMetric", arguments)


def _translate_cityscapes_metric(f: Fields, sets: Sequence[_Set], root: str) -> Call:
    f.became(["type", "seg_prefix"], f"evaluators.cityscapes.gt_dir={f.get('seg_prefix')}")
    f.unused(["keep_results", "dump_matches"], "only keeps files")
    folder = f.get("seg_prefix")
    if folder and root and folder.startswith(root):
        inside = literal(folder.removeprefix(root).strip("/"))
        folder = Interpolation(f"${{data.root}}/{inside}")
    return Call(
        "d2ext.evaluation.cityscapes.CityscapesMetric", {"gt_dir": folder} if folder else {}
    )


_METRICS = {
    "CocoMetric": _translate_coco_metric,
    "VOCMetric": _translate_voc_metric,
    "OpenImagesMetric": _translate_open_images_metric,
    "CityScapesMetric": _translate_cityscapes_metric,
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
