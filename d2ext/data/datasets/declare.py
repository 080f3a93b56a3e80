"""Declare datasets in a config; `register.py` adds them to Detectron2's catalogs.

A dataset function in the config, such as `via_dataset`, returns a `Dataset`, whose `load` reads the
annotations when a loader or an evaluator needs them. (Without `classes`, `coco_dataset` reads the
categories of the file immediately.)
"""

import os
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from d2ext.data.datasets.boxes_as_masks import with_outlines
from d2ext.data.datasets.classes import FILE_IDS, select_classes, select_metadata
from d2ext.data.datasets.keypoints import keypoint_metadata
from d2ext.data.datasets.label_maps import with_label_maps
from d2ext.data.formats import via
from d2ext.data.formats.coco import coco_classes
from d2ext.data.formats.detect_format import detect_built_in, detect_format
from d2ext.data.formats.format import Format, formats
from d2ext.data.formats.json_io import not_read
from d2ext.data.formats.middle import middle_classes, read_middle
from d2ext.data.formats.open_images import class_descriptions, folder_times, read_columns
from d2ext.data.formats.voc import CLASSES as VOC_CLASSES
from d2ext.data.formats.voc import listed_stamp, read_voc
from d2ext.data.records.cache import (
    cached_coco_records,
    cached_columns,
    cached_records,
    cached_value,
)
from d2ext.data.records.records import columns_of, file_names_of, select
from d2ext.errors import UserError
from d2ext.invocation import command, option


@dataclass(frozen=True)
class Dataset:
    """A dataset: a function that loads it, and what is known before that.

    A dataset function, which a config names in `datasets`, returns one.

    Attributes:
        load: Returns Detectron2's dataset dicts, with boxes in pixels; may raise UserError. Values
            may be Python's, numpy's or torch's, and masks polygons, RLE or arrays.
        classes: Class names, indexed by `category_id`.
        metadata: More entries for Detectron2's MetadataCatalog; `load` may add entries from the
            annotations. `left_out` is the number of skipped objects by reason.

    Examples:
        >>> import d2ext
        >>> def load():
        ...     box = {"bbox": [20, 10, 60, 70], "bbox_mode": 0, "category_id": 0}
        ...     image = {"file_name": "photo.jpg", "image_id": 1, "height": 120, "width": 160}
        ...     return [{**image, "annotations": [box]}]
        >>> def my_dataset():  # datasets.mine = L(my_dataset)() in a config
        ...     return d2ext.Dataset(load, classes=["balloon"])
        >>> len(my_dataset().load())
        1
    """

    load: Callable[[], Sequence[dict]]
    classes: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def via_dataset(
    json_file: str,
    image_root: str,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    attribute: str | None = None,
    boxes_as_masks: bool = False,
) -> Dataset:
    """Declare photos annotated with the VGG Image Annotator.

    Args:
        json_file: VIA annotations or project (versions 1 and 2).
        image_root: Folder of the photos.
        classes: Class names; with more than one, `attribute` says which attribute holds the class
            of a region. None uses the classes of the regions.
        palette: One RGB color (0 to 255) per class, for pictures.
        attribute: The region attribute that holds the class name.
        boxes_as_masks: As in `coco_dataset`; VIA's rectangles have outlines in any case.
    """
    if classes is None:
        classes, attribute = via.via_classes(json_file, attribute)
    classes = _names(classes)
    metadata = {**_colors(palette, classes), "image_root": image_root}

    def load() -> Sequence[dict]:
        records = via.read_via(json_file, image_root, classes, attribute, metadata)
        return with_outlines(records) if boxes_as_masks else records

    return Dataset(load, classes, metadata)


