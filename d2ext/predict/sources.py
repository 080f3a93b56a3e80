"""Find the inputs of a prediction (images, folders and videos) and read them one by one."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from d2ext.data.formats.images import SUFFIXES
from d2ext.data.formats.json_io import files_in
from d2ext.data.loading.image_io import read_photo
from d2ext.errors import UserError

VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"))
# Images to read in advance while the model runs: at most so many, and of large ones only one.
_AHEAD, _AHEAD_BYTES = 4, 2**28


@dataclass(frozen=True)
class Item:
    """An image file, or a frame of a video.

    Attributes:
        name: Relative path of the file's pictures, without suffix; unique among the inputs.
        file_name: Name in images.json.
        path: Path of the file.
        number: Number of the frame in its video; None for an image file.
        frame: Pixels of the frame, or why the video has no more; None for an image file.
    """

    name: str
    file_name: str
    path: Path
    number: int | None = None
    frame: np.ndarray | str | None = None

    @property
    def output_name(self) -> str:
        """Return the name of an image's pictures; those of a frame are in a folder of its video."""
        return self.name if self.number is None else f"{self.name}/{self.number}"


@dataclass(frozen=True)
class ImageSource:
    """All image files together, or the frames of a video."""

    name: str
    items: Iterator[Item]
    total: int | None  # None if the video does not state it
    rate: float = 0.0  # frames per second; 0 for images


def find_inputs(
    inputs: Sequence[str | Path], output: Path, others: list[tuple[Path, str]]
) -> list[Item]:
    """Return the files of `inputs`, photos first, each with a unique name.

    Args:
        inputs: Images, videos, and folders of both.
        output: Output folder; if it is inside a folder of `inputs`, its files are ignored.
        others: List to which files in folders that are neither images nor videos are added, with
            the reason.

    Raises:
        UserError: There is no input, or an input is in the output folder.
    """
    made = output.resolve()
    for path in inputs:
        if made in (Path(path).resolve(), *Path(path).resolve().parents):
            raise UserError(f"the input {path} is in --output {output}; choose another --output")
    found = (item for path in inputs for item in _files(Path(path), made, others))
    files = _distinct(sorted(found, key=is_video))
    if not files:
        suffixes = ", ".join(sorted(SUFFIXES | VIDEOS))
        raise UserError(f"no image in {', '.join(map(str, inputs))} ({suffixes})")
    return files


def _files(path: Path, made: Path, others: list[tuple[Path, str]]) -> list[Item]:
    if path.is_dir():
        names = [n for n in map(Path, files_in(path)) if made not in (path / n).resolve().parents]
        taken = [name for name in names if name.suffix.lower() in SUFFIXES | VIDEOS]
        if len(taken) < len(names):
            left = sorted(set(names).difference(taken))
            others += [(path / name, "has no suffix of an image or a video") for name in left]
        return [Item(_stem(name), str(path / name), path / name) for name in taken]
    if not path.exists():
        raise UserError(f"{path} does not exist; give images, folders or videos")
    return [Item(path.name.removesuffix(path.suffix), str(path), path)]


def _distinct(items: Iterable[Item]) -> list[Item]:
    """Return the items with unique names; equal names get a number.

    Args:
        items: Photos, then videos: the folder of a video's frames contains no photo.
    """
    made: dict[str, Item] = {}
    folders: set[str] = set()
    for item in items:
        name, n = item.name, 1
        while name in made or (is_video(item) and name in folders):
            n += 1
            name = f"{item.name}_{n}"
        made[name] = replace(item, name=name)
        if not is_video(item):
            folders.update(map(str, Path(name).parents))
    return list(made.values())


def _stem(name: Path) -> str:
    return str(name.with_suffix(""))


def is_video(item: Item) -> bool:
    """Return whether a file is a video, by its suffix."""
    return item.path.suffix.lower() in VIDEOS


def sources_of(files: Sequence[Item]) -> Iterator[ImageSource]:
    """Yield all image files, then each video."""
    photos = [item for item in files if not is_video(item)]
    if photos:
        yield ImageSource("images", iter(photos), len(photos))
    for item in files:
        if is_video(item):
            video = cv2.VideoCapture(str(item.path))
            rate = video.get(cv2.CAP_PROP_FPS)
            total = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))  # negative if unknown
            frames = _frames(item, video, total)
            yield ImageSource(
                item.path.name, frames, total or None, rate if 0 < rate < 1000 else 25.0
            )


def _frames(item: Item, video: cv2.VideoCapture, total: int) -> Iterator[Item]:
    """Yield the frames of a video, and why it ends early if it does."""
    for number in itertools.count():
        good, frame = video.read()
        if not good:
            break
        pixels = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        yield Item(item.name, f"{item.file_name}#{number}", item.path, number, pixels)
    video.release()
    if number == 0:
        yield replace(item, frame="cannot be read and is skipped: it has no frames")
    elif total - number > max(2, total / 100):  # some formats state only an estimate
        why = f"is cut off at frame {number} of {total}; the frames before that were processed"
        yield replace(item, frame=why)


def readable(
    items: Iterator[Item], advance: Callable[[int], None]
) -> Iterator[tuple[Item, np.ndarray | str]]:
    """Yield each item with its pixels, or with the reason why it cannot be read."""

    def read(item: Item) -> tuple[Item, np.ndarray | str]:
        if item.frame is not None:
            return item, item.frame
        try:
            return item, np.ascontiguousarray(read_photo(item.path, "RGB"))
        except Exception as e:  # decoders raise many kinds of errors for broken files
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            return item, f"cannot be read and is skipped: {reason}"

    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(read, item) for item in itertools.islice(items, 1)]
        wanted = _AHEAD
        while ahead:
            item, image = ahead.pop(0).result()
            if isinstance(image, np.ndarray):
                wanted = min(max(_AHEAD_BYTES // image.nbytes, 1), _AHEAD)
            more = itertools.islice(items, max(wanted - len(ahead), 0))
            ahead += [pool.submit(read, later) for later in more]
            yield item, image
            advance(1)
