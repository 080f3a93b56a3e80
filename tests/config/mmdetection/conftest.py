"""Import a config that changes MMDetection's Mask R-CNN R50."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from d2ext.config.mmdetection.importer import Translation, translate
from d2ext.config.mmdetection.read import read_config

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Result:
    """A translated config."""

    translation: Translation

    @property
    def text(self):
        return self.translation.text

    def row(self, name):
        """Return the outcome of a field and our words for it."""
        [row] = [row for row in self.translation.rows if row.field == name]
        return row.outcome, row.became

    def outcome(self, name):
        return self.row(name)[0]

    def fields(self, outcome):
        """Return the fields with an outcome."""
        return [row.field for row in self.translation.rows if row.outcome == outcome]

    def values(self):
        """Return the variables of the written file, without checks of the data."""
        from detectron2.config import LazyConfig

        path = Path("translated.py")
        path.write_text(self.text)
        return LazyConfig.load(str(path.resolve()))


@pytest.fixture
def imported(tmp_path):
    """Return a function that translates a config which changes the Mask R-CNN R50 of the tests.

    Its arguments are the text of the config, whose `_base_` it adds unless there is one, and the
    name of the file.
    """

    def run(text="", name="mine.py", base="mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"):
        path = tmp_path / name
        start = "" if "_base_" in text or not base else f"_base_ = {str(CONFIGS / base)!r}\n"
        path.write_text(start + text)
        return Result(translate(read_config(path), path))

    return run
