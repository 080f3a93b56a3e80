"""A hook that slows a tiny training down."""

import time
from pathlib import Path

from detectron2.engine import HookBase


class Pace(HookBase):
    """Sleep a second after each step until a file exists.

    Args:
        file: Path of the file.
    """

    def __init__(self, file: str):
        self._file = Path(file)

    def after_step(self) -> None:
        if not self._file.exists():
            time.sleep(1.0)
