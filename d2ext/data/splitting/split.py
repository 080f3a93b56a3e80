"""Split the images of a dataset by the rules of `groups` and `stratify`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2ext.data.splitting.groups import find_groups
from d2ext.data.splitting.stratify import assign_sides
from d2ext.errors import UserError


@dataclass(frozen=True)
class SplitOptions:
    """How to split a dataset.

    Attributes:
        val: Share of the images for validation.
        folds: Number of folds of a cross-validation, instead of `val`; None for a single split.
        seed: Seed of the split.
        group_by: Regular expression for `find_groups`.
        names: Names of the options `val`, `folds` and `group_by`, for messages.
    """

    val: float = 0.2
    folds: int | None = None
    seed: int = 0
    group_by: str | None = None
    names: tuple[str, str, str] = ("--val", "--folds", "--group-by")

    def check(self) -> None:
        """Raise a UserError if a value is out of bounds."""
        if not 0 < self.val < 1:
            raise UserError(
                f"{self.names[0]} {self.val:g}: give the share of the images for validation, above"
                " 0 and below 1"
            )
        if self.folds is not None and self.folds < 2:
            raise UserError(f"{self.names[1]} {self.folds}: give at least 2 folds")
        if self.seed < 0:
            raise UserError(f"the seed {self.seed} is negative; give 0 or more")

    @property
    def shares(self) -> list[float]:
        """Return the shares of the sides: training and validation, or one for each fold."""
        return [1 - self.val, self.val] if self.folds is None else [1 / self.folds] * self.folds


def split_images(
    names: Sequence[str],
    images: np.ndarray,
    classes: np.ndarray,
    image_root: str | Path | None,
    options: SplitOptions,
) -> tuple[np.ndarray, list[str]]:
    """Assign images to the sides of `options.shares`, whatever their order in the file.

    Args:
        names: File names of the images.
        images: Index of each object's image, int (M,).
        classes: Class of each object, from 0, int (M,).
        image_root: Folder of the images, to find near-duplicates; None does not search for them.
        options: How to split.

    Returns:
        The side of each image, int64 (N,), and sentences about the groups.

    Raises:
        UserError: `options.group_by` matches no name, or there are fewer groups than sides.
    """
    order = sorted(range(len(names)), key=names.__getitem__)
    groups = find_groups([names[i] for i in order], image_root, options.group_by, options.names[2])
    rank = np.argsort(order)
    sides = assign_sides(groups.of_image, rank[images], classes, options.shares, options.seed)
    return sides[rank], groups.lines
