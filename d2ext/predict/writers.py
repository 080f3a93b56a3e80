"""Predict on images, folders and videos, and write pictures and COCO files."""

import contextlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from csv import writer as csv_writer
from pathlib import Path
from typing import IO, Any

import cv2
import msgspec
import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils import comm
from PIL import Image

from d2ext.errors import UserError
from d2ext.files import atomic_write, write_json
from d2ext.launch.collectives import broadcast_from_rank0
from d2ext.predict.annotations import Annotations
from d2ext.predict.outcomes import Outcome, PictureWriter, outcomes_of
from d2ext.predict.predictor import Prediction, Predictor, coco_results
from d2ext.predict.rank import FILES as RANK_FILES
from d2ext.predict.rank import Ranking
from d2ext.predict.sources import Item, find_inputs, is_video
from d2ext.visualize.cutouts import color_splash, cutout, label_image
from d2ext.visualize.overlay import draw_instances, draw_segmentation

logger = logging.getLogger(__name__)

_INFO = {"description": "d2ext predict"}  # marks images.json, and so the folder, as ours
_LONGEST = 4096  # pixels of the longer side of an overlay, which viewers open quickly
_MAX_SHOWN = 10  # unreadable files to list
_TABLES = ("detections.csv", "counts.csv")
_FILES = ("predictions.json", *_TABLES, *RANK_FILES)
# Every OpenCV build writes VP8 in WebM and browsers play it; there is no encoder for H.264.
_CODEC, _SUFFIX = "VP80", ".webm"


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    output: Path,
    *,
    batch_size: int = 1,
    overlays: bool = True,
    cutouts: bool = False,
    splash: bool = False,
    csv: bool = False,
    masks: bool = False,
    annotations: str | None = None,
    rank: bool = False,
    exchange: Path | None = None,
) -> int:
    """Detect objects in images and videos, and write the predictions to a folder.

    `predictions.json` contains COCO results; `images.json` contains their images and categories,
    and under `skipped` the files that could not be read or are neither images nor videos. Pictures
    are in `overlays`, `cutouts`, `splash` and `masks`, named after the images. The frames of a
    video become a video again, except for cutouts and masks. In `images.json` and both tables,
    `output_name` of an image is the name of its pictures without suffix. Only a few images are in
    memory at a time.

    If several ranks call this, they share the inputs, and write the same files as a single one.

    Args:
        predictor: Predictor of the model.
        inputs: Image files, videos, and folders, which are searched recursively.
        output: Output folder; it is new, empty, or holds earlier predictions, which are replaced.
        batch_size: Number of images that the model processes together.
        overlays: Draw boxes, masks, keypoints, regions and labels.
        cutouts: Crop each object, with transparency around its mask.
        splash: Turn everything but the objects gray.
        csv: Write `detections.csv`, a row for each object, and `counts.csv`, a row for each image.
        masks: Write a label image for each image; see `label_image`.
        annotations: Format of files to write for an annotation tool, a key of `ANNOTATIONS`.
            Earlier ones are never replaced. If no image can be read, none are written.
        rank: Write `rank.json` and `rank.txt`, the images in the order in which to label them; see
            `uncertainty`. If no image can be read, they are not written.
        exchange: Folder in which several ranks exchange their outcomes, returned by
            `exchange_folder`; a single process needs none.

    Returns:
        The exit status: 0, or 1 if a file could not be read (completely), which is logged. It is 0
        on ranks other than the first one.

    Raises:
        UserError: There is no input, the output folder holds other files, or a file cannot be
            written. With `annotations` or `rank`: an input is a video, the model returns only a
            segmentation, annotations of the format exist, or two images would share a label file.
    """
    files, others, labels = broadcast_from_rank0(
        lambda: prepare_files(inputs, output, annotations, rank, predictor.classes)
    )
    if others and comm.is_main_process():
        counted = Counter(path.suffix.lower() or path.name for path, _ in others)
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(counted.items()))
        logger.info("Skipped files that are neither images nor videos: %s", kinds)
    categories = [{"id": i, "name": name} for i, name in enumerate(predictor.classes, start=1)]
    index: dict[str, Any] = {
        "info": _INFO,
        "images": [],
        "annotations": [],
        "categories": categories,
    }
    broadcast_from_rank0(lambda: _clear(output, index))
    pictures: list[PictureWriter] = []
    if overlays:
        pictures.append(_Pictures(output / "overlays", _Overlay(predictor.metadata)))
    if splash:
        splashed = _Pictures(output / "splash", lambda p: color_splash(p.image, p.objects))
        pictures.append(splashed)
    if cutouts:
        pictures.append(_Cutouts(output / "cutouts", predictor.classes))
    if masks:
        pictures.append(_Masks(output / "masks"))
    needs_objects = annotations is not None or rank
    outcomes = outcomes_of(predictor, files, batch_size, pictures, exchange, needs_objects)
    if not comm.is_main_process():
        list(outcomes)  # empty, because rank 0 gets those of all ranks
        return 0
    images = index["images"]
    unreadable: list[tuple[Path, str]] = []
    counts = Counter()
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(atomic_write(output / "predictions.json", "wb"))
        rows = _Rows(results)
        writers: list[Any] = []
        if csv:
            files_of = (stack.enter_context(atomic_write(output / name)) for name in _TABLES)
            writers.append(_Tables(*files_of, predictor.classes))
        if labels:
            writers.append(labels)
        ranking = Ranking()
        if rank:
            writers.append(ranking)
        for outcome in outcomes:
            item = outcome.item
            if outcome.problem:
                unreadable.append((item.path, outcome.problem))
                continue
            height, width = outcome.size
            images.append(
                {
                    "id": len(images) + 1,
                    "file_name": item.file_name,
                    "output_name": item.output_name,
                    "width": width,
                    "height": height,
                }
            )
            rows.write(coco_results(outcome.objects, len(images)))
            counts.update(o["category_id"] for o in outcome.objects)
            for writer in writers:
                writer.write(outcome)
        rows.end()
    skipped = [*unreadable, *others]
    index["skipped"] = [{"file_name": str(path), "reason": why} for path, why in skipped]
    write_json(output / "images.json", index)
    for path, why in unreadable[:_MAX_SHOWN]:
        logger.warning("%s %s", path, why)
    if len(unreadable) > _MAX_SHOWN:
        logger.warning("and %d more; see images.json", len(unreadable) - _MAX_SHOWN)
    by_class = ", ".join(f"{predictor.classes[i]} {n}" for i, n in counts.most_common())
    logger.info(
        "%s: %d images, %d objects%s",
        output,
        len(images),
        rows.count,
        f" ({by_class})" if by_class else "",
    )
    if labels and images:
        logger.info("%s", labels.save())
    if rank and images:
        ranking.save(output)
    return int(bool(unreadable))


