"""overview/<dataset>.json and .jpg of a run directory: what its data sets hold."""

from pathlib import Path

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


def read_overviews(folder: Path, damaged: list[str]) -> dict[str, Overview]:
    """Data set to its overview; sentences on what cannot be read are added to `damaged`."""
    overviews = {}
    for file in sorted(folder.glob("*.json")):
        try:
            overviews[file.stem] = msgspec.json.decode(file.read_bytes(), type=Overview)
        except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            damaged.append(f"overview/{file.name} is damaged and was left out.")
    return overviews
