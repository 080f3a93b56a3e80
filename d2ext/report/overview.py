"""overview/<dataset>.json and .jpg of a run directory: what its data sets hold."""

import msgspec


class Overview(msgspec.Struct):
    """A data set's file."""

    images: int
    objects: int
    classes: list[tuple[str, int, int]]  # name, objects, images with one
    width: tuple[int, int, int] | None  # pixels: least, median, most
    height: tuple[int, int, int] | None
    object_sizes: dict[str, int]
    measured: int  # images whose objects are in `object_sizes`
