"""Images, folders and videos to predictions: pictures, and files as COCO has them."""

import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import cv2
import msgspec
import numpy as np
from PIL import Image

from d2ext.data.formats.images import SUFFIXES, images_in
from d2ext.data.photo import read_photo
from d2ext.engine.output_dir import check_writable
from d2ext.engine.predictor import Prediction, Predictor
from d2ext.errors import UserError
from d2ext.files import replaced, write_json
from d2ext.inference.cutouts import color_splash, cutout
from d2ext.inference.overlay import draw_instances
from d2ext.terminal import progress

logger = logging.getLogger(__name__)

VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"))
_AHEAD = 4  # images that are read while the model works
_SHOWN = 10  # unreadable files that are named


@dataclass(frozen=True)
class _Item:
    """An image file, or a frame of a video, which is read already."""

    name: str  # where its pictures go, relative, without a suffix
    file_name: str  # in images.json
    path: Path
    frame: np.ndarray | None = None


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    output: Path,
    *,
    batch_size: int = 1,
    overlays: bool = True,
    cutouts: bool = False,
    splash: bool = False,
) -> int:
    """Predicts what is in images and writes it to a folder; memory does not grow with their number.

    `predictions.json` holds COCO results, `images.json` the images and categories that their ids
    mean. Pictures are in `overlays`, `cutouts` and `splash`, called like the images; of a video,
    the frames make up one again.

    Args:
        predictor: of a model.
        inputs: image files, videos, and folders, whose images are taken with those below them.
        output: the folder; what an earlier call has left there goes.
        batch_size: images that the model looks at together.
        overlays: draw boxes, masks and labels.
        cutouts: crop each object, with transparency around its mask.
        splash: leave only the objects in colour.

    Returns:
        The exit status: 0, or 1 where a file could not be read; it is named and passed over.

    Raises:
        UserError: there is no input, or the output cannot be written.
    """
    found = (item for path in inputs for item in _files(Path(path)))
    made = output.resolve()  # pictures of an earlier call are no input
    files = _distinct(item for item in found if made not in item.path.resolve().parents)
    if not files:
        suffixes = ", ".join(sorted(SUFFIXES | VIDEOS))
        raise UserError(f"no image in {', '.join(map(str, inputs))} ({suffixes})")
    check_writable(output)
    if (output / "images.json").is_file():  # an earlier call's, of other photos
        for folder in ("overlays", "cutouts", "splash"):
            shutil.rmtree(output / folder, ignore_errors=True)
    unreadable: list[str] = []
    images: list[dict] = []
    writers = [_Pictures(output / "overlays", _Overlay(predictor.classes))] * overlays
    writers += [_Pictures(output / "splash", lambda p: color_splash(p.image, p.objects))] * splash
    with (
        replaced(output / "predictions.json", "wb") as results,
        progress("files", len(files)) as advance,
    ):
        rows = _Rows(results)
        for items, frames in _sources(files):
            kept: list[_Item] = []
            pixels = _readable(items, kept, unreadable, _nothing if frames else advance)
            for prediction in predictor(pixels, batch_size):
                item = kept.pop(0)
                height, width = prediction.image.shape[:2]
                images.append(
                    {
                        "id": len(images) + 1,
                        "file_name": item.file_name,
                        "width": width,
                        "height": height,
                    }
                )
                rows.write(
                    {
                        "image_id": len(images),
                        **instance,
                        "category_id": instance["category_id"] + 1,
                    }
                    for instance in prediction.objects
                )
                for writer in writers:
                    writer.write(item, prediction, frames)
                if cutouts:
                    _write_cutouts(output / "cutouts", item, prediction, predictor.classes)
            for writer in writers:
                writer.end_video()
            if frames:
                advance(1)
        rows.end()
    categories = [{"id": i, "name": name} for i, name in enumerate(predictor.classes, start=1)]
    write_json(
        output / "images.json", {"images": images, "annotations": [], "categories": categories}
    )
    for message in unreadable[:_SHOWN]:
        logger.warning("%s", message)
    if len(unreadable) > _SHOWN:
        logger.warning("and %d more", len(unreadable) - _SHOWN)
    logger.info("%s: %d images, %d objects", output, len(images), rows.count)
    return int(bool(unreadable))


def _files(path: Path) -> list[_Item]:
    if path.is_dir():
        names = [Path(name) for name in images_in(path)]
        return [_Item(_stem(name), str(path / name), path / name) for name in names]
    if not path.exists():
        raise UserError(f"{path} does not exist; give images, folders or videos")
    return [_Item(path.name.removesuffix(path.suffix), str(path), path)]


