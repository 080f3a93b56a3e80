"""Split a COCO file into several, without changing an image, annotation or other field."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from d2ext.data.formats.coco_file import read_content
from d2ext.data.formats.json_io import no_collection, read_bytes, truncate_repr
from d2ext.data.splitting.split import SplitOptions, split_images
from d2ext.errors import UserError
from d2ext.invocation import command
from d2ext.text import plural, shortened

_MAX_CLASSES = 40  # rows of the table
_Id = int | str | float


class _Image(msgspec.Struct, gc=False):
    id: _Id
    file_name: str


class _Annotation(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id | None = None
    iscrowd: Any = 0
    ignore: Any = 0
    difficult: Any = 0
    is_group_of: Any = 0

    @property
    def is_object(self) -> bool:
        return not (self.iscrowd or self.ignore or self.difficult or self.is_group_of)


class _Category(msgspec.Struct, gc=False):
    id: _Id
    name: str


@dataclass(frozen=True)
class _Content:
    """A COCO file as text, and what a split needs of it.

    Attributes:
        parts: The text of each top-level value, by key.
        images: The text of each image.
        annotations: The text of each annotation.
        names: File name of each image.
        image_of: Index of each annotation's image, int (A,).
        class_of: Index of each annotation's category, int (A,); -1 if it is not an object.
        classes: Names of the categories.
    """

    parts: Mapping[str, msgspec.Raw]
    images: Sequence[msgspec.Raw]
    annotations: Sequence[msgspec.Raw]
    names: Sequence[str]
    image_of: np.ndarray
    class_of: np.ndarray
    classes: Sequence[str]

    def text(self, chosen: np.ndarray) -> Iterator[bytes]:
        """Yield the text of a COCO file with the chosen images, bool (N,), in parts."""
        annotations = chosen[self.image_of]
        for i, (key, part) in enumerate(self.parts.items()):
            yield b",\n" if i else b"{"
            yield json.dumps(key).encode() + b": "
            if key in ("images", "annotations"):
                rows = chosen if key == "images" else annotations
                entries: Sequence[msgspec.Raw] = getattr(self, key)
                yield b"[" + b",\n".join(entries[i] for i in np.flatnonzero(rows).tolist()) + b"]"
            else:
                yield bytes(part)
        yield b"}\n"


@no_collection()
def split_coco(
    json_file: Path, output: Path, images: Path | None, options: SplitOptions
) -> list[str]:
    """Split a COCO file into train.json and val.json, or into folders fold_1, fold_2, ... of both.

    Entries are copied as text, in their order.

    Args:
        json_file: COCO file.
        output: Folder to create.
        images: Folder of the images, to find near-duplicates; None does not search for them.
        options: How to split.

    Returns:
        Lines for the user: what was grouped, a table, warnings, and the files.

    Raises:
        UserError: The file is not a valid COCO file, it cannot be split, or the folder exists and
            is not empty or cannot be written; in these cases, nothing is written.
    """
    options.check()
    check_new(output)
    if images is not None and not images.is_dir():
        raise UserError(f"the image folder {images} does not exist; correct --images")
    content = _read(json_file)
    counted = content.class_of >= 0
    sides, lines = split_images(
        content.names,
        content.image_of[counted],
        content.class_of[counted],
        images,
        options,
    )
    if images is None:
        lines.append("near-duplicates: not searched for, because --images DIR is not given")
    if options.folds is None:
        titles, parts = ["train", "val"], {"": sides == 1}
    else:
        titles = [f"fold {k + 1}" for k in range(options.folds)]
        parts = {f"fold_{k + 1}": sides == k for k in range(options.folds)}
    _write(content, parts, output)
    lines += _table(content, sides, titles)
    lines += _warnings(content, sides, options.folds)
    where = "" if options.folds is None else f" in fold_1 to fold_{options.folds}"
    return [*lines, f"{output}: train.json and val.json{where}"]


def check_new(output: Path) -> None:
    """Raise a UserError if a path is not free for a new folder; an empty folder is fine."""
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"the folder {output} is not empty; give a new --output, or remove it")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; give a folder for train.json and val.json")


def _read(json_file: Path) -> _Content:
    data = read_bytes(json_file)
    try:
        return _parsed(data)
    except (msgspec.MsgspecError, KeyError, RecursionError):
        content = read_content(json_file)  # accepts UTF-16, or names what is wrong with the file
    check = f"list all errors with `{command('check')} {json_file}`"
    try:
        return _parsed(json.dumps(content).encode())
    except msgspec.MsgspecError as e:
        raise UserError(f"{json_file}: {e}; {check}") from e
    except KeyError as e:
        raise UserError(f"{json_file}: {e.args[0]}; {check}") from e


def _parsed(data: bytes) -> _Content:
    """Parse a COCO file.

    Raises:
        msgspec.MsgspecError: The text is not JSON, or an entry lacks a field.
        KeyError: A list is missing, an id is repeated, or an annotation refers to an unknown id.
    """
    parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    images = msgspec.json.decode(parts["images"], type=list[_Image])
    annotations = msgspec.json.decode(parts["annotations"], type=list[_Annotation])
    categories = msgspec.json.decode(parts["categories"], type=list[_Category])
    categories.sort(key=lambda category: (isinstance(category.id, str), category.id))
    image_ids: dict[Any, int] = {image.id: i for i, image in enumerate(images)}
    if len(image_ids) < len(images):
        raise KeyError("two images have the same id")
    category_ids: dict[Any, int] = {c.id: i for i, c in enumerate(categories)}
    if len(category_ids) < len(categories):
        raise KeyError("two categories have the same id")
    image_of = _indices("image_id", [a.image_id for a in annotations], image_ids)
    labels = [a.category_id for a in annotations]
    class_of = _indices("category_id", labels, {**category_ids, None: -1})
    objects = np.array([a.is_object for a in annotations], bool)
    return _Content(
        parts,
        msgspec.json.decode(parts["images"], type=list[msgspec.Raw]),
        msgspec.json.decode(parts["annotations"], type=list[msgspec.Raw]),
        [image.file_name for image in images],
        image_of,
        np.where(objects, class_of, -1),
        [category.name for category in categories],
    )


def _indices(name: str, ids: Sequence[Any], known: Mapping[Any, int]) -> np.ndarray:
    """Return the index of each annotation's image or category; raise KeyError if one is unknown."""
    for i, value in enumerate(ids):
        if value not in known:
            raise KeyError(f"annotations[{i}] has the unknown {name} {truncate_repr(value)}")
    return np.array([known[value] for value in ids], int)