def coco_dataset(
    json_file: str,
    image_root: str,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    boxes_as_masks: bool = False,
    flip_map: Sequence[Sequence[str]] | None = None,
    label_root: str | None = None,
) -> Dataset:
    """Declare photos annotated in a COCO JSON.

    Args:
        json_file: Path of the annotations.
        image_root: Folder of the photos.
        classes: Names of the classes to use; None uses the categories of the file, ordered by id.
        palette: One RGB color (0 to 255) per class, for pictures.
        boxes_as_masks: Whether objects without an outline get their box as one.
        flip_map: Pairs of keypoint names that a horizontal flip exchanges; None takes the names
            that differ only in left and right.
        label_root: Folder of label maps, for models with a semantic branch: PNG files with the
            photos' names, whose pixels are classes of things and stuff, or 255 for none. Only
            training such a model needs the folder.
    """
    if classes is None:
        names = tuple(cached_value(json_file, "coco_classes", lambda: coco_classes(json_file)))
    else:
        names = classes = _names(classes)
    metadata = {**_colors(palette, names), "image_root": image_root, "json_file": json_file}
    if label_root:
        metadata["label_root"] = label_root

    def load() -> Sequence[dict]:
        records = cached_coco_records(json_file, image_root, classes)
        # Detectron2 also uses this entry to write results with the category ids of the file.
        metadata[FILE_IDS] = dict(records.info["category_ids"])
        metadata["left_out"] = records.info["left_out"]
        keypoints = records.info["keypoints"], records.info["skeleton"]
        metadata.update(keypoint_metadata(*keypoints, records.columns, flip_map))
        found: Sequence[dict] = with_outlines(records) if boxes_as_masks else records
        return with_label_maps(found, image_root, label_root) if label_root else found

    return Dataset(load, names, metadata)


def middle_dataset(
    json_file: str,
    image_root: str,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    boxes_as_masks: bool = False,
) -> Dataset:
    """Declare photos annotated in MMDetection's middle format.

    Args:
        json_file: Path of the annotations.
        image_root: Folder of the photos.
        classes: Names of the classes to use; None uses all classes of the file.
        palette: One RGB color (0 to 255) per class, for pictures.
        boxes_as_masks: Whether objects without an outline get their box as one.
    """
    names = middle_classes(json_file) if classes is None else _names(classes)
    options = {"reader": "middle", "image_root": str(image_root), "classes": list(names)}
    metadata = {**_colors(palette, names), "image_root": image_root}

    def read() -> tuple[list[dict], dict[str, Any]]:
        info: dict[str, Any] = {}
        return read_middle(json_file, image_root, names, info), info

    def load() -> Sequence[dict]:
        records = cached_records(json_file, options, read)
        metadata["left_out"] = records.info["left_out"]
        return with_outlines(records) if boxes_as_masks else records

    return Dataset(load, names, metadata)


def voc_dataset(
    list_file: str,
    annotation_root: str,
    image_root: str,
    classes: Sequence[str] = VOC_CLASSES,
    palette: Sequence[Sequence[int]] | None = None,
    min_box_side: float = 0,
) -> Dataset:
    """Declare an image set of Pascal VOC, or of other data in the layout of its devkit.

    Boxes become xmin - 1 to xmax, as in Detectron2. Difficult objects are not trained on.

    Args:
        list_file: Names of the annotations, one per line, such as
            VOC2007/ImageSets/Main/trainval.txt.
        annotation_root: Folder of the XML files.
        image_root: Folder of the photos.
        classes: Names of the classes to use; VOC's 20 by default. Objects of other classes are
            dropped.
        palette: One RGB color (0 to 255) per class, for pictures.
        min_box_side: Objects with xmax - xmin or ymax - ymin below this number of pixels become
            difficult, like with `bbox_min_size` of MMDetection. For training sets only: the metrics
            ignore difficult objects.
    """
    classes = _names(classes)
    metadata = {**_colors(palette, classes), "image_root": image_root}
    options = {
        "reader": "voc",
        "annotation_root": str(annotation_root),
        "image_root": str(image_root),
        "classes": list(classes),
        "min_box_side": min_box_side,
    }

    def read() -> tuple[list[dict], dict[str, Any]]:
        info: dict[str, Any] = {}
        records, _ = read_voc(annotation_root, image_root, classes, list_file, info)
        for annotation in (a for record in records for a in record["annotations"]):
            x0, y0, x1, y1 = annotation["bbox"]
            if min(x1 - x0, y1 - y0) - 1 < min_box_side:
                annotation |= {"iscrowd": 1, "difficult": 1}
        return records, info

    def load() -> Sequence[dict]:
        files = listed_stamp(annotation_root, list_file)
        records = cached_records(list_file, options | {"files": files}, read)
        metadata["left_out"] = records.info["left_out"]
        return records

    return Dataset(load, classes, metadata)