def _distinct(items: Iterable[_Item]) -> list[_Item]:
    """With other names for images that are called as one before, in another folder or format."""
    made: dict[str, _Item] = {}
    for item in items:
        name, n = item.name, 1
        while name in made:
            n += 1
            name = f"{item.name}_{n}"
        made[name] = replace(item, name=name)
    return list(made.values())


def _stem(name: Path) -> str:
    return str(name.with_suffix(""))


def _sources(files: Sequence[_Item]) -> Iterator[tuple[Iterator[_Item], float]]:
    """All image files, and each video's frames; with the frames a second, 0 for images."""
    photos = [item for item in files if item.path.suffix.lower() not in VIDEOS]
    if photos:
        yield iter(photos), 0.0
    for item in files:
        if item.path.suffix.lower() in VIDEOS:
            video = cv2.VideoCapture(str(item.path))
            rate = video.get(cv2.CAP_PROP_FPS)
            yield _frames(item, video), rate if 0 < rate < 1000 else 25.0


def _frames(item: _Item, video: cv2.VideoCapture) -> Iterator[_Item]:
    for number in itertools.count():
        good, frame = video.read()
        if not good:
            break
        name = f"{item.file_name}#{number}"
        yield _Item(item.name, name, item.path, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    video.release()
    if number == 0:
        yield item  # which cannot be read as an image either, and is reported so


def _nothing(number: int) -> None:
    """The progress of a frame: that of its video counts."""


def _readable(
    items: Iterator[_Item], kept: list[_Item], unreadable: list[str], advance: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """The pixels of the images that can be read, whose items are added to `kept`."""

    def read(item: _Item) -> tuple[_Item, np.ndarray | str]:
        if item.frame is not None:
            return item, item.frame
        try:
            return item, np.ascontiguousarray(read_photo(item.path, "RGB"))
        except Exception as e:  # whatever a decoder raises for a broken file
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            return item, f"{item.path} cannot be read, and is left out: {reason}"

    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(read, item) for item in itertools.islice(items, _AHEAD)]
        while ahead:
            item, image = ahead.pop(0).result()
            ahead += [pool.submit(read, later) for later in itertools.islice(items, 1)]
            if isinstance(image, str):
                unreadable.append(image)
            else:
                kept.append(item)
                yield image
            advance(1)


class _Rows:
    """A JSON list that is written as its entries come."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.count = 0
        file.write(b"[")

    def write(self, rows: Iterator[dict]) -> None:
        for row in rows:
            self._file.write(b",\n" * (self.count > 0) + msgspec.json.encode(row))
            self.count += 1

    def end(self) -> None:
        self._file.write(b"]\n")


class _Overlay:
    def __init__(self, classes: Sequence[str]):
        self._metadata = SimpleNamespace(thing_classes=classes)

    def __call__(self, prediction: Prediction) -> np.ndarray:
        height, width = prediction.image.shape[:2]
        return draw_instances(prediction.image, prediction.objects, self._metadata, (width, height))


class _Pictures:
    """One picture of each image, or a video of the frames' pictures."""

    def __init__(self, folder: Path, make: Callable[[Prediction], np.ndarray]):
        self._folder, self._make, self._video = folder, make, None

    def write(self, item: _Item, prediction: Prediction, frames: float) -> None:
        picture = self._make(prediction)
        file = self._folder / f"{item.name}{'.mp4' if frames else '.jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not frames:
            Image.fromarray(picture).save(file, quality=92)
            return
        if self._video is None:
            size = picture.shape[1], picture.shape[0]
            self._video = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), frames, size)
            if not self._video.isOpened():
                raise UserError(f"cannot write the video {file}; look at the disk, or at OpenCV")
        self._video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def end_video(self) -> None:
        if self._video is not None:
            self._video.release()
            self._video = None


def _write_cutouts(
    folder: Path, item: _Item, prediction: Prediction, classes: Sequence[str]
) -> None:
    # A film's are in a folder of its own.
    number = "" if item.frame is None else f"/{item.file_name.rpartition('#')[2]}"
    for k, instance in enumerate(prediction.objects):
        label = classes[instance["category_id"]].replace("/", "_")
        file = folder / f"{item.name}{number}_{k}_{label}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cutout(prediction.image, instance)).save(file)
