"""Classify annotations in dataset dicts: objects to train on, flags, masks and keypoints."""

from collections.abc import Mapping, Sequence

NO_MASK, POLYGON, RLE = range(3)
CROWD, DIFFICULT, GROUP_OF = 1, 2, 4  # bits
_FLAGS = {"iscrowd": CROWD, "difficult": DIFFICULT, "is_group_of": GROUP_OF}


def is_object(annotation: Mapping) -> bool:
    """Return whether an annotation is trained on: it is not a crowd, a group or difficult."""
    return not any(map(annotation.get, _FLAGS))


def mask_kind(annotation: dict) -> int:
    """Return the kind of an annotation's mask: NO_MASK, POLYGON or RLE."""
    masks = annotation.get("segmentation")
    kinds: dict[type, int] = {list: POLYGON, dict: RLE}
    kind = kinds.get(type(masks), NO_MASK)
    return kind if kind == NO_MASK or masks else NO_MASK


def flag_bits(annotation: Mapping) -> int:
    """Return an annotation's flags as a bitwise OR of CROWD, DIFFICULT and GROUP_OF."""
    return sum(bit for name, bit in _FLAGS.items() if annotation.get(name))


def count_keypoints(keypoints: Sequence[float]) -> tuple[int, int]:
    """Return the number of keypoints in [x, y, visibility, ...], and how many are labeled."""
    return len(keypoints) // 3, sum(v > 0 for v in keypoints[2::3])
