"""Translate names in configs, run directories and checkpoints of version 0.1.

A config names functions and classes by their dotted path (`_target_`), and config.yaml and the
checkpoints of a run store these names. `RENAMED` maps them, so that old files stay usable without
modules under the old names.
"""

import os
import re
import traceback
from typing import Any

# Module, or full name of a function or class, before 0.2 -> since 0.2. Only names that a config can
# contain, and that users' dataset functions and mappers import.
RENAMED = {
    "d2ext.data.catalog": "d2ext.data.datasets.declare",
    "d2ext.data.classes": "d2ext.data.datasets.classes",
    "d2ext.data.loader": "d2ext.data.loading.loader",
    "d2ext.data.mapper": "d2ext.data.loading.mapper",
    "d2ext.data.mapping": "d2ext.data.loading.sample_errors",
    "d2ext.data.photo": "d2ext.data.loading.image_io",
    "d2ext.data.sampler": "d2ext.data.loading.sampler",
    "d2ext.data.training_set": "d2ext.data.datasets.mixing",
    "d2ext.modeling.sampled_rpn": "d2ext.modeling.cpu.sampled_rpn",
    "d2ext.modeling.timm_backbone": "d2ext.modeling.backbones.timm_backbone",
}


def current_name(name: str) -> str:
    """Return the current dotted name for one of version 0.1; return other names unchanged."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if new := RENAMED.get(".".join(parts[:length])):
            return ".".join([new, *parts[length:]])
    return name


def rename_targets(node: Any) -> None:
    """Replace names of version 0.1 in the `_target_` strings of a config, in place.

    Args:
        node: An omegaconf DictConfig or ListConfig.
    """
    from omegaconf import DictConfig, ListConfig, OmegaConf

    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig | ListConfig):
            rename_targets(value)
        elif key == "_target_" and isinstance(value, str) and value != current_name(value):
            node[key] = current_name(value)


def moved_import(error: BaseException) -> str | None:
    """Return where a name of version 0.1 is imported and how to change it; None for other errors.

    Args:
        error: Error raised by an import, possibly inside other imports.
    """
    if not isinstance(error, ImportError) or not error.name:
        return None
    missing = re.match(r"cannot import name '(\w+)'", str(error))
    old = f"{error.name}.{missing[1]}" if missing else error.name
    new = current_name(old)
    modules = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>"]
    if new == old or not modules:
        return None
    file = modules[-1].filename.removeprefix(os.path.join(os.getcwd(), ""))
    return f"{file}:{modules[-1].lineno}: {old} is {new} since 0.2; change the import"
