"""Help texts for config keys outside `train`, from a table and from docstrings of callables."""

import inspect
import re
from typing import Any

# Key, or argument of a callable (`ResizeShortestEdge.short_edge_length`), to its type and meaning,
# where no docstring says as much. An empty type means the type of the value.
_HELP = {
    "data.root": ("", "folder of the datasets"),
    "datasets": ("", "nothing to declare: Detectron2 has registered them"),
    "data.json": ("str or null", "annotation file to split into training and validation"),
    "data.images": ("str or null", "folder of its images"),
    "data.val_fraction": ("", "share of the images of data.json for validation"),
    "data.split_seed": ("", "seed of the split of data.json"),
    "data.group_by": (
        "str or null",
        "regular expression; images of data.json with the same match stay on the same side",
    ),
    "data.near_duplicates": ("", "keep photos of data.json that look alike on the same side"),
    "data.train.json": ("str or null", "annotation file for training, instead of data.json"),
    "data.train.images": ("str or null", "folder of its images"),
    "data.val.json": ("str or null", "annotation file for validation; data.json is not split then"),
    "data.val.images": ("str or null", "folder of its images"),
    "data.classes": (
        "list or null",
        "class names, also for validation; None: all classes of the training file",
    ),
    "data.boxes_as_masks": (
        "",
        "use the box as the mask of objects without one; False: an error",
    ),
    "data.class_attribute": (
        "str or null",
        "attribute of VIA regions that holds their class; None: it is detected",
    ),
    "data.augmentation": (
        "str, list or null",
        "none, light, strong, aerial, or a list of augmentations; None: the recipe's own",
    ),
    "data.auto": (
        "",
        "choose image sizes, anchors, batch, length and sampling from the training data, except for"
        " what you set",
    ),
    "data.recipe": (
        "str or null",
        "recipe whose values count as not set by you; None: only overrides count as set",
    ),
    "data.by_hand": ("", "keys that you have set; overrides are added"),
    "data.palette": ("list or null", "[[220, 20, 60], ...]: one color per class, for pictures"),
    "data.tiles": (
        "int or null",
        "side in pixels of the tiles that large photos are cut into; None: photos stay whole",
    ),
    "data.tile_overlap": ("", "share of a tile's side that neighboring tiles have in common"),
    "data.tile_min_share": (
        "",
        "share of an object's area inside of a tile below which training drops it from the tile",
    ),
    "dataloader.test": ("dict or null", "like val, for --eval-only; None: use val"),
    "dataloader.tta.min_sizes": ("", "short sides in pixels; each one is evaluated"),
    "dataloader.tta.max_size": ("", "longest side in pixels"),
    "dataloader.tta.scales": ("", "CornerNet: factors of the image's size; each one is evaluated"),
    "dataloader.tta.flip": ("", "also evaluate mirrored images"),
    "model.roi_heads.num_classes": (
        "int or null",
        "number of classes; None: as many as the training data has",
    ),
    "ResizeShortestEdge.short_edge_length": (
        "int or list",
        "short side in pixels; one of several is drawn at random",
    ),
    "WarmupParamScheduler.warmup_length": (
        "",
        "fraction of the run; train.warmup_iters takes precedence",
    ),
    "MultiStepParamScheduler.values": (
        "",
        "multipliers of the learning rate, each up to its milestone",
    ),
    "MultiStepParamScheduler.milestones": (
        "",
        "steps at which the multiplier changes; the last is the end of the run",
    ),
    "CosineParamScheduler.start_value": ("", "multiplier at the start of the run"),
    "CosineParamScheduler.end_value": ("", "multiplier at the end of the run"),
}
_ARGUMENT = re.compile(r"( +)((?:\w+, )*\w+)(?: \((.*?)\))?:\s*(.*)")
_DEFAULT = re.compile(r"\s*\(default: (?:[^()]|\([^()]*\))*\)")  # dropped; the signature has it


def written_help(key: str, target: Any = None) -> tuple[str, str]:
    """Return the type and meaning of a key from the table; empty texts if it is not there.

    Args:
        key: Dotted key.
        target: Callable that the key is an argument of, if any.
    """
    argument = f"{getattr(target, '__name__', '')}.{key.rpartition('.')[2]}"
    return _HELP.get(key) or _HELP.get(argument) or ("", "")


def documented(target: Any) -> dict[str, tuple[str, str]]:
    """Return types and meanings of a callable's arguments from its docstring and its bases'.

    The docstrings are in Google style; a type that they do not state is an empty text.
    """
    levels = [x for c in getattr(target, "__mro__", ()) for x in (c, c.__init__)]
    found: dict[str, tuple[str, str]] = {}
    for level in levels or [target]:
        found = _arguments(inspect.getdoc(level) or "") | found
    return found


def _arguments(text: str) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    names: list[str] = []
    indent = None
    lines = text.partition("Args:\n")[2].splitlines()
    for line in lines:
        match = _ARGUMENT.fullmatch(line)
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth == 0:
            break  # the next section
        if match and (indent is None or depth == indent):
            indent, names = depth, match[2].split(", ")
            found |= dict.fromkeys(names, (match[3] or "", match[4]))
        elif line.strip() and indent is not None and depth > indent:
            for name in names:
                kind, meaning = found[name]
                found[name] = kind, f"{meaning} {line.strip()}".lstrip()
    return {name: (kind, _DEFAULT.sub("", meaning)) for name, (kind, meaning) in found.items()}