def _write(content: _Content, parts: Mapping[str, np.ndarray], output: Path) -> None:
    """Write the folder as a whole; `parts` maps subfolders to their validation images."""
    place = output.resolve()  # a link to an empty folder stays
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as folder:
            made = Path(folder) / "made"
            for name, chosen in parts.items():
                (made / name).mkdir(parents=True, exist_ok=True)
                for file, rows in (("train.json", ~chosen), ("val.json", chosen)):
                    with open(made / name / file, "wb") as f:
                        f.writelines(content.text(rows))
            os.replace(made, place)
    except OSError as e:
        raise UserError(f"cannot write {output}: {e.strerror or e}; choose another --output") from e


def _table(content: _Content, sides: np.ndarray, titles: Sequence[str]) -> list[str]:
    """Return a table of images, objects and classes on each side; a fold's is its validation."""
    objects, per_class = _counts(content, sides, len(titles))
    shown = content.classes[:_MAX_CLASSES]
    empty = np.bincount(content.image_of[content.class_of >= 0], minlength=len(sides)) == 0
    rows = [
        ("images", np.bincount(sides, minlength=len(titles))),
        ("without objects", np.bincount(sides[empty], minlength=len(titles))),
        ("objects", objects),
        *((f"  {name}", per_class[:, i]) for i, name in enumerate(shown)),
    ]
    names = max(len(name) for name, _ in rows)
    widths = [max(7, len(title)) for title in titles]
    cells = [("", titles), *rows]
    lines = [
        f"{name:{names}}"
        + "".join(f"  {value:>{width}}" for value, width in zip(values, widths, strict=True))
        for name, values in cells
    ]
    more = len(content.classes) - len(shown)
    return lines + ([f"  ... and {plural(more, 'more class')}"] if more else [])


def _warnings(content: _Content, sides: np.ndarray, folds: int | None) -> Iterator[str]:
    """Yield a warning for the classes that a training or validation set lacks."""
    _, per_class = _counts(content, sides, folds or 2)
    total = per_class.sum(0)
    for k, side in enumerate(per_class):
        if folds is None:
            pairs = [(("train.json", "val.json")[k], side)]
        else:
            pairs = [(f"fold_{k + 1}/train.json", total - side), (f"fold_{k + 1}/val.json", side)]
        for file, counts in pairs:
            if lacking := [
                content.classes[i] for i in np.flatnonzero((counts == 0) & (total > 0)).tolist()
            ]:
                yield f"warning: {file} has no object of {shortened(lacking, 10)}"
    if unused := [content.classes[i] for i in np.flatnonzero(total == 0).tolist()]:
        yield f"note: the file has no object of {shortened(unused, 10)}"


def _counts(content: _Content, sides: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the objects of each side, int (S,), and those of each class, int (S, C)."""
    counted = content.class_of >= 0
    shape = number, len(content.classes)
    per_class = np.zeros(shape, int)
    np.add.at(per_class, (sides[content.image_of[counted]], content.class_of[counted]), 1)
    return per_class.sum(1), per_class
