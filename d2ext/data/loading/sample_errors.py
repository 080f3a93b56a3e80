"""Map dataset dicts to samples, or to errors that can be sent to the trainer's process."""

import copy
from collections.abc import Callable
from typing import Any

from detectron2.data.detection_utils import SizeMismatchError

from d2ext.errors import UserError
from d2ext.limits import exhausted


class Failure:
    """A sample that could not be created; can be sent to another process, unlike exceptions."""

    def __init__(self, message: str):
        self.message = message


class Replaced:
    """A sample of a replacement image, with the error messages of the images that it replaces."""

    def __init__(self, sample: dict, messages: list[str]):
        self.sample = sample
        self.messages = messages


class ReportFailures:
    """A mapper that returns a `Failure`, which names the file, for unreadable images."""

    def __init__(self, mapper: Callable[[dict], dict]):
        self._mapper = mapper

    def __call__(self, record: dict) -> dict | Failure:
        try:
            return self._mapper(record)
        except FileNotFoundError:
            return Failure(f"image {record['file_name']} is missing; add it, or remove its entry")
        except SizeMismatchError as e:
            return Failure(f"{e} (after its EXIF orientation is applied)")
        except (OSError, SyntaxError) as e:  # Pillow's errors for damaged files
            if exhausted(str(e)):  # the machine ran out of a resource; the image may be intact
                raise
            return Failure(
                f"image {record['file_name']} cannot be read: {e}; replace it, or remove its entry"
            )
        except UserError as e:  # too many pixels, or a format that needs another package
            return Failure(str(e))


class RleAsBitmaps:
    """A mapper that returns an image's masks as bitmaps if one of them is an RLE.

    With polygon masks, Detectron2's mapper raises an error for such an image. The masks of other
    images stay polygons, which are small and exact at any size. The loss of the mask head accepts
    both, image by image.
    """

    def __init__(self, mapper: Callable[[dict], dict]):
        self._mapper = mapper
        self._for_rle: Any = mapper
        if getattr(mapper, "instance_mask_format", None) == "polygon":
            self._for_rle = copy.copy(mapper)
            self._for_rle.instance_mask_format = "bitmask"

    def __call__(self, record: dict) -> dict:
        objects = (a for a in record.get("annotations", ()) if not a.get("iscrowd", 0))
        has_rle = any(isinstance(a.get("segmentation"), dict) for a in objects)
        return (self._for_rle if has_rle else self._mapper)(record)
