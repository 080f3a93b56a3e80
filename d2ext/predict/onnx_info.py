"""Metadata of an exported ONNX file: what a program needs to know in order to run it.

Each field of `ModelInfo` is a key of the file's `metadata_props`, with its value as JSON. Inputs
and outputs of the graph:

| name | type and shape | content |
|---|---|---|
| input `image` | uint8 (height, width, 3) | the resized image, in the order of `channels` |
| output `boxes` | float32 (objects, 4) | x0, y0, x1, y1 in pixels of the resized image; clip them |
| output `scores` | float32 (objects,) | from 0 to 1, in descending order |
| output `classes` | int64 (objects,) | indices into `classes` |
| output `masks` | float32 (objects, mask_size, mask_size) | probabilities in the boxes |

The output `masks` exists only if `mask_size` is not 0. The resized image has a short side of
`short_edge` pixels, unless its long side would then be longer than `max_size`, to which it is
scaled down in that case; both sides are rounded to whole pixels (half up). It is resized with
Pillow's bilinear filter, which is antialiased. The photo is upright: its EXIF orientation is
applied first.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from d2ext.errors import UserError

FORMAT = 1


class Provenance(msgspec.Struct, kw_only=True):
    """Origin of an exported model; there are no paths in it.

    Attributes:
        run: Name of the run.
        config: File name of the config, or the name of the recipe.
        weights: File name of the checkpoint.
        weights_sha256: SHA-256 of that file.
        averaged: Whether the weights are averaged (EMA), as they were evaluated.
        created: Time of the export, in ISO 8601, UTC.
        versions: Versions of the packages by name.
    """

    run: str = ""
    config: str = ""
    weights: str = ""
    weights_sha256: str = ""
    averaged: bool = False
    created: str = ""
    versions: dict[str, str] = {}


class ModelInfo(msgspec.Struct, kw_only=True):
    """Metadata of an exported model.

    Attributes:
        d2ext_format: Version of this format, 1.
        architecture: `Faster R-CNN`, `Mask R-CNN`, `Cascade R-CNN` or `RetinaNet`.
        classes: Names of the classes, in the order of the output `classes`.
        channels: Order of the input's channels, `RGB` or `BGR`.
        short_edge: Length of the resized image's short side, in pixels.
        max_size: Largest length of its long side, in pixels.
        score_threshold: Lowest score in the outputs.
        shown_score_threshold: Lowest score of the objects to show, 0.5 as in `d2ext predict`.
        nms_threshold: IoU over which the lower of two boxes of a class was dropped.
        max_objects: Largest number of objects.
        mask_size: Height and width of the output `masks`; 0 without masks.
        mask_threshold: Lowest probability of the pixels inside a mask, 0.5.
        precision: `float32`, or `float16` for weights stored at half precision, with which the
            model still computes in float32.
        provenance: Origin of the model.
    """

    d2ext_format: int = FORMAT
    architecture: Literal["Faster R-CNN", "Mask R-CNN", "Cascade R-CNN", "RetinaNet"]
    classes: list[str]
    channels: Literal["RGB", "BGR"]
    short_edge: int
    max_size: int
    score_threshold: float
    shown_score_threshold: float = 0.5
    nms_threshold: float
    max_objects: int
    mask_size: int
    mask_threshold: float = 0.5
    precision: Literal["float32", "float16"] = "float32"
    provenance: Provenance = msgspec.field(default_factory=Provenance)


def to_metadata(info: ModelInfo) -> dict[str, str]:
    """Return the entries of `metadata_props`, JSON by key."""
    plain = msgspec.to_builtins(info)
    return {key: msgspec.json.encode(value).decode() for key, value in plain.items()}


def from_metadata(entries: Mapping[str, str], name: str) -> ModelInfo:
    """Return the metadata of a file; unknown keys are ignored.

    Args:
        entries: Entries of `metadata_props`, as text by key.
        name: Name of the file, for messages.

    Raises:
        UserError: d2ext did not write the file, or another version did.
    """
    remedy = "export the run again with this version (d2ext export RUN)"
    if "d2ext_format" not in entries:
        raise UserError(f"{name} was not exported by d2ext: it has no metadata; {remedy}")
    version = entries["d2ext_format"]
    if version != str(FORMAT):
        raise UserError(
            f"{name} has version {version} of the exported format, but this d2ext reads version"
            f" {FORMAT}; {remedy}"
        )
    try:
        known = {f.name for f in msgspec.structs.fields(ModelInfo)} & entries.keys()
        plain = {key: msgspec.json.decode(entries[key]) for key in known}
        return msgspec.convert(plain, ModelInfo)
    except msgspec.MsgspecError as e:
        raise UserError(f"{name} has damaged metadata ({e}); {remedy}") from e
