"""Let config files register datasets in Detectron2's catalogs each time that they are loaded."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from d2ext.errors import UserError

_owners: dict[str, Path] = {}  # datasets that config files have registered, and by which


@contextlib.contextmanager
def registering(config_file: Path) -> Iterator[None]:
    """Allow a config file, executed in the block, to register datasets that it registered before.

    Detectron2's catalog refuses a known name, so a config that calls `register_coco_instances`
    could be loaded only once in a process.

    Raises:
        UserError: Another config has registered the same name for another annotation file.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    earlier = {
        name: (DatasetCatalog[name], MetadataCatalog.get(name))
        for name in _owners
        if name in DatasetCatalog
    }
    for name in earlier:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    known = set(DatasetCatalog)
    try:
        yield
    finally:
        new = set(DatasetCatalog) - known
        for name in earlier.keys() - new:
            DatasetCatalog[name], MetadataCatalog[name] = earlier[name]
    for name in new & earlier.keys():
        then, now = (m.get("json_file") for m in (earlier[name][1], MetadataCatalog.get(name)))
        if _owners[name] != config_file and then != now:
            raise UserError(
                f"{config_file} registers the dataset {name!r} for {now}, but {_owners[name]} has"
                f" registered it for {then}; rename one"
            )
    _owners.update(dict.fromkeys(new, config_file))


def registered_by_config(name: str) -> bool:
    """Return whether a config file, loaded in this process, has registered a dataset."""
    return name in _owners