def prepare_files(
    inputs: Sequence[str | Path],
    output: Path,
    annotations: str | None,
    rank: bool,
    classes: Sequence[str] = (),
) -> tuple[list[Item], list[tuple[Path, str]], Annotations | None]:
    """Find the inputs of `predict_files`, and check them and the output folder.

    Args:
        inputs: Argument of `predict_files`, as are the next three.
        output: Output folder, which stays as it is.
        annotations: Format of files for an annotation tool.
        rank: Whether the images will be ranked.
        classes: Names of the model's classes, for the annotations.

    Returns:
        The images and videos; other files in the folders, each with the reason why it is skipped;
        and the empty annotations, or None.

    Raises:
        UserError: As in `predict_files`, except for a model without objects.
    """
    others: list[tuple[Path, str]] = []
    files = find_inputs(inputs, output, others)
    if annotations or rank:
        _check_no_videos(files)
    labels = Annotations(annotations, output, inputs, files, classes) if annotations else None
    with _reporting(output / "images.json"):
        _holds_predictions(output)
    return files, others, labels


def _check_no_videos(files: Iterable[Item]) -> None:
    for item in files:
        if is_video(item):
            raise UserError(
                f"{item.path} is a video, but --annotations and --rank are for photos; remove it,"
                f" or give its frames as photos (ffmpeg -i {item.path.name} frames/%06d.jpg)"
            )


def _clear(output: Path, index: dict[str, Any]) -> None:
    """Create the output folder, or remove earlier predictions from it, and mark it as ours."""
    with _writing(output / "images.json"):
        if _holds_predictions(output):
            logger.info("Replacing the earlier predictions in %s", output)
            for name in _FILES:
                (output / name).unlink(missing_ok=True)
            for folder in ("overlays", "cutouts", "masks", "splash"):
                if (output / folder).exists():
                    shutil.rmtree(output / folder)
    write_json(output / "images.json", index)


def _holds_predictions(output: Path) -> bool:
    """Return whether the output folder holds earlier predictions.

    Raises:
        UserError: It holds other files.
    """
    if not output.exists() or not any(output.iterdir()):
        return False
    if not _is_ours(output / "images.json"):
        raise UserError(
            f"--output {output} is not empty and does not hold earlier predictions; choose"
            " another --output"
        )
    return True


def exchange_folder(output: Path) -> Path:
    """Return the folder in which the ranks that this process starts exchange their outcomes."""
    return output / f".d2ext_ranks.{os.getpid()}"


def remove_leftovers(output: Path, exchange: Path) -> None:
    """Delete the exchange folder, and the temporary files of its ranks, which may have been killed.

    Other processes may be writing to the same output folder.
    """
    for file in exchange.glob("*.pid"):
        for name in (*_FILES, "images.json"):
            (output / f".{name}.{file.read_text()}.tmp").unlink(missing_ok=True)
    shutil.rmtree(exchange, ignore_errors=True)


