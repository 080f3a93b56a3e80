"""Images as the readers need them: sizes from headers, the files of a folder."""

import os
import struct
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path

from PIL import Image

from d2ext.data.formats.common import files_in
from d2ext.errors import UserError

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_EXIF_ORIENTATION = 0x0112
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers; those are tables
_SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, length of what follows, itself included
_FRAME = struct.Struct(">BHH")  # bits, height, width
_HEADERS = (4096, 65536)  # bytes in which a JPEG's frame is looked for, at first and then
_TURNING = (b"Exif", b"http")  # how the segments begin that hold an orientation: EXIF, XMP


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels as Detectron2's `read_image` has them, from the header alone.

    An EXIF orientation that turns the image by 90 degrees swaps them.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read as an image.
    """
    try:
        for length in _HEADERS:
            if size := _plain_jpeg_size(_start(path, length)):
                return size
        with Image.open(path) as image:
            width, height = image.size
            turned = is_turned(image)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, Image.DecompressionBombError) as e:
        raise UserError(
            f"the image {path} cannot be read ({e}); replace it, or remove it from the annotations"
        ) from e
    return (height, width) if turned else (width, height)


def is_turned(image: Image.Image) -> bool:
    """Whether an image's EXIF orientation swaps its width and height."""
    try:
        # The base class's: PNG's own decodes the whole image in search of late EXIF data.
        return Image.Image.getexif(image).get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # Detectron2, too, takes unreadable EXIF data for none
        return False


def _start(path: str | Path, length: int) -> bytes:
    """The first bytes of a file, by the system's own calls: half the time of Python's files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, length)
    finally:
        os.close(descriptor)


def _plain_jpeg_size(header: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that nothing turns; Pillow takes 5 times as long.

    None where Pillow has to look.
    """
    for marker, at, _ in jpeg_segments(header):
        if marker == 0xE1 and header[at : at + 4] in _TURNING:
            return None
        if marker in JPEG_FRAMES:
            _, height, width = _FRAME.unpack_from(header, at)
            return (width, height) if width and height else None
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG's beginning (ITU T.81, annex B); nothing of what is no JPEG.

    Yields:
        Marker, where its content begins, of which 6 bytes are there, and where it ends.
    """
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 10 <= len(data):
        mark, marker, length = _SEGMENT.unpack_from(data, at)
        if mark != 0xFF:
            return
        yield marker, at + 4, at + 2 + length
        at += 2 + length


def existing(path: str) -> str:
    """The path, or the one like it in another Unicode normal form that exists.

    macOS writes "ä" as two characters in some programs and as one in others.
    """
    if not path.isascii() and not os.path.exists(path):
        for form in ("NFC", "NFD"):
            if os.path.exists(other := unicodedata.normalize(form, path)):
                return other
    return path


def images_in(folder: str | Path, suffixes: Collection[str] = SUFFIXES) -> list[str]:
    """List the image files in a folder and its subfolders, as `files_in` does.

    Args:
        folder: of the images.
        suffixes: of the files that are taken, in small letters.

    Raises:
        UserError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise UserError(f"the image folder {folder} does not exist; give that of the images")
    return files_in(folder, suffixes)
