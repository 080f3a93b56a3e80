"""Register the `datasets` of a config in Detectron2's catalogs, in every process."""

import pydoc
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from d2ext.config.registrations import registered_by_config
from d2ext.config.renamed import moved_import
from d2ext.data.datasets.declare import Dataset, with_classes, with_images
from d2ext.data.prepare.cityscapes import name_labels
from d2ext.data.records.plain_records import plain_records
from d2ext.data.records.records import Records, View, applied
from d2ext.errors import UserError, format_exception

_registered: dict[str, Any] = {}  # the declarations
_datasets: dict[str, Dataset] = {}
_others: dict[str, tuple[Any, dict]] = {}  # registered outside of a config, before `use_classes`
_wholes: dict[str, Dataset] = {}  # before `use_images`
_LEFT_OUT = "left_out"  # an entry of `Dataset.metadata` that changes when a dataset is read again


def register_datasets(datasets: Mapping[str, Any]) -> None:
    """Register the `datasets` section of a config in this process.

    Registering a name again with the same content does nothing. Detectron2's own datasets are
    already registered; `name_labels` makes its Cityscapes readable.

    Raises:
        UserError: A name contains a dot or belongs to another dataset, or a declaration is invalid.
    """
    from detectron2.config import instantiate
    from detectron2.data import DatasetCatalog
    from omegaconf import OmegaConf

    name_labels()
    for name, declaration in datasets.items():
        if not hasattr(declaration, "get") or "_target_" not in declaration:
            raise UserError(
                f"datasets.{name} is not an L(function)(...), such as L(via_dataset)(...)"
            )
        if "." in name:
            raise UserError(f"datasets: the name {name!r} contains a dot; use '_' instead")
        content = OmegaConf.to_container(declaration, resolve=True)
        if _registered.get(name) == content:
            continue
        if registered_by_config(name) and _same_file(name, content):
            continue  # `declare_registered` made this declaration of it
        if name in DatasetCatalog.list():
            other = _registered.get(name, "a registration outside of the config")
            raise UserError(
                f"datasets.{name} is declared twice with different content: {other} and {content};"
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
        _register(name, _plain(name, dataset))
        _registered[name] = content


def declare_registered(cfg: Any) -> None:
    """Declare the datasets that a config file registered itself, in place.

    Otherwise, a run's config.yaml would need that file. Only COCO files are declared
    (`register_coco_instances`), because other registrations are functions.
    """
    from detectron2.data import MetadataCatalog
    from omegaconf import OmegaConf

    for split in ("train", "val", "test"):
        names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names") or []
        for name in [names] if isinstance(names, str) else names:
            if name in cfg.datasets or not registered_by_config(name):
                continue
            metadata = MetadataCatalog.get(name)
            if metadata.get("evaluator_type") != "coco" or not metadata.get("json_file"):
                continue
            cfg.datasets[name] = {
                "_target_": "d2ext.data.datasets.declare.coco_dataset",
                "json_file": metadata.json_file,
                "image_root": metadata.image_root,
                "flip_map": metadata.get("keypoint_flip_map"),
            }


def _same_file(name: str, declaration: Any) -> bool:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    file = MetadataCatalog.get(name).get("json_file") if name in DatasetCatalog else None
    return file is not None and file == declaration.get("json_file")


def use_images(name: str, listed: Collection[str], keep: bool) -> None:
    """Reduce a registered dataset to a part of its images; see `with_images`.

    Another call replaces the part.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    whole = _wholes.setdefault(name, _datasets[name])
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    _register(name, with_images(whole, listed, keep))


def use_classes(name: str, classes: Sequence[str]) -> None:
    """Map the classes of a registered dataset to `classes` by name.

    Objects of other classes are dropped from now on.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    metadata = MetadataCatalog.get(name).as_dict()
    mine = metadata.pop("thing_classes")
    del metadata["name"]
    if list(mine) != list(classes):
        if name not in _datasets:
            _others[name] = DatasetCatalog[name], {**metadata, "thing_classes": mine}
        dataset = _datasets.get(name) or Dataset(DatasetCatalog[name], mine, metadata)
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        _register(name, with_classes(dataset, classes))


def _plain(name: str, dataset: Dataset) -> Dataset:
    """Convert the records of a dataset to plain values, whatever types its function returns."""
    if isinstance(dataset.classes, str):
        raise UserError(
            f"datasets.{name}: classes={dataset.classes!r} is a string; give a list, such as"
            f" [{dataset.classes!r}]"
        )
    metadata = dict(dataset.metadata)

    def load() -> Sequence[dict]:
        records = dataset.load()
        metadata.update(dataset.metadata)  # entries added by `load`
        if isinstance(records, Records | View):  # made by d2ext's readers
            return records
        if not isinstance(records, Sequence) or isinstance(records, str):
            raise UserError(
                f"datasets.{name}: `load` returned a {type(records).__name__}; return a list of"
                " Detectron2's dataset dicts"
            )
        left_out = Counter(dataset.metadata.get("left_out", {}))
        plain = plain_records(records, name, left_out)
        metadata["left_out"] = dict(left_out)
        return plain

    return Dataset(load, dataset.classes, metadata)


def _register(name: str, dataset: Dataset) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    DatasetCatalog.register(name, partial(_load, name, dataset))
    MetadataCatalog.get(name).set(thing_classes=list(dataset.classes), **_fixed(dataset))
    _datasets[name] = dataset


def counts_of(name: str) -> dict[str, Any]:
    """Return `left_out` from the last `load` of a dataset, if known; see `Dataset.metadata`."""
    metadata = _datasets[name].metadata if name in _datasets else {}
    return {_LEFT_OUT: metadata[_LEFT_OUT]} if _LEFT_OUT in metadata else {}


def _fixed(dataset: Dataset) -> dict[str, Any]:
    """Return the metadata without the counts, because Detectron2 forbids changing a value."""
    return {key: value for key, value in dataset.metadata.items() if key != _LEFT_OUT}


def _require_importable(name: str, target: Any) -> None:
    where = target if isinstance(target, str) else f"{target.__module__}.{target.__qualname__}"
    try:
        found = pydoc.locate(where)
    except pydoc.ErrorDuringImport as e:
        cause = e.value or e
        words = moved_import(cause) or format_exception(cause)
        raise UserError(f"datasets.{name}: {where} cannot be imported: {words}") from e
    if found is None:
        raise UserError(
            f"datasets.{name}: {where} cannot be imported; put dataset functions in a module that"
            " every process can import, not in the config file"
        )


def unregister_datasets() -> None:
    """Undo `register_datasets` and `use_classes`, so that the process can use another config."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for name in _datasets:
        if name in DatasetCatalog:  # the caller may have removed it
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    for name, (load, metadata) in _others.items():
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(**metadata)
    for known in (_registered, _datasets, _others, _wholes):
        known.clear()


def _load(name: str, dataset: Dataset) -> Sequence[dict]:
    """Load the records and convert box modes to Detectron2's enum, which readers do not import."""
    from detectron2.data import MetadataCatalog

    records = dataset.load()
    MetadataCatalog.get(name).set(**_fixed(dataset))
    if isinstance(records, list):
        return [_with_box_modes(record) for record in records]
    return applied(records, _with_box_modes)


def _with_box_modes(record: dict) -> dict:
    from detectron2.structures import BoxMode

    for annotation in record.get("annotations", ()):
        annotation["bbox_mode"] = BoxMode(annotation["bbox_mode"])
    return record
