"""Let config files register datasets in Detectron2's catalogs each time that they are loaded."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from d2ext.errors import UserError

_owners: dict[str, Path] = {}  # datasets that config files have registered, and by which
_set_before: dict[str, dict[str, Any]] = {}  # their metadata before they were registered


@contextlib.contextmanager
def registering(config_file: Path) -> Iterator[None]:
    """Allow a config file, executed in the block, to register datasets that it registered before.

    Detectron2's catalog refuses a known name, so a config that calls `register_coco_instances`
    could be loaded only once in a process. Entries stay until the block replaces them, because a
    module that the config imports registers its datasets only once.

    Raises:
        UserError: Another config has registered the same name for another annotation file.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    register = DatasetCatalog.register
    registered: set[str] = set()
    earlier: dict[str, tuple[Any, Any]] = {}

    def register_again(name: str, func: Callable[[], list[Any]]) -> None:
        if name in _owners and name in DatasetCatalog and name not in registered:
            earlier[name] = DatasetCatalog.pop(name), MetadataCatalog.get(name)
            MetadataCatalog.remove(name)
            MetadataCatalog.get(name).set(**_set_before[name])
        before = dict(vars(MetadataCatalog.get(name)))
        register(name, func)
        registered.add(name)
        _set_before[name] = before

    DatasetCatalog.register = register_again
    try:
        yield
        for name, (_, metadata) in earlier.items():
            then, now = (m.get("json_file") for m in (metadata, MetadataCatalog.get(name)))
            if _owners[name] != config_file and then != now:
                raise UserError(
                    f"{config_file} registers the dataset {name!r} for {now}, but {_owners[name]}"
                    f" has registered it for {then}; rename one"
                )
    except BaseException:
        for name, (function, metadata) in earlier.items():
            DatasetCatalog[name], MetadataCatalog[name] = function, metadata
        raise
    finally:
        DatasetCatalog.register = register  # a config may load another one
        _owners.update(dict.fromkeys(registered - earlier.keys(), config_file))


def registered_by_config(name: str) -> bool:
    """Return whether a config file, loaded in this process, has registered a dataset."""
    return name in _owners