def _is_ours(index: Path) -> bool:
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("info") == _INFO


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Create a file's folder; turn an OSError there or in the block into a UserError."""
    with _reporting(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        yield


@contextlib.contextmanager
def _reporting(file: Path) -> Iterator[None]:
    """Turn an OSError in the block, which prepares for a file, into a UserError."""
    try:
        yield
    except OSError as e:
        no_folder = isinstance(e, FileExistsError | NotADirectoryError)
        reason = f"{e.filename} is not a directory" if no_folder else e.strerror or e
        raise UserError(
            f"cannot write {file}: {reason}; free space, or choose another --output"
        ) from e


class _Rows:
    """A JSON list whose entries are written as they arrive."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.count = 0
        file.write(b"[")

    def write(self, rows: Iterable[dict]) -> None:
        for row in rows:
            if self.count:
                self._file.write(b",\n")
            self._file.write(msgspec.json.encode(row))
            self.count += 1

    def end(self) -> None:
        self._file.write(b"]\n")


class _Overlay:
    def __init__(self, metadata: Any):
        self._metadata = metadata

    def __call__(self, prediction: Prediction) -> np.ndarray:
        photo, segmentation = prediction.image, prediction.segmentation
        height, width = photo.shape[:2]
        if max(height, width) > _LONGEST:
            scale = _LONGEST / max(height, width)
            size = max(round(width * scale), 1), max(round(height * scale), 1)
            photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        if segmentation:
            photo = draw_segmentation(photo, segmentation, self._metadata)
            if segmentation.is_panoptic:  # it contains the objects
                return photo
        return draw_instances(photo, prediction.objects, self._metadata, (width, height))


class _Pictures:
    """Write one picture per image, or a video of the frames' pictures."""

    def __init__(self, folder: Path, make: Callable[[Prediction], np.ndarray]):
        self._folder, self._make = folder, make
        self._video: cv2.VideoWriter | None = None
        self._file = folder  # replaced by the path of a video

    def write(self, item: Item, prediction: Prediction, rate: float) -> None:
        picture = self._make(prediction)
        file = self._folder / f"{item.name}{_SUFFIX if rate else '.jpg'}"
        with _writing(file):
            if not rate:
                Image.fromarray(picture).save(file, quality=92)
                return
        if self._video is None:
            size = picture.shape[1], picture.shape[0]
            self._video = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*_CODEC), rate, size)
            self._file = file
            self._check(self._video.isOpened())
        self._video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def end_video(self) -> None:
        if self._video is not None:
            self._video.release()
            self._video = None
            # OpenCV does not report a full disk, but then the index at the file's end is missing.
            self._check(cv2.VideoCapture(str(self._file)).isOpened())

    def _check(self, good: bool) -> None:
        if not good:
            raise UserError(
                f"cannot write the video {self._file}; check the disk and the OpenCV build"
            )


class _Cutouts:
    """Write a picture of each object."""

    def __init__(self, folder: Path, classes: Sequence[str]):
        self._folder, self._classes = folder, classes

    def write(self, item: Item, prediction: Prediction, rate: float) -> None:
        for k, instance in enumerate(prediction.objects):
            label = self._classes[instance["category_id"]].replace("/", "_")
            file = self._folder / f"{item.output_name}_{k}_{label}.png"
            with _writing(file):
                Image.fromarray(cutout(prediction.image, instance)).save(file)

    def end_video(self) -> None:
        pass


class _Masks:
    """Write a label image for each image or frame."""

    def __init__(self, folder: Path):
        self._folder = folder

    def write(self, item: Item, prediction: Prediction, rate: float) -> None:
        file = self._folder / f"{item.output_name}.png"
        with _writing(file):
            Image.fromarray(label_image(prediction.image, prediction.objects)).save(file)

    def end_video(self) -> None:
        pass


class _Tables:
    """Write two CSV files: a row for each object, and a row for each image with class counts."""

    def __init__(self, detections: IO[str], counts: IO[str], classes: Sequence[str]):
        self._classes = classes
        self._detections = csv_writer(detections, lineterminator="\n")
        self._counts = csv_writer(counts, lineterminator="\n")
        columns = "object", "class", "score", "x", "y", "width", "height", "area"
        self._detections.writerow(("file_name", "output_name", *columns))
        self._counts.writerow(("file_name", "output_name", "objects", *classes))

    def write(self, outcome: Outcome) -> None:
        names = outcome.item.file_name, outcome.item.output_name
        for k, o in enumerate(outcome.objects, start=1):
            width, height = o["bbox"][2:]
            area = mask_util.area(o["segmentation"]) if "segmentation" in o else width * height
            name = self._classes[o["category_id"]]
            box = (round(v, 2) for v in o["bbox"])
            self._detections.writerow(
                (*names, k, name, round(o["score"], 4), *box, round(float(area), 2))
            )
        by_class = Counter(o["category_id"] for o in outcome.objects)
        numbers = (by_class[i] for i in range(len(self._classes)))
        self._counts.writerow((*names, len(outcome.objects), *numbers))
