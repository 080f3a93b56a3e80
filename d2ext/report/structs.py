"""A folder of JSON files, one a data set, as structs; what is damaged is named and left out."""

from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def read_structs(folder: Path, kind: type[T], damaged: list[str]) -> dict[str, T]:
    """Data set to its content; sentences on what cannot be read are added to `damaged`."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found[file.stem] = msgspec.json.decode(file.read_bytes(), type=kind)
        except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            damaged.append(f"{folder.name}/{file.name} is damaged and was left out.")
    return found
