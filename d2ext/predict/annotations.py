"""Write predictions as files that an annotation tool opens for correction."""

import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from d2ext.data.convert import write_new
from d2ext.data.formats.geometry import LeftOut, add_box, add_polygons, new_record
from d2ext.data.formats.writing import check_label_files
from d2ext.errors import UserError
from d2ext.predict.names import ANNOTATIONS
from d2ext.predict.outcomes import Outcome
from d2ext.predict.outlines import simplified
from d2ext.predict.sources import Item
from d2ext.text import plural

logger = logging.getLogger(__name__)

_ONLY_BOXES = ("yolo", "voc")
_NO_GROUPS = ("via", "yolo_seg")
_FILE_PER_PHOTO = ("labelme", "yolo", "yolo_seg", "voc")


class Annotations:
    """Predictions of photos that become annotations in a format, with simplified outlines.

    Args:
        kind: Name of the format, a key of `ANNOTATIONS`.
        output: Output folder.
        inputs: Photos, and folders of photos, as given by the user.
        items: The photos.
        classes: Names of the model's classes.

    Attributes:
        file: File or folder that `save` creates; `save` takes another name if it exists by then.

    Raises:
        UserError: The file exists, or two photos would share a label file.
    """

    def __init__(
        self,
        kind: str,
        output: Path,
        inputs: Sequence[str | Path],
        items: Iterable[Item],
        classes: Sequence[str],
    ):
        self.file = output / ANNOTATIONS[kind]
        if os.path.lexists(self.file):
            raise UserError(
                f"{self.file} exists and may contain corrections; choose another --output, or move"
                " it away"
            )
        self._kind, self._classes = kind, classes
        self._root = _common_folder(inputs)
        names = [self._name(item) for item in items]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"the photo {twice} is given twice; give it once")
        if kind in _FILE_PER_PHOTO:
            check_label_files(names)
        self._records: list[dict] = []
        self._left_out = LeftOut()
        self._has_masks = False

    def _name(self, item: Item) -> str:
        return os.path.relpath(os.path.abspath(item.path), self._root)

    def write(self, outcome: Outcome) -> None:
        """Add the objects of a photo."""
        height, width = outcome.size
        record = new_record(self._name(outcome.item), len(self._records) + 1, (width, height))
        self._records.append(record)
        for found in outcome.objects:
            score = round(found["score"], 4)
            if "segmentation" in found and self._kind not in _ONLY_BOXES:
                self._has_masks = True
                polygons = simplified(found["segmentation"], self._kind in _NO_GROUPS)
                add_polygons(record, found["category_id"], polygons, self._left_out, score=score)
            else:
                x, y, w, h = found["bbox"]
                box = (x, y, x + w, y + h)
                add_box(record, found["category_id"], box, self._left_out, score=score)

    def save(self) -> str:
        """Write the file; return a summary line.

        A file that was created since the start may contain corrections and is kept: the new one
        gets a number.

        Raises:
            UserError: The file cannot be written.
        """
        # A model without masks has only boxes, which are YOLO's labels for detection.
        kind = "yolo" if self._kind == "yolo_seg" and not self._has_masks else self._kind
        file = _unused(self.file)
        write_new(kind, self._records, self._classes, file, self._root)
        if file != self.file:
            logger.warning("%s was created in the meantime and is kept", self.file)
        objects = [a for record in self._records for a in record["annotations"]]
        said = f"{file}: {plural(len(self._records), 'photo')}, {plural(len(objects), 'object')}"
        if self._has_masks and objects:
            points = sum(len(p) // 2 for a in objects for p in a["segmentation"])
            said += f", {points / len(objects):.1f} points per outline"
        for reason, n in self._left_out.items():
            said += f", {n} skipped {reason}"
        return f"{said}; image names are relative to {self._root}"


def _unused(file: Path) -> Path:
    """Return the path, with a number if it exists."""
    numbered = (file.with_name(f"{file.stem}_{n}{file.suffix}") for n in itertools.count(2))
    return next(path for path in itertools.chain([file], numbered) if not os.path.lexists(path))


def _common_folder(inputs: Sequence[str | Path]) -> str:
    """Return the innermost folder that contains all inputs."""
    paths = [os.path.abspath(path) for path in inputs]
    return os.path.commonpath([p if os.path.isdir(p) else os.path.dirname(p) for p in paths])
