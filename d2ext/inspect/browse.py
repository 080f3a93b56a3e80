"""Show a config's images as annotated, and as its mapper returns them."""

import contextlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.detection_utils import check_image_size, convert_image_to_rgb
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks

from d2ext.data.loading.image_io import read_photo
from d2ext.data.loading.mapper import cropped
from d2ext.errors import UserError, format_exception
from d2ext.inspect.samples import Split, open_split
from d2ext.terminal import progress
from d2ext.text import plural
from d2ext.visualize.drawing import font_has
from d2ext.visualize.sheets import AnnotatedImage, make_figures, make_tile, write_html, write_jpegs

logger = logging.getLogger(__name__)

_INDEX = "browse.json"  # marks a folder as written by this command
_MAX_SHOWN = 5  # messages of one kind


def browse(
    cfg: Any,
    name: str,
    split: str = "train",
    *,
    count: int | None = 24,
    start: int = 0,
    output: str | os.PathLike[str] | None = None,
    html: bool = False,
    augmented: bool = True,
) -> int:
    """Write pages of a config's images: as annotated, and beside that the model's input.

    For train, these are exactly the samples that a run of the config takes at the same positions,
    for any number of processes and workers. For val and test, each image is shown as the model gets
    it, together with the ground truth, which only the metric gets.

    Args:
        cfg: Config returned by `load_config`.
        name: Name of the config, for the heading and the default of `output`.
        split: train, val or test.
        count: Number of images to show; None for an entire epoch.
        start: Position of the first image, in the order of training or in the test set.
        output: Output folder, which is replaced; None for `work_dirs/browse/<name>_<split>`.
        html: Write one HTML page instead of JPEG pages.
        augmented: False shows only the annotated images, without the mapper.

    Returns:
        The exit status: 0, or 1 if images cannot be shown, which are logged and skipped.

    Raises:
        UserError: The config is invalid, no image can be shown, or the folder holds other files.
    """
    folder = Path(output or Path("work_dirs") / "browse" / f"{name}_{split}")
    _refuse_mixing(folder)
    opened = open_split(cfg, split, start)
    total = opened.images if count is None else count
    if split != "train":  # training continues with the next epoch
        total = min(total, opened.images - start)
        if total <= 0:
            raise UserError(
                f"--start {start}: {split} has only {opened.images} images, counted from 0"
            )
    pairs = itertools.islice(opened.pairs(augmented), total)
    seen = _Seen(augmented)
    render = make_figures if html else make_tile
    with _replaced(folder) as new, progress("images", total) as advance:
        shown = _show(enumerate(pairs, start), opened, render, seen, advance)
        if html:
            files = [new / "index.html"]
            facts = {"split": split, "data": ", ".join(opened.names), "from place": start}
            if split == "train":
                facts["seed"] = cfg.dataloader.train.seed
            write_html(shown, files[0], name, facts, seen.closing)
        else:
            files = write_jpegs(shown, new)
        if not seen.images:
            raise UserError(f"none of {total} images can be shown; {seen.failures[0]}")
        index = {"files": [f.name for f in files], "config": name, "split": split, **vars(seen)}
        (new / _INDEX).write_text(json.dumps(index, indent=1) + "\n")
    closing = seen.closing()
    for line in closing["notes"]:
        logger.warning(line)
    if not html:
        _warn_of_glyphs(opened.metadata.thing_classes)
    pages = f" and {len(files) - 1} more" if len(files) > 1 else ""
    logger.info("%s %s%s", closing["summary"], folder / files[0].name, pages)
    return int(bool(seen.failures))


@dataclass
class _Seen:
    """Counts of the images shown so far."""

    augmented: bool
    images: int = 0
    objects: int = 0
    input_objects: int = 0
    failures: list[str] = field(default_factory=list)

    def closing(self) -> dict[str, Any]:
        """Return the summary and the notes, for the end of an HTML page and for the terminal."""
        summary = f"{self.images} images, {self.objects} annotated objects"
        if self.augmented:
            summary += f", {self.input_objects} in the model's input"
        notes = self.failures[:_MAX_SHOWN]
        if more := len(self.failures) - len(notes):
            notes.append(f"and {more} more images cannot be shown")
        return {"summary": summary + ".", "notes": notes}


