"""A dataset dict to a sample, or to what is wrong with it, which crosses the process border."""

import contextlib
import copy
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.data.detection_utils import SizeMismatchError

from d2ext.errors import UserError
from d2ext.limits import exhausted


class Failure:
    """A sample that could not be made; crosses the process border, where an exception cannot."""

    def __init__(self, message: str):
        self.message = message


class Replaced:
    """A sample made of another image, and what is wrong with the one whose place it takes."""

    def __init__(self, sample: dict, message: str):
        self.sample = sample
        self.message = message


class ReportFailures:
    """The mapper, with unreadable images turned into `Failure`s that name the file."""

    def __init__(self, mapper: Callable[[dict], dict]):
        self._mapper = mapper

    def __call__(self, record: dict) -> dict | Failure:
        try:
            return self._mapper(record)
        except FileNotFoundError:
            return Failure(f"image {record['file_name']} is listed but absent; add or unlist it")
        except SizeMismatchError as e:
            return Failure(f"{e} (EXIF orientation counts)")
        except (OSError, SyntaxError) as e:  # what Pillow raises for broken files
            if exhausted(str(e)):  # the machine's fault: no image is to be skipped for it
                raise
            return Failure(f"image {record['file_name']} cannot be read: {e}; replace or unlist it")
        except UserError as e:  # too many pixels, or a format that needs another package
            return Failure(str(e))


class RleAsBitmaps:
    """Detectron2's mapper, with the masks of an image as bitmaps where one of them is an RLE.

    Its mapper raises there if it is told to make polygons. All other images keep them: they are
    exact at any size, and small. The mask head's loss takes either, image by image.
    """

    def __init__(self, mapper: Callable[[dict], dict]):
        self._mapper = self._for_rle = mapper
        if getattr(mapper, "instance_mask_format", None) == "polygon":
            self._for_rle = copy.copy(mapper)
            self._for_rle.instance_mask_format = "bitmask"

    def __call__(self, record: dict) -> dict:
        objects = (a for a in record.get("annotations", ()) if not a.get("iscrowd", 0))
        has_rle = any(isinstance(a.get("segmentation"), dict) for a in objects)
        return (self._for_rle if has_rle else self._mapper)(record)


@contextlib.contextmanager
def generators_seeded(*key: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators from integers; put them back after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(3)
    try:
        random.seed(int(words[0]))
        np.random.seed(words[1])
        torch.manual_seed(int(words[2]))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
