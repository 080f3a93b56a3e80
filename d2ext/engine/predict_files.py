"""Images, folders and videos to predictions: pictures, and files as COCO has them."""

import contextlib
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import cv2
import msgspec
import numpy as np
from PIL import Image

from d2ext.data.formats.images import SUFFIXES, images_in
from d2ext.data.photo import read_photo
from d2ext.engine.predictor import Prediction, Predictor
from d2ext.errors import UserError
from d2ext.files import replaced, write_json
from d2ext.inference.cutouts import color_splash, cutout
from d2ext.inference.overlay import draw_instances
from d2ext.terminal import progress

logger = logging.getLogger(__name__)

VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"))
_INFO = {"description": "d2ext predict"}  # in images.json; a folder without it is another's
_AHEAD = 4  # images that are read while the model works
_SHOWN = 10  # unreadable files that are named


@dataclass(frozen=True)
class _Item:
    """An image file, or a frame of a video, which is read already."""

    name: str  # where its pictures go, relative, without a suffix
    file_name: str  # in images.json
    path: Path
    frame: np.ndarray | None = None


@dataclass(frozen=True)
class _Source:
    """All image files together, or the frames of a video."""

    name: str
    items: Iterator[_Item]
    total: int | None  # None: the video does not say
    rate: float = 0.0  # frames a second; 0 for images


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
    """Predicts what is in images and writes it to a folder; pixels are held of a few at a time.

    `predictions.json` holds COCO results, `images.json` the images and categories that their ids
    mean. Pictures are in `overlays`, `cutouts` and `splash`, called like the images; of a video,
    the frames make up one again.

    Args:
        predictor: of a model.
        inputs: image files, videos, and folders, of which both are taken with those below them.
        output: the folder, absent or empty, or an earlier call's, which is replaced.
        batch_size: images that the model looks at together.
        overlays: draw boxes, masks and labels.
        cutouts: crop each object, with transparency around its mask.
        splash: leave only the objects in colour.

    Returns:
        The exit status: 0, or 1 where a file could not be read, or not to its end; it is named.

    Raises:
        UserError: there is no input, the output is another's, or something cannot be written.
    """
    files = _inputs(inputs, output)
    categories = [{"id": i, "name": name} for i, name in enumerate(predictor.classes, start=1)]
    index: dict[str, Any] = {
        "info": _INFO,
        "images": [],
        "annotations": [],
        "categories": categories,
    }
    images = index["images"]
    _clear(output)
    write_json(output / "images.json", index)  # from now on the folder is known as ours
    unreadable: list[str] = []
    writers = [_Pictures(output / "overlays", _Overlay(predictor.classes))] * overlays
    writers += [_Pictures(output / "splash", lambda p: color_splash(p.image, p.objects))] * splash
    with replaced(output / "predictions.json", "wb") as results:
        rows = _Rows(results)
        for source in _sources(files, unreadable):
            kept: list[_Item] = []
            with progress(source.name, source.total) as advance:
                pixels = _readable(source.items, kept, unreadable, advance)
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
                        writer.write(item, prediction, source.rate)
                    if cutouts:
                        _write_cutouts(output / "cutouts", item, prediction, predictor.classes)
                for writer in writers:
                    writer.end_video()
        rows.end()
    write_json(output / "images.json", index)
    for message in unreadable[:_SHOWN]:
        logger.warning("%s", message)
    if len(unreadable) > _SHOWN:
        logger.warning("and %d more", len(unreadable) - _SHOWN)
    logger.info("%s: %d images, %d objects", output, len(images), rows.count)
    return int(bool(unreadable))


def _inputs(inputs: Sequence[str | Path], output: Path) -> list[_Item]:
    made = output.resolve()
    for path in inputs:
        if made in (Path(path).resolve(), *Path(path).resolve().parents):
            raise UserError(f"the input {path} lies in --output {output}; choose another --output")
    found = (item for path in inputs for item in _files(Path(path)))
    # A folder may hold the output: pictures of an earlier call are no input.
    files = _distinct(item for item in found if made not in item.path.resolve().parents)
    if not files:
        suffixes = ", ".join(sorted(SUFFIXES | VIDEOS))
        raise UserError(f"no image in {', '.join(map(str, inputs))} ({suffixes})")
    return files


