"""Open images upright with 8 bits per channel, read their size, and list those of a folder."""

import contextlib
import logging
import os
import re
import struct
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from d2ext.data.formats.json_io import files_in
from d2ext.errors import UserError

# Photo formats that Pillow reads; HEIC also needs pillow-heif.
SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .heic .heif .hif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg"
    " .jpx .mpo .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
# Describes `_scaled` in messages.
SCALING = "the image's lowest value becomes 0 and its highest 255"
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers without those of tables
JPEG_FRAME = struct.Struct(">BHHB")  # bits, height, width, components

_EXIF_ORIENTATION = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEPTH = "d2ext_depth"  # key in Pillow's `info` of an image that is already scaled
_WIDTH, _LENGTH, _CHANNELS = 256, 257, 277  # TIFF tags
_SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, length of the rest including this field
_HEADERS = (4096, 65536)  # bytes to search for a JPEG's frame, first and second try
_TURNING = (b"Exif", b"http")  # first bytes of segments that hold an orientation: EXIF, XMP
_HEIF = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Pillow warns at half of the limit at which it refuses images; only the limit matters here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow also logs that a TIFF has too many channels, which `open_image` raises as an error.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return the width and height that `read_photo` would give, from the image's header alone.

    An EXIF orientation that rotates the image by 90 degrees swaps them.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The file is not a readable image, or has more pixels than the limit.
    """
    try:
        for length in _HEADERS:
            if size := _plain_jpeg_size(_start(path, length)):
                check_pixels(path, size[0] * size[1])
                return size
        with open_image(path) as image:
            size = stored_size(image)
            return size[::-1] if orientation(image) >= 5 else size
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as e:
        raise UserError(
            f"the image {path} cannot be read ({e}); replace it, or remove it from the annotations"
        ) from e


@contextlib.contextmanager
def open_image(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open an image file of any format; use the first frame or page if there are several.

    Raises:
        OSError: The file is missing or damaged; errors from decoding in the block are included.
        UserError: The image has more pixels than the limit, or its format needs another package.
    """
    limit = _limit()
    if limit and Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit)
    try:
        # Pass a file object: given a path, Pillow memory-maps TIFFs and reads rotated ones in the
        # wrong order.
        with open(path, "rb") as f, _opened(path, f) as image:
            width, height = stored_size(image)
            check_pixels(path, width * height)
            yield image
    except Image.DecompressionBombError as e:
        check_pixels(path, int(re.findall(r"\d+", str(e))[0]))
        raise OSError(str(e)) from e  # a part of the image claims to be larger than the whole
    except (OSError, SyntaxError, UserError, MemoryError):
        raise
    except Exception as e:  # Pillow's readers raise errors of any type on damaged files
        raise OSError(f"{type(e).__name__}: {e}") from e


def _opened(path: str | os.PathLike, file: IO[bytes]) -> Image.Image:
    with contextlib.suppress(UnidentifiedImageError):
        return Image.open(file)
    start = _start(path, 12)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF:
        _register_heif(path)
        with contextlib.suppress(UnidentifiedImageError):
            return Image.open(file)
    elif start[4:8] == b"ftyp" and start[8:11] == b"avi" and "AVIF" not in Image.OPEN:
        raise UserError(
            f"{path} is an AVIF image, which this version of Pillow does not read; upgrade it"
            " (pip install 'pillow>=11.3'), or convert the image to JPEG"
        )
    elif start[:4] in _TIFF:
        if (channels := _tiff_channels(file)) > 4:
            raise UnidentifiedImageError(f"it has {channels} channels; 1 to 4 are supported")
        if (values := _by_opencv(path)) is not None:
            image = Image.fromarray(_scaled(values))  # float64, or floats in several channels
            image.info[_DEPTH] = f"{values.dtype.name} values"
            return image
    raise UnidentifiedImageError("it is damaged or not an image")


def _tiff_channels(file: IO[bytes]) -> int:
    """Return the number of channels declared in a TIFF, or 1 if it is not declared."""
    file.seek(0)
    header = file.read(8)
    if header[2] == 43:  # BigTIFF
        header += file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    file.seek(tags.next)
    tags.load(file)
    return tags.get(_CHANNELS, 1)


def _register_heif(path: str | os.PathLike) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise UserError(
            f"{path} is a HEIC image, which needs pillow-heif: pip install pillow-heif (or"
            " 'd2ext[heic]'), or convert the image to JPEG"
        ) from None
    pillow_heif.register_heif_opener()


def check_pixels(path: str | os.PathLike, pixels: int) -> None:
    """Raise UserError if an image has more pixels than the limit.

    The limit is $D2EXT_MAX_IMAGE_PIXELS if set, otherwise Pillow's limit for decompression bombs.
    """
    limit = _limit() or (Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS)
    if limit and pixels > limit:
        raise UserError(
            f"the image {path} has {pixels:,} pixels, more than the limit of {limit:,}; cut it into"
            " smaller files, or raise the limit with the environment variable"
            f" D2EXT_MAX_IMAGE_PIXELS={pixels}"
        )


