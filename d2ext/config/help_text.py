"""Meanings of the keys of a config outside of `train`: a table, and docstrings of callables."""

import inspect
import re
from typing import Any

# A key, or an argument of a callable (`ResizeShortestEdge.short_edge_length`), to its type and its
# meaning. They have no docstring, or one that says less; an empty type is that of the value.
_HELP = {
    "data.root": ("", "the folder of the datasets"),
    "datasets": ("", "nothing to declare: Detectron2 has registered them"),
    "data.train.json": ("str or null", "the annotation file"),
    "data.train.images": ("str or null", "the folder of its photos"),
    "data.val.json": ("str or null", "the annotation file of the validation"),
    "data.val.images": ("str or null", "the folder of its photos"),
    "data.classes": (
        "list or null",
        "names; None: all of the training file; the validation follows",
    ),
    "data.boxes_as_masks": (
        "",
        "objects without an outline use their box as one; False: an error",
    ),
    "data.class_attribute": (
        "str or null",
        "the attribute of VIA's regions that holds their class; None: it is detected",
    ),
    "data.palette": ("list or null", "[[220, 20, 60], ...]: one color per class, for pictures"),
    "dataloader.test": ("dict or null", "as val, for --eval-only; None: val itself"),
    "dataloader.tta.min_sizes": ("", "short sides in pixels, each evaluated"),
    "dataloader.tta.max_size": ("", "longest side in pixels"),
    "dataloader.tta.flip": ("", "evaluates mirrored images, too"),
    "model.roi_heads.num_classes": (
        "int or null",
        "classes; None: as many as the training data has",
    ),
    "ResizeShortestEdge.short_edge_length": (
        "int or list",
        "short side in pixels; one of several is drawn",
    ),
    "WarmupParamScheduler.warmup_length": ("", "part of the run; train.warmup_iters decides"),
    "MultiStepParamScheduler.values": ("", "the multipliers, one up to each milestone"),
    "MultiStepParamScheduler.milestones": ("", "where it changes; the last is the end of the run"),
    "CosineParamScheduler.start_value": ("", "the multiplier at the beginning of the run"),
    "CosineParamScheduler.end_value": ("", "the multiplier at its end"),
}
_ARGUMENT = re.compile(r"( +)((?:\w+, )*\w+)(?: \((.*?)\))?:\s*(.*)")
_DEFAULT = re.compile(r"\s*\(default: (?:[^()]|\([^()]*\))*\)")  # that of the signature holds


def written_help(key: str, target: Any = None) -> tuple[str, str]:
    """Return type and meaning of a key by the table here; empty texts if it is not in there.

    Args:
        key: Dotted.
        target: The callable that the key is an argument of, if it is one.
    """
    argument = f"{getattr(target, '__name__', '')}.{key.rpartition('.')[2]}"
    return _HELP.get(key) or _HELP.get(argument) or ("", "")


def documented(target: Any) -> dict[str, tuple[str, str]]:
    """Return type and meaning of a callable's arguments by its docstring and those of its bases.

    The docstrings are in Google's style; a type that is not in there is an empty text.
    """
    levels = [x for c in target.__mro__ for x in (c, c.__init__)] if inspect.isclass(target) else []
    found: dict[str, tuple[str, str]] = {}
    for level in levels or [target]:
        found = _arguments(inspect.getdoc(level) or "") | found
    return found


def _arguments(text: str) -> dict[str, tuple[str, str]]:
    found, names, indent = {}, [], None
    lines = text.partition("Args:\n")[2].splitlines()
    for line in lines:
        match = _ARGUMENT.fullmatch(line)
        deep = len(line) - len(line.lstrip())
        if line.strip() and deep == 0:
            break  # the next section
        if match and (indent is None or deep == indent):
            indent, names = deep, match[2].split(", ")
            found |= dict.fromkeys(names, (match[3] or "", match[4]))
        elif line.strip() and indent is not None and deep > indent:
            for name in names:
                kind, said = found[name]
                found[name] = kind, f"{said} {line.strip()}".lstrip()
    return {name: (kind, _DEFAULT.sub("", said)) for name, (kind, said) in found.items()}