def _show(
    pairs: Iterable[tuple[int, tuple[dict, Any]]],
    split: Split,
    render: Callable[[list[AnnotatedImage], Any], Any],
    seen: _Seen,
    advance: Callable[[int], None],
) -> Iterator[Any]:
    """Yield the pairs rendered one by one; count them, and skip those that cannot be shown."""
    for place, (record, sample) in pairs:
        advance(1)
        try:
            if isinstance(sample, UserError):
                raise sample
            views = [_annotated(place, record)]
            if sample is not None:
                views.append(_mapped(sample, split.about(place), split.image_format))
            rendered = render(views, split.metadata)
        except UserError as e:
            seen.failures.append(str(e))
        except Exception as e:  # one broken image or annotation must not stop the others
            seen.failures.append(f"{record['file_name']}: {format_exception(e)}")
        else:
            seen.images += 1
            seen.objects += len(views[0].instances)
            seen.input_objects += len(views[1].instances) if len(views) > 1 else 0
            yield rendered


def _annotated(place: int, record: dict) -> AnnotatedImage:
    photo = read_photo(record["file_name"], "RGB")
    title = f"#{place}  {Path(record['file_name']).name}"
    if tile := record.get("tile"):
        photo = cropped(photo, tile)
        title += f", tile at {tile[0]}, {tile[1]}"
    check_image_size(record, photo)
    instances = record.get("annotations", [])
    return AnnotatedImage(photo, instances, title, _facts(photo, instances))


def _mapped(sample: dict, title: str, image_format: str) -> AnnotatedImage:
    photo = convert_image_to_rgb(sample["image"].permute(1, 2, 0), image_format)
    photo = np.ascontiguousarray(photo.clip(0, 255), dtype=np.uint8)
    instances = list(_annotations(sample["instances"])) if "instances" in sample else []
    if sources := sample.get("pasted_from"):
        title += f", with objects of {', '.join(Path(file).name for file in sources)}"
    return AnnotatedImage(photo, instances, title, _facts(photo, instances))


def _facts(photo: np.ndarray, instances: list[dict]) -> str:
    crowds = sum(bool(x.get("iscrowd")) for x in instances)
    crowd = f" ({plural(crowds, 'crowd')})" if crowds else ""
    return f"{photo.shape[1]} x {photo.shape[0]}, {plural(len(instances), 'object')}{crowd}"


def _annotations(instances: Instances) -> Iterator[dict[str, Any]]:
    """Yield Detectron2's ground truth instances as annotations."""
    masks = instances.gt_masks if instances.has("gt_masks") else [None] * len(instances)
    if isinstance(masks, BitMasks):
        masks = [mask_util.encode(np.asfortranarray(m, np.uint8)) for m in masks.tensor.numpy()]
    elif isinstance(masks, PolygonMasks):
        masks = masks.polygons
    boxes, classes = instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist()
    for box, category, mask in zip(boxes, classes, masks, strict=True):
        yield {
            "bbox": box,
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": category,
            "segmentation": mask,
        }


def _warn_of_glyphs(classes: list[str]) -> None:
    lacking = [f"class {i} = {name}" for i, name in enumerate(classes) if not font_has(name)]
    if lacking:
        more = f", and {len(lacking) - _MAX_SHOWN} more" if len(lacking) > _MAX_SHOWN else ""
        logger.warning(
            "The pages' font lacks characters of class names: %s%s; --html shows them",
            ", ".join(lacking[:_MAX_SHOWN]),
            more,
        )


def _refuse_mixing(folder: Path) -> None:
    """Raise a UserError if a folder contains anything but pages of this command."""
    if not os.path.lexists(folder):
        return
    try:
        found = set(os.listdir(folder))
        ours = {_INDEX, *json.loads((folder / _INDEX).read_text())["files"]} if found else found
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(
            f"--output {folder} was not written by this command; choose another folder"
        ) from None
    if found - ours:
        raise UserError(
            f"--output {folder} also contains {min(found - ours)}; choose another folder"
        )


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `folder` if the block ends without an exception."""
    folder = folder.resolve()
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        new.mkdir(parents=True)
        yield new
        _refuse_mixing(folder)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(new, folder)
    except OSError as e:
        raise UserError(f"cannot write {folder}: {e.strerror or e}; choose another --output") from e
    finally:
        shutil.rmtree(new, ignore_errors=True)
