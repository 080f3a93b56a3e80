"""Photos into arrays: what Detectron2's `read_image` gives, pixel for pixel, in half the time."""

import functools
import hashlib
import logging
import os
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image

from d2ext.data.formats.images import JPEG_FRAMES, jpeg_segments
from d2ext.errors import UserError
from d2ext.files import cache_dir, replaced

logger = logging.getLogger(__name__)

_END = b"\xff\xd9"
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def read_photo(path: str | Path, image_format: str, divisor: int = 1) -> np.ndarray:
    """Reads an image, turned as its EXIF orientation says.

    OpenCV decodes whole JPEGs in colour or grey; Detectron2 reads (or refuses) all else.

    Args:
        path: the file.
        image_format: as Detectron2's `read_image` has it.
        divisor: 1, 2, 4 or 8; OpenCV divides both sides by it while it decodes a JPEG, rounding up
            (libjpeg's scaled IDCT). What Detectron2 reads keeps its size.

    Returns:
        (H, W, C) uint8; for other formats than BGR and RGB as `read_image` has it.

    Raises:
        OSError: the file is absent or damaged, and what else `read_image` raises.
    """
    if image_format in ("BGR", "RGB"):
        with open(path, "rb") as f:
            data = f.read()
        if _is_plain_jpeg(data):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[divisor])
            if image is not None:
                return image if image_format == "BGR" else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return read_image(os.fspath(path), image_format)


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether OpenCV reads it as Pillow does.

    It is told apart by: an end, without which OpenCV fills up with grey; one or three components
    (others are CMYK); 8 bits; no orientation in XMP, which Pillow alone knows.
    """
    if data.rfind(_END, -64) < 0:
        return False
    for marker, at, end in jpeg_segments(data):
        if marker in JPEG_FRAMES:
            return data[at] == 8 and data[at + 5] in (1, 3)
        if marker == 0xE1 and data.find(b"tiff:Orientation", at, end) >= 0:
            return False
    return False


def cached_photo(path: str | Path, image_format: str) -> np.ndarray:
    """What `read_photo` gives, read once and then mapped into memory from $D2EXT_CACHE/photos.

    A file of other size or time is another one. Where the disk has no room, the image is read each
    time, with one warning. The array may be written to; the file does not change.
    """
    info = os.stat(path)
    key = f"{os.path.abspath(path)} {info.st_size} {info.st_mtime_ns} {image_format}"
    file = cache_dir() / "photos" / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
    try:
        return np.load(file, mmap_mode="c")
    except (OSError, ValueError):  # absent, or cut
        image = read_photo(path, image_format)
    try:
        with replaced(file, "wb", durable=False) as f:
            np.save(f, image)
    except UserError as e:
        _warn_once(str(e))
    return image


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s; images are read each time", message)