def _limit() -> int | None:
    text = os.environ.get("D2EXT_MAX_IMAGE_PIXELS")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"D2EXT_MAX_IMAGE_PIXELS={text}: give a number of pixels, such as 400000000"
        )
    return int(text)


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of an opened image as stored, before any rotation."""
    # Newer Pillow versions report the rotated size before decoding.
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.tag_v2[_WIDTH], image.tag_v2[_LENGTH]
    return image.size


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, or 1 if there is none."""
    try:
        # Call the base class's method: PNG's decodes the whole image to find late EXIF data.
        number = Image.Image.getexif(image).get(_EXIF_ORIENTATION)
    except Exception:  # like Detectron2, ignore unreadable EXIF data
        return 1
    return number if number in _TRANSPOSES else 1


def depth(image: Image.Image) -> str | None:
    """Describe the depth of an opened image ("16 bits"); None means 8 bits per channel."""
    if image.mode.startswith("I;16"):
        return "16 bits"
    if image.mode in ("I", "F"):
        return {"I": "integers of more than 8 bits", "F": "floating-point values"}[image.mode]
    # With several 16-bit channels Pillow reads only the upper 8 bits; the raw mode shows it.
    if image.format in ("PNG", "TIFF") and isinstance(image, ImageFile.ImageFile):
        if any(";16" in str(tile[3]) for tile in image.tile):
            return "16 bits"
    return image.info.get(_DEPTH)


def decoded(image: Image.Image, path: str | os.PathLike) -> Image.Image:
    """Decode an opened image to 8 bits per channel, rotated according to its EXIF orientation.

    Deeper images are scaled: the image's lowest finite value becomes 0 and its highest 255. The
    range of the data type is not used, because cameras, microscopes and X-ray or thermal detectors
    fill only a part of it, such as 12 of 16 bits, and few files say which.
    """
    values = None
    if is_deep := depth(image) is not None and _DEPTH not in image.info:
        # OpenCV rotates TIFFs by itself, so for rotated ones scale the upper 8 bits from Pillow.
        if image.mode in ("LA", "RGB", "RGBA", "RGBX") and orientation(image) == 1:
            values = _by_opencv(path)
    image.load()
    turn = _TRANSPOSES.get(orientation(image))  # None for TIFFs, which Pillow has rotated by now
    if is_deep:
        if values is None:
            alpha = image.mode in ("LA", "RGBA", "RGBX")
            values = np.asarray(image.convert(image.mode[:-1]) if alpha else image)
        image = Image.fromarray(_scaled(values))
    return image if turn is None else image.transpose(turn)


def _by_opencv(path: str | os.PathLike) -> np.ndarray | None:
    """Return an image's values, (H, W) or (H, W, 3) RGB, without alpha; None if it cannot be read.

    Pillow would read only the upper 8 bits of an image with several channels.
    """
    import cv2  # imported here to keep start-up fast

    # Silence OpenCV: the caller reports unreadable files.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    values = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim == 2:
        return values
    channels = values.shape[2]
    if channels > 4:
        return None
    return values[:, :, 0] if channels < 3 else values[:, :, 2::-1]


def _scaled(values: np.ndarray) -> np.ndarray:
    """Scale an image's values to uint8: the lowest finite one becomes 0, the highest 255."""
    finite = values[np.isfinite(values)]
    if not finite.size or finite.min() == finite.max():
        return np.zeros(values.shape, np.uint8)
    low, high = float(finite.min()), float(finite.max())
    kind: Any = np.float32 if values.itemsize <= 2 else np.float64
    scaled = (values.astype(kind) - kind(low)) * kind(255 / (high - low))
    return (np.nan_to_num(scaled, nan=0).clip(0, 255) + kind(0.5)).astype(np.uint8)


def _start(path: str | os.PathLike, length: int) -> bytes:
    """Return a file's first bytes by system calls, twice as fast as with a file object."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, length)
    finally:
        os.close(descriptor)


def _plain_jpeg_size(header: bytes) -> tuple[int, int] | None:
    """Return the width and height of a JPEG without an orientation, 5 times as fast as Pillow.

    None means that Pillow has to read the file.
    """
    for marker, at, _ in jpeg_segments(header):
        if marker == 0xE1 and header[at : at + 4] in _TURNING:
            return None
        if marker in JPEG_FRAMES:
            _, height, width, _ = JPEG_FRAME.unpack_from(header, at)
            return (width, height) if width and height else None
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the first segments of a JPEG (ITU T.81, annex B), or nothing for other files.

    Yields:
        The marker, and the start and end of its content, of which `data` holds at least 6 bytes.
    """
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 10 <= len(data):
        mark, marker, length = _SEGMENT.unpack_from(data, at)
        if mark != 0xFF:
            return
        yield marker, at + 4, at + 2 + length
        at += 2 + length


def existing(path: str) -> str:
    """Return the path, or its variant in another Unicode normal form if only that exists.

    On macOS, some programs write "ä" as two characters and others as one.
    """
    if not path.isascii() and not os.path.exists(path):
        for form in ("NFC", "NFD"):
            if os.path.exists(other := unicodedata.normalize(form, path)):
                return other
    return path


def images_in(folder: str | Path) -> list[str]:
    """Return the image files in a folder and its subfolders, as listed by `files_in`.

    Raises:
        UserError: The folder does not exist, or as in `files_in`.
    """
    if not os.path.isdir(folder):
        raise UserError(f"the image folder {folder} does not exist; give the folder of the images")
    return files_in(folder, SUFFIXES)
