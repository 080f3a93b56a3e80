"""Photos as arrays.

They are those of Detectron2's `read_image`, in half the time; but images of more than 8 bits a
channel are scaled to 8, and a TIFF is turned once where its EXIF orientation says so.
"""

import functools
import hashlib
import logging
import os
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from d2ext.data.formats.images import (
    JPEG_FRAME,
    JPEG_FRAMES,
    check_pixels,
    decoded,
    jpeg_segments,
    open_image,
)
from d2ext.errors import UserError
from d2ext.files import atomic_write, cache_dir

logger = logging.getLogger(__name__)

_PIXELS = 2  # version of the pixels in the cache; 1 had those of 16 bits saturated
_END = b"\xff\xd9"
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def read_photo(path: str | Path, image_format: str, divisor: int = 1) -> np.ndarray:
    """Read an image, turned as its EXIF orientation says; its alpha channel is dropped.

    OpenCV decodes whole JPEGs in color or gray, Pillow all others. See `decoded` for images of more
    than 8 bits a channel. Of an animation or several pages, the first one is read.

    Args:
        path: the file.
        image_format: as Detectron2's `read_image` has it.
        divisor: 1, 2, 4 or 8; OpenCV divides both sides by it while it decodes a JPEG, rounding up
            (libjpeg's scaled IDCT). What Pillow reads keeps its size.

    Returns:
        (H, W, C) uint8; for other formats than BGR and RGB as `read_image` has it.

    Raises:
        OSError: the file is absent or damaged.
        UserError: it has more pixels than the limit, or its format needs another package.
    """
    if image_format in ("BGR", "RGB"):
        with open(path, "rb") as f:
            data = f.read()
        if pixels := _plain_jpeg_pixels(data):
            check_pixels(path, pixels)
            image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[divisor])
            if image is not None:
                return image if image_format == "BGR" else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    with open_image(path) as image:
        return photo_pixels(image, path, image_format)


def photo_pixels(image: Image.Image, path: str | Path, image_format: str) -> np.ndarray:
    """Return the pixels of an image that Pillow has opened, as `read_photo` does.

    Args:
        image: The image.
        path: Its file.
        image_format: Argument of `read_photo`.
    """
    return convert_PIL_to_numpy(decoded(image, path), image_format)


def _plain_jpeg_pixels(data: bytes) -> int:
    """Return the number of pixels of a JPEG that OpenCV reads as Pillow does; 0 for other files.

    OpenCV differs where the end is missing, which it fills with gray; where there are neither one
    nor three components (CMYK); with 12 bits; and with an orientation in XMP, which only Pillow
    knows.
    """
    if data.rfind(_END, -64) < 0:
        return 0
    for marker, at, end in jpeg_segments(data):
        if marker in JPEG_FRAMES:
            bits, height, width, components = JPEG_FRAME.unpack_from(data, at)
            return height * width if bits == 8 and components in (1, 3) else 0
        if marker == 0xE1 and data.find(b"tiff:Orientation", at, end) >= 0:
            return 0
    return 0


def cached_photo(path: str | Path, image_format: str) -> np.ndarray:
    """Return what `read_photo` gives, read once, then mapped into memory from $D2EXT_CACHE/photos.

    A file of other size or time is another one. Where the disk has no room, the image is read each
    time, with one warning. The array may be written to; the file does not change.
    """
    info = os.stat(path)
    key = f"{os.path.abspath(path)} {info.st_size} {info.st_mtime_ns} {image_format} {_PIXELS}"
    file = cache_dir() / "photos" / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
    try:
        return np.load(file, mmap_mode="c")
    except (OSError, ValueError):  # absent, or cut
        image = read_photo(path, image_format)
    try:
        with atomic_write(file, "wb", durable=False) as f:
            np.save(f, image)
    except UserError as e:
        _warn_once(str(e))
    return image


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s; images are read each time", message)
