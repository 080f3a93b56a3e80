"""Read a COCO or LVIS annotation file as ground truth, a large one in a process of its own.

All objects are kept unchanged (the policy `strict` of `coco_file`), so that the results equal
pycocotools' results for the file. A run has the same results, unless the file has objects that a
run drops: boxes without an area and invalid polygons. Here, boxes without an area always count as
missed, and their number is logged.
"""

import contextlib
import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pycocotools.mask

from d2ext.data.formats.coco_file import Box, read_strict
from d2ext.data.formats.json_io import read_typed
from d2ext.errors import UserError
from d2ext.evaluation.instances import GroundTruth, keypoint_column
from d2ext.guard import die_with_parent
from d2ext.limits import usable_cores

logger = logging.getLogger(__name__)

_LARGE = 5_000_000  # bytes of a file from which a second process is faster


@dataclass(frozen=True)
class DatasetFile:
    """A COCO annotation file.

    Attributes:
        path: Path of the file.
        ground_truth: Ground truth; images and classes are sorted by id.
        category_ids: Ids of the classes.
    """

    path: Path
    ground_truth: GroundTruth
    category_ids: Sequence[int]


class _Area(msgspec.Struct, gc=False):
    image_id: int | str
    bbox: Box | None = None
    area: float | None = None


class _AreaLists(msgspec.Struct):
    annotations: list[_Area]


class _Keypoints(msgspec.Struct, gc=False):
    keypoints: list[float] | None = None


class _KeypointLists(msgspec.Struct):
    annotations: list[_Keypoints]


def read_dataset(path: Path, with_masks: bool, with_keypoints: bool = False) -> DatasetFile:
    """Read a COCO annotation file.

    Args:
        path: Path of the file.
        with_masks: Read segmentations, which takes most of the time.
        with_keypoints: Read keypoints.

    Raises:
        UserError: The file is not valid, as in `read_strict`, or keypoints are malformed.
    """
    dataset = _read_silently(path, with_masks, with_keypoints)
    _warn_of_flat_boxes(dataset)
    return dataset


def _warn_of_flat_boxes(dataset: DatasetFile) -> None:
    if flat := int((dataset.ground_truth.boxes[:, 2:] == 0).any(1).sum()):
        logger.warning(
            "%s: %d objects have a box without an area and always count as missed (a run drops"
            " them)",
            dataset.path,
            flat,
        )


def _read_silently(path: Path, with_masks: bool, with_keypoints: bool) -> DatasetFile:
    """Return the result of `read_dataset`, without the log of a reader that may not be used."""
    coco = read_strict(path, with_masks)
    keypoints = _read_keypoints(path) if with_keypoints else None
    ground_truth = GroundTruth(
        image_ids=coco.image_ids,
        file_names=coco.image_names,
        heights=coco.heights,
        widths=coco.widths,
        classes=coco.classes,
        image=coco.image,
        label=coco.label,
        boxes=coco.boxes,
        areas=coco.areas,
        crowd=coco.crowd,
        difficult=coco.difficult,
        group_of=coco.group_of,
        segmentations=coco.masks,
        negatives=coco.negatives,
        not_exhaustive=coco.not_exhaustive,
        frequencies=coco.frequencies,
        keypoints=keypoints,
    )
    return DatasetFile(path, ground_truth, list(coco.category_ids))


@contextlib.contextmanager
def reading_dataset(
    path: Path, expect_masks: bool
) -> Iterator[Callable[[bool, bool], DatasetFile]]:
    """Read a large COCO annotation file in a second process while the caller does other work.

    The process also draws the polygons, which takes most of its time, so that the ground truth has
    RLEs only. It is used if masks are expected and a second core is available, and killed if its
    result is not needed.

    Args:
        path: Path of the file.
        expect_masks: Whether the caller will probably want masks.

    Yields:
        Function that returns the result of `read_dataset` for `with_masks` and `with_keypoints`. It
        raises a UserError as `read_dataset` does, or if the process was killed.
    """
    parallel = expect_masks and sys.platform == "linux" and usable_cores() > 1
    if not parallel or not path.is_file() or path.stat().st_size < _LARGE:
        yield functools.partial(read_dataset, path)
        return
    # Threads would contend for the GIL. A forked process starts at once; it must not call hotcoco,
    # whose threads it lacks.
    fork = get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    reader = fork.Process(target=_send_drawn, args=(path, sender))
    reader.start()
    sender.close()  # so that the end of the process ends the pipe

    def read(with_masks: bool, with_keypoints: bool) -> DatasetFile:
        if with_keypoints or not with_masks:
            reader.kill()
            return read_dataset(path, with_masks, with_keypoints)
        try:
            found = receiver.recv()
        except EOFError:
            raise UserError(
                f"the process that reads {path} was killed, most likely because memory ran out;"
                " close other programs, or use one core (taskset -c 0 ...)"
            ) from None
        if isinstance(found, Exception):
            raise found
        _warn_of_flat_boxes(found)
        return found

    try:
        yield read
    finally:  # also after an error of the caller or Ctrl-C, which need not wait for it
        reader.kill()
        reader.join()
        receiver.close()


def _send_drawn(path: Path, sender: Connection) -> None:
    """Send the result of `_read_drawn`, or the exception that it raises, from a forked process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent kills it
    die_with_parent()
    try:
        found: DatasetFile | Exception = _read_drawn(path)
    except Exception as e:  # the parent raises it
        found = e
    sender.send(found)


def _read_drawn(path: Path) -> DatasetFile:
    """Return the dataset with its polygons as compressed RLEs."""
    dataset = _read_silently(path, with_masks=True, with_keypoints=False)
    ground_truth = dataset.ground_truth
    if ground_truth.segmentations is None:
        return dataset
    heights, widths = (
        side[ground_truth.image].tolist() for side in (ground_truth.heights, ground_truth.widths)
    )
    rows = zip(ground_truth.segmentations, heights, widths, strict=True)
    segmentations = [
        _drawn(mask, height, width) if isinstance(mask, list) else mask
        for mask, height, width in rows
    ]
    return replace(dataset, ground_truth=replace(ground_truth, segmentations=segmentations))


def _drawn(polygons: list[list[float]], height: int, width: int) -> dict[str, Any]:
    """Return polygons as a compressed RLE, as pycocotools draws them."""
    parts = pycocotools.mask.frPyObjects(polygons, height, width)
    rle = pycocotools.mask.merge(parts)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def read_areas(path: Path) -> dict[tuple, float]:
    """Return the areas in a COCO or LVIS file, by (image id, x, y, width, height).

    The dataset dicts of Detectron2's readers lack them, but its evaluators use them.
    """
    lists = read_typed(path, _AreaLists, "COCO annotation file with annotations", "coco")
    known = (a for a in lists.annotations if a.bbox and a.area is not None)
    return {(a.image_id, *a.bbox): a.area for a in known}


def _read_keypoints(path: Path) -> np.ndarray | None:
    """Return the keypoints of all annotations, in the order of the file as `read_strict` does."""
    wanted = "COCO annotation file whose keypoints are lists of numbers"
    lists = read_typed(path, _KeypointLists, wanted, "coco")
    return keypoint_column([annotation.keypoints for annotation in lists.annotations])