def _files(path: Path) -> list[_Item]:
    if path.is_dir():
        names = [Path(name) for name in images_in(path, SUFFIXES | VIDEOS)]
        return [_Item(_stem(name), str(path / name), path / name) for name in names]
    if not path.exists():
        raise UserError(f"{path} does not exist; give images, folders or videos")
    return [_Item(path.name.removesuffix(path.suffix), str(path), path)]


def _clear(output: Path) -> None:
    """Makes the output folder, or takes away what an earlier call has left in it."""
    with _writing(output / "images.json"):
        if not any(output.iterdir()):
            return
        if not _is_ours(output / "images.json"):
            raise UserError(
                f"--output {output} is not empty, and predict.py has not made it; choose another"
                " --output"
            )
        logger.info("The results of an earlier call in %s are replaced", output)
        (output / "predictions.json").unlink(missing_ok=True)
        for folder in ("overlays", "cutouts", "splash"):
            if (output / folder).exists():
                shutil.rmtree(output / folder)


def _is_ours(index: Path) -> bool:
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("info") == _INFO


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Makes a file's folder, and names the file where it or its folder cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as e:
        no_folder = isinstance(e, FileExistsError | NotADirectoryError)
        reason = f"{e.filename} is no directory" if no_folder else e.strerror or e
        raise UserError(
            f"cannot write {file}: {reason}; free space, or choose another --output"
        ) from e


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


def _sources(files: Sequence[_Item], unreadable: list[str]) -> Iterator[_Source]:
    """All image files, then each video."""
    photos = [item for item in files if item.path.suffix.lower() not in VIDEOS]
    if photos:
        yield _Source("images", iter(photos), len(photos))
    for item in files:
        if item.path.suffix.lower() in VIDEOS:
            video = cv2.VideoCapture(str(item.path))
            rate = video.get(cv2.CAP_PROP_FPS)
            total = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))  # below 0: unknown
            frames = _frames(item, video, total, unreadable)
            yield _Source(item.path.name, frames, total or None, rate if 0 < rate < 1000 else 25.0)


def _frames(
    item: _Item, video: cv2.VideoCapture, total: int, unreadable: list[str]
) -> Iterator[_Item]:
    """The frames of a video; one that ends early is added to `unreadable`."""
    for number in itertools.count():
        good, frame = video.read()
        if not good:
            break
        name = f"{item.file_name}#{number}"
        yield _Item(item.name, name, item.path, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    video.release()
    if number == 0:
        unreadable.append(f"{item.path} cannot be read, and is left out: no frame is found in it")
    elif total - number > max(2, total / 100):  # some formats have a rough number only
        unreadable.append(
            f"{item.path} is cut off: it ends at frame {number} of {total}; what was read is done"
        )


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
        self._folder, self._make = folder, make
        self._video: cv2.VideoWriter | None = None
        self._file = folder  # of the video

    def write(self, item: _Item, prediction: Prediction, rate: float) -> None:
        picture = self._make(prediction)
        file = self._folder / f"{item.name}{'.mp4' if rate else '.jpg'}"
        with _writing(file):
            if not rate:
                Image.fromarray(picture).save(file, quality=92)
                return
        if self._video is None:
            size = picture.shape[1], picture.shape[0]
            self._video = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            self._file = file
            self._check(self._video.isOpened())
        self._video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def end_video(self) -> None:
        if self._video is not None:
            self._video.release()
            self._video = None
            # OpenCV says nothing of a full disk; the index at the file's end is missing then.
            self._check(cv2.VideoCapture(str(self._file)).isOpened())

    def _check(self, good: bool) -> None:
        if not good:
            raise UserError(f"cannot write the video {self._file}; look at the disk, or at OpenCV")


def _write_cutouts(
    folder: Path, item: _Item, prediction: Prediction, classes: Sequence[str]
) -> None:
    # A film's are in a folder of its own.
    number = "" if item.frame is None else f"/{item.file_name.rpartition('#')[2]}"
    for k, instance in enumerate(prediction.objects):
        label = classes[instance["category_id"]].replace("/", "_")
        file = folder / f"{item.name}{number}_{k}_{label}.png"
        with _writing(file):
            Image.fromarray(cutout(prediction.image, instance)).save(file)