def open_images_dataset(
    annotation_file: str,
    image_root: str,
    class_file: str | None = None,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
) -> Dataset:
    """Declare photos with Open Images' boxes; missing photos are skipped and counted.

    Groups (`IsGroupOf`) are not trained on.

    Args:
        annotation_file: CSV of the boxes, such as oidv6-train-annotations-bbox.csv, or the text
            file of the Challenge 2019 that MMDetection reads.
        image_root: Folder of the photos, with or without subfolders.
        class_file: CSV that names the classes, such as class-descriptions-boxable.csv; None takes
            the `*class-descriptions*.csv` beside `annotation_file`.
        classes: Names of the classes to use; None uses all classes of `class_file`, in its order.
        palette: One RGB color (0 to 255) per class, for pictures.

    Raises:
        UserError: There is no class file, and `classes` are not given.
    """
    descriptions = class_descriptions(annotation_file, class_file)
    names = tuple(dict.fromkeys(descriptions.values())) if classes is None else _names(classes)
    if not names:
        raise UserError(
            f"no *class-descriptions*.csv is beside {annotation_file}; put it there, or set"
            f" class_file ({command('prepare')} open_images says where to get it)"
        )
    metadata = {**_colors(palette, names), "image_root": image_root}
    options = {
        "reader": "open_images",
        "image_root": str(image_root),
        "classes": list(names),
        "descriptions": sorted(descriptions.items()),
    }

    def load() -> Sequence[dict]:
        folders = {"folders": folder_times(image_root)}
        records = cached_columns(
            annotation_file,
            options | folders,
            lambda: read_columns(annotation_file, image_root, names, class_file),
        )
        metadata["left_out"] = records.info["left_out"]
        return records

    return Dataset(load, names, metadata)


def annotated_dataset(
    json_file: str | None,
    image_root: str | None,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    missing_ok: bool = False,
    boxes_as_masks: bool = False,
    flip_map: Sequence[Sequence[str]] | None = None,
    **options: str | None,
) -> Dataset:
    """Declare annotated photos in a format that is detected from the file.

    Args:
        json_file: A file in a format that training reads: COCO, VIA (JSON, project or CSV) or
            MMDetection's middle format. None declares a missing dataset: loading it raises a
            UserError.
        image_root: Folder of the photos.
        classes: Names of the classes to use; None uses all classes of the file. If the regions of
            a VIA file have no class, they belong to the single class given here.
        palette: One RGB color (0 to 255) per class, for pictures.
        missing_ok: Whether a class may be missing from the file, as in a validation set; it then
            has no objects. Otherwise a missing class is an error.
        boxes_as_masks: Whether objects without an outline get their box as one.
        flip_map: As in `coco_dataset`; only for COCO files.
        attribute (str or null): The attribute that holds the class of VIA's regions; None detects
            it.
        options: `Format.options` of all formats, including `attribute`. A format ignores the
            options of others.

    Raises:
        TypeError: No format has such an option.
    """
    if unknown := options.keys() - {name for form in formats().values() for name in form.options}:
        raise TypeError(f"annotated_dataset() got an unexpected keyword argument {min(unknown)!r}")
    if not json_file or not image_root:
        return Dataset(partial(_not_given, json_file), ())
    # Formats of packages come and go, so that the cache only knows d2ext's own.
    own = cached_value(json_file, "built-in format", lambda: detect_built_in(json_file))
    form = formats()[own or detect_format(json_file)]
    declare = pkgutil.resolve_name(form.dataset) if form.dataset else partial(format_dataset, form)
    more: dict[str, Any] = {name: options[name] for name in form.options if name in options}
    if flip_map is not None:
        more["flip_map"] = flip_map
    reader = partial(declare, json_file, image_root, boxes_as_masks=boxes_as_masks, **more)
    dataset = reader(classes, palette)
    if classes is None or not missing_ok:
        return dataset
    metadata = dict(dataset.metadata)

    def load() -> Sequence[dict]:
        loaded = dataset
        try:
            records = loaded.load()
        except UserError:  # probably a missing class; any other error is raised again below
            loaded = with_classes(reader(), dataset.classes)
            records = loaded.load()
        metadata.update(loaded.metadata)
        return records

    return Dataset(load, dataset.classes, metadata)


