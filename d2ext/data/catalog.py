"""Datasets declared in the config, registered in Detectron2's catalogs by every process.

A dataset function of the config, such as `via_dataset`, returns a `Dataset`, whose `load` reads the
annotations when a loader or an evaluator asks for them (`coco_dataset` without `classes` reads the
file for its categories at once).
"""

import pydoc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from d2ext.data.cityscapes import name_labels
from d2ext.data.formats.coco import coco_classes, read_coco
from d2ext.data.formats.via import read_via
from d2ext.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """How to load a dataset, and what is known of it before.

    Attributes:
        load: returns Detectron2's dataset dicts; may raise UserError.
        classes: names in the order of `category_id`.
        metadata: further entries for Detectron2's MetadataCatalog; `load` may add to them what it
            learns from the annotations.
    """

    load: Callable[[], list[dict]]
    classes: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def via_dataset(
    json_file: str,
    image_root: str,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]] | None = None,
    attribute: str | None = None,
) -> Dataset:
    """Photos annotated with the VGG Image Annotator.

    Args:
        json_file: VIA annotations or project (versions 1 and 2).
        image_root: folder of the photos.
        classes: class names; with more than one, `attribute` says where regions hold theirs.
        palette: one RGB colour (0 to 255) a class, for pictures.
        attribute: the region attribute that holds the class name.
    """
    classes = _names(classes)
    load = partial(read_via, json_file, image_root, classes, attribute=attribute)
    return Dataset(load, classes, {**_colors(palette), "image_root": image_root})


def coco_dataset(
    json_file: str,
    image_root: str,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
) -> Dataset:
    """Photos annotated in a COCO JSON; `classes` None takes the file's categories by their ids."""
    names = coco_classes(json_file) if classes is None else _names(classes)
    metadata = {**_colors(palette), "image_root": image_root, "json_file": json_file}

    def load() -> list[dict]:
        # The entry by which Detectron2, too, writes results in the file's own category ids.
        records, metadata["thing_dataset_id_to_contiguous_id"] = read_coco(
            json_file, image_root, names
        )
        return records

    return Dataset(load, names, metadata)


def _names(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str):
        raise UserError(f"classes={classes!r} is one text; give a list, such as [{classes}]")
    return tuple(classes)


def _colors(palette: Sequence[Sequence[int]] | None) -> dict:
    return {"thing_colors": [tuple(c) for c in palette]} if palette else {}


_registered: dict[str, Any] = {}


def register_datasets(datasets: Mapping[str, Any]) -> None:
    """Registers the `datasets` section of a config in this process.

    Registering a name again with the same content does nothing. Detectron2's own data sets are
    registered already; its Cityscapes is made readable (`name_labels`).

    Raises:
        UserError: a name with a dot, one that is taken by another dataset, or a bad declaration.
    """
    from detectron2.config import instantiate
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from omegaconf import OmegaConf

    name_labels()
    for name, declaration in datasets.items():
        if not hasattr(declaration, "get") or "_target_" not in declaration:
            raise UserError(f"datasets.{name} is no L(function)(...), such as L(via_dataset)(...)")
        if "." in name:
            raise UserError(f"datasets: the name {name!r} holds a dot; use '_' instead")
        content = OmegaConf.to_container(declaration, resolve=True)
        if _registered.get(name) == content:
            continue
        if name in DatasetCatalog.list():
            theirs = _registered.get(name, "a registration outside of the config")
            raise UserError(
                f"datasets.{name} is declared twice with other content: {theirs} and {content};"
                " rename one"
            )
        _require_importable(name, declaration.get("_target_"))
        try:
            dataset = instantiate(declaration)
        except TypeError as e:
            raise UserError(f"datasets.{name}: {e}") from e
        if not isinstance(dataset, Dataset):
            raise UserError(
                f"datasets.{name}: _target_ returned {type(dataset).__name__}, not a d2ext Dataset;"
                " use via_dataset, coco_dataset or a function that returns one"
            )
        DatasetCatalog.register(name, partial(_load, name, dataset))
        MetadataCatalog.get(name).set(thing_classes=list(dataset.classes), **dataset.metadata)
        _registered[name] = content


def _require_importable(name: str, target: Any) -> None:
    where = target if isinstance(target, str) else f"{target.__module__}.{target.__qualname__}"
    if pydoc.locate(where) is None:
        raise UserError(
            f"datasets.{name}: {where} cannot be imported; a dataset function lives in a module"
            " that every process finds, not in the config file"
        )


def unregister_datasets() -> None:
    """Forgets what `register_datasets` registered, for a process that goes on to another config."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for name in _registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    _registered.clear()


def _load(name: str, dataset: Dataset) -> list[dict]:
    """The records with Detectron2's enum for box modes (the readers import no detectron2)."""
    from detectron2.data import MetadataCatalog
    from detectron2.structures import BoxMode

    records = dataset.load()
    MetadataCatalog.get(name).set(**dataset.metadata)
    for record in records:
        for annotation in record.get("annotations", ()):
            annotation["bbox_mode"] = BoxMode(annotation["bbox_mode"])
    return records
