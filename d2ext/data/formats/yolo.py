"""YOLO labels: a text file an image, a line an object (https://docs.ultralytics.com/datasets/).

Written here because neither library reads them as they are: hotcoco 1.3 reads boxes only, drops
the suffix of file names and subfolders; supervision 0.31 draws every polygon as a mask and takes
its outline again, which moves it by up to a pixel, and decodes the images.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from d2ext.data.formats.common import by_name, read_bytes, shown
from d2ext.data.formats.images import image_size, images_in
from d2ext.data.formats.shapes import LeftOut, add_box, add_polygons, new_record, parsed, rectangle
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "classes.txt", "obj.names")
_NO_LABELS = {"classes.txt", "train.txt", "val.txt", "test.txt", "readme.txt"}
_LONGEST = 1_000_000  # bytes of a data.yaml; PyYAML reads some 100 kB a second
_SLACK = 0.02  # of the image's side: annotation tools round, and some reach over the edge


def read_yolo(
    source: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    """Reads YOLO labels (detection or segmentation) into Detectron2's dataset dicts.

    A line is `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`, in parts of the image's width
    and height from its corner. In a set for poses, what follows the box is left out. An image
    without a label file has no objects.

    Args:
        source: `data.yaml`, or the folder with the labels, whose subfolders are those of the
            images. For a `data.yaml` it is found as YOLO finds it: `labels` for the last
            `images` of `image_root`, else the image folder itself.
        image_root: the folder of the images.
        classes: where the set has no names (`data.yaml` or `classes.txt`), the names in the order
            of the ids; else those wanted.

    Returns:
        One dict an image, sorted by file name, and the class names.

    Raises:
        UserError: a file is absent or malformed, or labels have no image.
    """
    source, image_root = Path(source), Path(image_root)
    found, poses = _names(source)
    if found is None:
        if classes is None:
            raise UserError(
                f"{source} comes without class names (data.yaml or classes.txt); give them in the"
                " order of their ids (--classes A B)"
            )
        found = tuple(classes)
    wanted = tuple(classes or found)
    index = by_name(found, wanted, source)
    folder = _labels(source, image_root)
    images = images_in(image_root)
    labels = {os.path.splitext(name)[0]: name for name in images}
    if len(labels) < len(images):
        names = sorted(set(images) - set(labels.values()))
        raise UserError(f"{image_root / names[0]} has a namesake with another suffix; rename one")
    files = {os.path.splitext(name)[0]: name for name in _label_files(folder)}
    unused = [name for stem, name in files.items() if stem not in labels]
    if unused:
        raise UserError(
            f"{len(unused)} label files have no image in {image_root}, the first is"
            f" {folder / unused[0]}; give --images the folder of their images"
        )
    records, left_out = [], LeftOut()
    for stem, name in labels.items():
        path = os.path.join(image_root, name)
        record = new_record(path, len(records) + 1, image_size(path))
        if stem in files:
            file = folder / files[stem]
            for number, line in enumerate(_lines(file), start=1):
                _add(record, line.split(), found, index, poses, left_out, f"{file}:{number}")
        records.append(record)
    if images and not files:
        raise UserError(f"{folder} has no label file of an image in {image_root}; check both")
    left_out.warn(logger, source)
    return records, wanted


def _add(
    record: dict,
    fields: list[str],
    found: Sequence[str],
    index: dict[str, int | None],
    poses: bool,
    left_out: LeftOut,
    where: str,
) -> None:
    if not fields:
        return
    if poses:
        fields = fields[:5]
    try:
        (number,) = parsed(fields[:1])
        if number not in range(len(found)):
            raise ValueError(f"the class {shown(fields[0])} is none of 0 to {len(found) - 1}")
        values = parsed(fields[1:])
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise ValueError(f"{len(fields)} numbers are neither a box nor a polygon")
        if not (min(values) >= -_SLACK and max(values) <= 1 + _SLACK):
            raise ValueError("coordinates go from 0 to 1")
    except ValueError as e:
        raise UserError(f"{where}: {e}; correct the label") from e
    name = found[int(number)]
    category = index[name]
    if category is None:
        left_out[f"of the class {shown(name)}"] += 1
        return
    width, height = record["width"], record["height"]
    if len(values) == 4:
        cx, cy, w, h = values
        box = rectangle(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        box = [box[0] * width, box[1] * height, box[4] * width, box[5] * height]
        add_box(record, category, box, left_out)
    else:
        sides = (width, height)
        polygon = [v * sides[i % 2] for i, v in enumerate(values)]
        add_polygons(record, category, [polygon], left_out)


def _lines(file: Path) -> list[str]:
    try:
        return read_bytes(file).decode("utf-8-sig").splitlines()
    except UnicodeError as e:
        raise UserError(f"{file} is no text ({e}); export the labels again") from e


def _names(source: Path) -> tuple[tuple[str, ...] | None, bool]:
    """The names by id, or None where there is no file of them; whether it is a set for poses."""
    if source.is_file():
        return _yaml_names(source)
    if not source.is_dir():
        raise UserError(f"{source} does not exist; give data.yaml or the folder of the labels")
    for folder in (source, *list(source.absolute().parents)[:2]):
        for name in _NAMES:
            if (file := folder / name).is_file():
                if file.suffix in (".yaml", ".yml"):
                    return _yaml_names(file)
                return _listed_names(file), False
    return None, False


def _listed_names(file: Path) -> tuple[str, ...]:
    """The names of a text file, a line each; blank lines may stand at its end only."""
    names = tuple(line.strip() for line in _lines(file))
    while names and not names[-1]:
        names = names[:-1]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{file} repeats a name, or has a blank line between names; correct it")
    return names


def _yaml_names(file: Path) -> tuple[tuple[str, ...], bool]:
    try:
        if len(text := read_bytes(file)) > _LONGEST:
            raise ValueError(f"{len(text)} bytes are too many")
        content = yaml.safe_load(text)
        names = content["names"]
        if isinstance(names, dict):
            if sorted(names) != list(range(len(names))):
                raise ValueError("the ids of `names` are not 0, 1, ...")
            names = [names[i] for i in range(len(names))]
        if not isinstance(names, list) or not names:
            raise TypeError("`names` is no list")
        if not all(isinstance(name, str | int | float) for name in names):
            raise TypeError("a name is no text")
        names = tuple(map(str, names))
        if len(set(names)) < len(names):
            raise ValueError("`names` repeats a name")
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as e:
        reason = shown(" ".join(str(e).split()) or type(e).__name__)
        raise UserError(f"{file} is no data.yaml of YOLO ({reason}); correct it") from e
    return names, "kpt_shape" in content


def _labels(source: Path, image_root: Path) -> Path:
    if source.is_dir():
        below = source / "labels"
        return below if below.is_dir() and not any(source.glob("*.txt")) else source
    parts = list(image_root.absolute().parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        if (labels := Path(*parts)).is_dir():
            return labels
    return image_root


def _label_files(folder: Path) -> list[str]:
    texts = (p for p in folder.rglob("*") if p.suffix.lower() == ".txt")
    files = (str(p.relative_to(folder)) for p in texts)
    return sorted(f for f in files if os.path.basename(f).lower() not in _NO_LABELS)
