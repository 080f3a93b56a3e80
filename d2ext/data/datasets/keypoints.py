"""Describe a dataset's keypoints in Detectron2's metadata: names, mirrored pairs and limbs."""

import colorsys
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from d2ext.data.formats.json_io import nearest
from d2ext.data.records.columns import Columns
from d2ext.errors import UserError

_SIDES = re.compile(r"left|right|(?<![a-z])[lr](?![a-z])", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}


def keypoint_metadata(
    names: Sequence[str],
    skeleton: Sequence[Sequence[int]],
    columns: Columns,
    flip_map: Sequence[Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return Detectron2's metadata about the keypoints of a dataset.

    Args:
        names: Names of the keypoints; if their number is not that of the objects' keypoints, they
            are named by their index.
        skeleton: Pairs of indices into `names`, from 1, as in COCO's categories.
        columns: Columns of the dataset.
        flip_map: Pairs of names that a horizontal flip exchanges; None takes names that differ only
            in left and right (or l and r).

    Returns:
        `keypoint_names`, `keypoint_flip_map` and `keypoint_connection_rules`; empty if no object
        has keypoints, or if their numbers differ.

    Raises:
        UserError: A name in `flip_map` does not exist.
    """
    numbers = np.unique(columns.keypoints[:, 0])
    numbers = numbers[numbers > 0]
    if len(numbers) != 1:
        return {}
    if len(names) != numbers[0]:
        names, skeleton = [f"keypoint_{i}" for i in range(numbers[0])], []
    for pair in flip_map or ():
        for name in pair:
            if name not in names:
                hint = nearest(name, names)
                raise UserError(f"flip_map: {name!r} is not the name of a keypoint; {hint}")
    colors = [colorsys.hsv_to_rgb(i / len(skeleton), 0.8, 1) for i in range(len(skeleton))]
    return {
        "keypoint_names": list(names),
        "keypoint_flip_map": _pairs(names) if flip_map is None else list(map(tuple, flip_map)),
        "keypoint_connection_rules": [
            (names[i - 1], names[j - 1], tuple(round(255 * c) for c in color))
            for (i, j), color in zip(skeleton, colors, strict=True)
        ],
    }


def flip_indices(dataset_names: str | Sequence[str]) -> list[int]:
    """Return `keypoint_hflip_indices` of a mapper for registered datasets.

    Like Detectron2's `create_keypoint_hflip_indices`, but it reads a dataset whose keypoints are
    not known yet, so that a config can call it:
    `mapper.keypoint_hflip_indices=L(flip_indices)(dataset_names="${dataloader.train.dataset.names}")`

    Args:
        dataset_names: One or several datasets with the same keypoints.

    Returns:
        For each keypoint, the index of the one that takes its place in a flipped image.

    Raises:
        UserError: A dataset has no keypoints, or they differ from those of another dataset.
    """
    every = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    names, flip_map = _known_keypoints(every[0])
    for other in every[1:]:
        if _known_keypoints(other) != (names, flip_map):
            raise UserError(
                f"the datasets {every[0]} and {other} have different keypoints or flip_map; train"
                " on one of them, or make both the same"
            )
    swapped = flip_map | {right: left for left, right in flip_map.items()}
    return [names.index(swapped.get(name, name)) for name in names]


def _known_keypoints(dataset: str) -> tuple[list[str], dict[str, str]]:
    """Return the names and the flip map of a registered dataset."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    metadata = MetadataCatalog.get(dataset)
    if not metadata.get("keypoint_names"):
        DatasetCatalog.get(dataset)  # sets the metadata
    if not (names := metadata.get("keypoint_names")):
        raise UserError(
            f"dataset {dataset!r} has no keypoints, or objects with different numbers of them; a"
            " model with a keypoint head needs the same number for all objects"
        )
    return list(names), dict(metadata.get("keypoint_flip_map", ()))


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of names that differ only in their side; the left one comes first."""
    pairs = []
    for name in names:
        sides = [match[0].lower() for match in _SIDES.finditer(name)]
        mirrored = _SIDES.sub(_mirrored, name)
        if sides and sides[0].startswith("l") and mirrored in names:
            pairs.append((name, mirrored))
    return pairs


def _mirrored(side: re.Match) -> str:
    text = side[0]
    other = _OTHER[text.lower()]
    return other.upper() if text.isupper() else other.title() if text.istitle() else other