def format_dataset(
    form: Format,
    json_file: str,
    image_root: str,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    boxes_as_masks: bool = False,
    **options: str | None,
) -> Dataset:
    """Declare annotated photos in a format with `in_training`, using only its `read`.

    Nothing is cached on disk, as the next version of a package may read a file in another way.

    Args:
        form: The format.
        json_file: Path of the annotations.
        image_root: Folder of the photos.
        classes: Names of the classes to use; None uses all classes of the file.
        palette: One RGB color (0 to 255) per class, for pictures.
        boxes_as_masks: Whether objects without an outline get their box as one.
        options: Options of the format.
    """
    wanted = None if classes is None else _names(classes)
    read = partial(form.read, json_file, image_root, wanted, **options)

    def load() -> Sequence[dict]:
        records = list(read()[0])
        return with_outlines(records) if boxes_as_masks else records

    names = tuple(read()[1]) if wanted is None else wanted
    return Dataset(load, names, {**_colors(palette, names), "image_root": image_root})


def with_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Map a dataset's classes to `classes` by name; drop objects of other classes."""
    mine, classes = tuple(dataset.classes), tuple(classes)
    made = select_metadata(dataset.metadata, mine, classes)

    def load() -> Sequence[dict]:
        records = dataset.load()
        selected = select_classes(records, mine, classes)
        made.update(select_metadata(dataset.metadata, mine, classes))  # entries added by `load`
        others = len(columns_of(records).categories) - len(columns_of(selected).categories)
        made["left_out"] = not_read(made.get("left_out", {}), others)
        return selected

    return Dataset(load, classes, made)


def with_images(dataset: Dataset, listed: Collection[str], keep: bool) -> Dataset:
    """Return the part of a dataset whose file names are listed, or are not listed.

    The metadata `json_file` becomes `part_of`, because evaluators would read the whole file.

    Args:
        dataset: The dataset.
        listed: File names as in the records.
        keep: Whether to keep the listed images, or the others.
    """

    def metadata() -> dict[str, Any]:
        renamed = {"json_file": "part_of"}
        known = {renamed.get(key, key): value for key, value in dataset.metadata.items()}
        if keep:
            known.pop("left_out", None)  # known for the whole file only, so the other part has it
        return known

    made = metadata()

    def load() -> Sequence[dict]:
        records = dataset.load()
        made.update(metadata())  # entries added by `load`
        chosen = [(os.fspath(name) in listed) == keep for name in file_names_of(records)]
        return select(records, np.array(chosen, bool))

    return Dataset(load, dataset.classes, made)


def _not_given(json_file: str | None) -> list[dict]:
    lacks = "the folder of its images" if json_file else "the annotation file"
    raise UserError(
        f"{lacks} is not given; for a custom/ recipe, set data.json=FILE and data.images=FOLDER to"
        " split a file, or data.train.json=FILE and data.train.images=FOLDER, and data.val.json and"
        f" data.val.images for the validation, which {option('--no-validate')} skips"
    )


def _names(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str):
        raise UserError(f"classes={classes!r} is a string; give a list, such as [{classes}]")
    return tuple(classes)


def _colors(palette: Sequence[Sequence[int]] | None, classes: Sequence[str]) -> dict:
    if not palette:
        return {}
    colors = [tuple(color) for color in palette]
    bytes_ = all(len(c) == 3 and all(type(v) is int and 0 <= v < 256 for v in c) for c in colors)
    if len(colors) != len(classes) or not bytes_:
        raise UserError(
            f"palette={colors}: give a color [red, green, blue], 0 to 255, for each of the"
            f" {len(classes)} classes ({', '.join(classes[:8])})"
        )
    return {"thing_colors": colors}
