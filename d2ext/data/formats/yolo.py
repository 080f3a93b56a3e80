"""YOLO labels: a text file per image, a line per object (https://docs.ultralytics.com/datasets/).

d2ext has its own reader because neither library reads them faithfully: hotcoco 1.3 reads only boxes
and drops file suffixes and subfolders; supervision 0.31 converts every polygon to a mask and traces
its outline, which moves it by up to a pixel, and decodes all images.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from d2ext.data.formats.annotation_kinds import is_object
from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, ReadOption, convert_advice
from d2ext.data.formats.geometry import LeftOut, add_box, add_polygons, parsed, rectangle
from d2ext.data.formats.image_folder import folded, sized_record, tails
from d2ext.data.formats.images import images_in
from d2ext.data.formats.json_io import (
    by_name,
    files_in,
    is_litter,
    nearest,
    read_text,
    truncate_repr,
)
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.writing import count_skipped_masks, label_files, one_outline
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "classes.txt", "obj.names")
_NO_LABELS = {"classes.txt", "train.txt", "val.txt", "test.txt"}
_SPLITS = ("train", "val", "valid", "validation", "test")  # keys of data.yaml
_LONGEST = 1_000_000  # characters of a data.yaml; PyYAML parses about 100 kB per second
_SLACK = 0.02  # fraction of the image's side: some tools round coordinates or exceed the edge


@dataclass(frozen=True)
class _Set:
    """Classes and splits of a dataset, as declared in `data.yaml` or a text file of names.

    Attributes:
        file: The declaring file, or None.
        names: Class names by id; None without a file.
        poses: Whether keypoints follow each box.
        base: The folder that paths of splits are relative to.
        splits: Folders and list files of each split, as written in the file.
    """

    file: Path | None = None
    names: tuple[str, ...] | None = None
    poses: bool = False
    base: Path = Path()
    splits: Mapping[str, list[str]] = field(default_factory=dict)


def read_yolo(
    source: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    split: str | None = None,
) -> tuple[list[dict], tuple[str, ...]]:
    """Read YOLO labels (detection or segmentation) into Detectron2's dataset dicts.

    A line is `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`, in fractions of the image's width
    and height from its corner. In pose datasets, the keypoints after the box are ignored, which a
    warning says. An image without a label file has no objects; a warning counts these images.

    Args:
        source: `data.yaml`, or the folder with the labels, whose subfolders match those of the
            images. With `data.yaml`, the labels are found as in YOLO: in `image_root` with
            the last `images` replaced by `labels`, else in `labels` beside `data.yaml`, else in
            the image folder. A folder `images` below `image_root` may likewise have its own
            `labels` beside it.
        image_root: The folder of the images.
        classes: For a dataset without names (`data.yaml` or `classes.txt`), all names in the order
            of their ids; otherwise the names of the classes to read.
        split: A key of `data.yaml`, such as `val`: read only the images in its folders and list
            files. None reads all images in `image_root`; if a split has only some of them, a
            warning counts the images of each split.

    Returns:
        One dict per image, sorted by file name, and the class names.

    Raises:
        UserError: A file is missing or malformed, labels have no image, or the split is unknown.
    """
    source, image_root = Path(source), Path(image_root)
    described = _described(source)
    found = described.names
    if found is None:
        if classes is None:
            raise UserError(
                f"{source} has no class names (data.yaml or classes.txt); give them in the order"
                " of their ids (--classes A B)"
            )
        found = tuple(classes)
    wanted = tuple(classes or found)
    index = by_name(found, wanted, source)
    folder = _labels(source, image_root)
    images = images_in(image_root)
    stems = {os.path.splitext(name)[0]: name for name in images}
    if len(stems) < len(images):
        names = sorted(set(images) - set(stems.values()))
        raise UserError(
            f"{image_root / names[0]} and another image differ only in suffix; rename one"
        )
    files = _label_files(folder, described)
    labels, unused = _matched(files, folder, images, image_root)
    if unused:
        raise UserError(
            f"{len(unused)} label files have no image in {image_root}, the first is"
            f" {folder / unused[0]}; give --images the folder of their images"
        )
    if images and not files:
        raise UserError(f"{folder} has no label files for the images in {image_root}; check both")
    chosen = _chosen(described, split, image_root, images)
    records: list[dict] = []
    left_out, bare = LeftOut(), 0
    for name in images:
        if name not in chosen:
            continue
        path = os.path.join(image_root, name)
        record = sized_record(path, len(records) + 1, None, source)
        if name in labels:
            file = folder / labels[name]
            for number, line in enumerate(_lines(file), start=1):
                where = f"{file}:{number}"
                _add(record, line.split(), found, index, described.poses, left_out, where)
        else:
            bare += 1
        records.append(record)
    if bare:
        logger.warning(
            "%s: %d of %d images have no label file and so no objects", source, bare, len(records)
        )
    if described.poses:
        logger.warning("%s: keypoints are not read, only the boxes before them", source)
    left_out.warn(logger, source)
    return records, wanted


def _matched(
    files: Sequence[str], folder: Path, images: Sequence[str], image_root: Path
) -> tuple[dict[str, str], list[str]]:
    """Return the label file of each image that has one, and the label files without an image."""
    exact: dict[str, str] = {}
    alike = defaultdict(set)
    for name in images:
        for stem in _label_stems(name, image_root, folder):
            exact.setdefault(stem, name)
            alike[folded(stem)].add(name)
    labels: dict[str, str] = {}
    unused = []
    for file in files:
        stem = os.path.splitext(file)[0]
        found = {exact[stem]} if stem in exact else alike.get(folded(stem), set())
        if len(found) != 1:
            unused.append(file)
            continue
        (name,) = found
        if name in labels:
            raise UserError(
                f"{folder / file} and {labels[name]} belong to the same image; remove one"
            )
        labels[name] = file
    return labels, unused


def _label_stems(image: str, image_root: Path, folder: Path) -> Iterator[str]:
    """Yield possible label paths of an image, relative to `folder` and without suffix.

    A label has the path of its image or, as in YOLO, `labels` in place of the last `images`.
    """
    stem = os.path.splitext(image)[0]
    yield stem
    *parents, name = stem.split(os.sep)
    if "images" in parents:
        parents[len(parents) - 1 - parents[::-1].index("images")] = "labels"
        yield os.path.relpath(os.path.join(image_root, *parents, name), folder)


def _chosen(
    described: _Set, split: str | None, image_root: Path, images: Sequence[str]
) -> Collection[str]:
    """Return the images of a split; if None, all of them, with a warning if a split has fewer."""
    if split is None:
        parts = {name: _split(described, name, image_root, images)[0] for name in described.splits}
        if any(0 < len(part) < len(images) for part in parts.values()):
            counts = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
            logger.warning(
                "%s: reading all %d images in %s, not one split (%s); --split NAME reads only one",
                described.file,
                len(images),
                image_root,
                counts,
            )
        return set(images)
    if split not in described.splits:
        known = nearest(split, described.splits) if described.splits else "no data.yaml has any"
        raise UserError(f"{described.file or 'the dataset'} has no split {split!r}; {known}")
    part, missing = _split(described, split, image_root, images)
    if missing or not part:
        example = f", the first is {missing[0]}" if missing else ""
        raise UserError(
            f"{described.file}: {len(missing) or 'all'} images or folders of the split {split} are"
            f" not in {image_root}{example}; give --images the folder that holds them"
        )
    return part


def _split(
    described: _Set, name: str, image_root: Path, images: Sequence[str]
) -> tuple[set[str], list[str]]:
    """Return the images of a split, relative to `image_root`, and its paths without an image."""
    known, part, missing = set(images), set(), []
    for entry in described.splits[name]:
        place = _place(described, entry)
        if place is None:
            missing.append(entry)
        elif place.is_dir():
            # The folder may contain all images.
            inner = "." if _relative(image_root, place) else _relative(place, image_root)
            below = [i for i in images if inner == "." or i.startswith(f"{inner}/")]
            part.update(below)
            if not below:
                missing.append(str(place))
        else:
            for number, line in enumerate(_lines(place), start=1):
                line = line.strip()
                if line and not line.startswith("#"):
                    image = _listed(line, place, described.base, image_root, known)
                    if image is None:
                        missing.append(f"{truncate_repr(line)} ({place}:{number})")
                    else:
                        part.add(image)
    return part, missing


def _place(described: _Set, entry: str) -> Path | None:
    """Return the folder or list file that an entry of `data.yaml` names, if it exists."""
    for base in (described.base, (described.file or Path()).parent):
        # Roboflow writes ../train/images for train/images; other machines' paths have a prefix.
        for path in (entry.replace("\\", "/"), *tails(entry, base)):
            if os.path.exists(base / path):
                return base / path
    return None


def _listed(line: str, file: Path, base: Path, image_root: Path, known: set[str]) -> str | None:
    """Return the image named in a line of a list file, relative to `image_root`, if it is there."""
    for folder in (file.parent, base):
        path = folder / line.replace("\\", "/")
        if os.path.exists(path):
            name = _relative(path, image_root)
            return name if name in known else None
    return next((tail for tail in tails(line, image_root) if tail in known), None)


def _relative(path: Path, folder: Path) -> str | None:
    """Return a path relative to a folder that contains it, by name or through links, or None."""
    for resolved in (os.path.abspath, os.path.realpath):
        relative = os.path.relpath(resolved(path), resolved(folder))
        if relative.split(os.sep, 1)[0] != "..":
            return relative
    return None


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
            raise ValueError(
                f"the class {truncate_repr(fields[0])} is not one of 0 to {len(found) - 1}"
            )
        values = parsed(fields[1:])
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise ValueError(f"{len(fields)} numbers are neither a box nor a polygon")
        if not (min(values) >= -_SLACK and max(values) <= 1 + _SLACK):
            raise ValueError("coordinates must be from 0 to 1")
    except ValueError as e:
        raise UserError(f"{where}: {e}; correct the label") from e
    name = found[int(number)]
    category = index[name]
    if category is None:
        left_out[f"of the class {truncate_repr(name)}"] += 1
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
    return read_text(file).splitlines()


def _described(source: Path) -> _Set:
    """Read the file that names the classes; for a folder, look in it and two levels above."""
    if source.is_file():
        return _described_by(source)
    if not source.is_dir():
        raise UserError(f"{source} does not exist; give data.yaml or the folder of the labels")
    for folder in (source, *list(source.absolute().parents)[:2]):
        for name in _NAMES:
            if (file := folder / name).is_file():
                is_yaml = file.suffix in (".yaml", ".yml")
                return _described_by(file) if is_yaml else _Set(file, _listed_names(file))
    return _Set()


def _listed_names(file: Path) -> tuple[str, ...]:
    """Return the names in a text file, one per line; blank lines are allowed only at the end."""
    names = tuple(line.strip() for line in _lines(file))
    while names and not names[-1]:
        names = names[:-1]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{file} repeats a name, or has a blank line between names; correct it")
    return names


class _Texts(yaml.SafeLoader):
    """Load `yes`, `no`, numbers and dates as strings; only null stays null."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].endswith((":null", ":merge"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _described_by(file: Path) -> _Set:
    try:
        if len(text := read_text(file)) > _LONGEST:
            raise ValueError(f"{len(text)} characters exceed the limit of {_LONGEST}")
        content = yaml.load(text, _Texts)
        if not isinstance(content, dict):
            raise TypeError("it is not a mapping of keys to values")
        names = content["names"]
        if isinstance(names, dict):
            ids = list(map(str, range(len(names))))
            if names.keys() != set(ids):
                raise ValueError("the ids of `names` are not 0, 1, ...")
            names = [names[i] for i in ids]
        if not isinstance(names, list) or not names:
            raise TypeError("`names` is not a list")
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is not text")
        names = tuple(names)
        if len(set(names)) < len(names):
            raise ValueError("`names` repeats a name")
        splits = {key: content[key] for key in _SPLITS if content.get(key)}
        splits = {key: [part] if isinstance(part, str) else part for key, part in splits.items()}
        paths = [path for part in splits.values() if isinstance(part, list) for path in part]
        lists = all(isinstance(part, list) for part in splits.values())
        if not lists or not all(isinstance(path, str) for path in paths):
            raise TypeError("a split is neither a path nor a list of paths")
        base = file.parent / str(content.get("path") or "")
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as e:
        if known := advice(file, "yolo"):
            raise UserError(f"{file} is not a YOLO data.yaml: it is {known}") from e
        reason = "it lacks `names`" if isinstance(e, KeyError) else " ".join(str(e).split())
        raise UserError(
            f"{file} is not a YOLO data.yaml ({truncate_repr(reason)}); correct it, or give the"
            " folder of the labels"
        ) from e
    return _Set(file, names, "kpt_shape" in content, base, splits)


def _labels(source: Path, image_root: Path) -> Path:
    """Return the folder of the label files."""
    if source.is_dir():
        below = source / "labels"
        texts = [file.name for file in source.glob("*.txt") if not is_litter(file.name)]
        return below if below.is_dir() and all(map(_is_other, texts)) else source
    for root in (image_root.absolute(), image_root.resolve()):
        parts = list(root.parts)
        if "images" in parts:
            parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
            if (labels := Path(*parts)).is_dir():
                return labels
    beside = source.parent / "labels"
    return beside if beside.is_dir() else image_root


def _label_files(folder: Path, described: _Set) -> list[str]:
    """Return the label files in a folder, relative to it, without the splits' list files."""
    places = [_place(described, entry) for part in described.splits.values() for entry in part]
    lists = {os.path.realpath(place) for place in places if place and place.is_file()}
    return [
        name
        for name in files_in(folder, {".txt"})
        if not _is_other(name) and not (lists and os.path.realpath(folder / name) in lists)
    ]


def _is_other(name: str) -> bool:
    """Return whether a text file is not a label file but lists names or images, or is a readme."""
    base = os.path.basename(name).lower()
    return base in _NO_LABELS or base.startswith("readme.")  # Roboflow's README.dataset.txt


def write_yolo(
    records: Sequence[dict],
    classes: Sequence[str],
    made: Path,
    images: str | Path | None,
    polygons: bool,
) -> dict[str, int]:
    """Write label files (outlines or boxes) in folders like the images', and the class names.

    The names are in data.yaml and, for LabelImg, in classes.txt.
    """
    counts = {"images": 0, "annotations": 0, "skipped_crowd": 0, "skipped_no_mask": 0}
    for record, file in label_files(records, made, ".txt"):
        counts["images"] += 1
        lines = []
        for a in record["annotations"]:
            if not is_object(a):
                counts["skipped_crowd"] += 1
                continue
            x0, y0, x1, y1 = a["bbox"]
            numbers = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
            if polygons and not (numbers := one_outline(a)):
                counts["skipped_no_mask"] += 1
                continue
            sides = (record["width"], record["height"])
            values = (f"{c / sides[i % 2]:.6f}" for i, c in enumerate(numbers))
            lines.append(f"{a['category_id']} {' '.join(values)}\n")
        counts["annotations"] += len(lines)
        file.write_text("".join(lines))
    content = {"nc": len(classes), "names": list(classes)}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    (made / "data.yaml").write_text(text, encoding="utf-8")
    (made / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    return counts if polygons else counts | count_skipped_masks(records)


def _detect(head: FileHead) -> bool:
    is_text = not head.root and head.value is None
    return is_text and head.suffix in (".yaml", ".yml", ".txt")


FORMAT = Format(
    name="yolo",
    title="YOLO",
    advice=convert_advice("a file of a YOLO dataset", "yolo", "INPUT")
    + ", where INPUT is data.yaml or the folder of the labels",
    detect=_detect,
    read=read_yolo,
    source="YOLO, detection and segmentation: data.yaml, or the folder of the labels",
    options={
        "split": ReadOption(
            "--split",
            "read only the images of this split of data.yaml (train, val, test): its folders or"
            " list files, such as train.txt (default: all images in --images)",
        )
    },
    write={
        "yolo": partial(write_yolo, polygons=False),
        "yolo_seg": partial(write_yolo, polygons=True),
    },
)
