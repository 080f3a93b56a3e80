"""Where something is in a COCO file, in words; and the joins between its lists."""

from collections.abc import Callable

import numpy as np

from d2ext.data.validation.coco.table import CocoTable


def image(c: CocoTable, row: int) -> str:
    """images[3] (id 7, a.jpg)."""
    if not c.good["images"][row]:
        return f"images[{row}]"
    return f"images[{row}] (id {c.image_id[row]}, {c.image_name[row]})"


def category(c: CocoTable, row: int) -> str:
    """categories[0] (id 1, dog)."""
    if not c.good["categories"][row]:
        return f"categories[{row}]"
    return f"categories[{row}] (id {c.category_id[row]}, {c.category_name[row]})"


def annotation(c: CocoTable, row: int) -> str:
    """annotations[5] (id 6, image 7)."""
    if not c.good["annotations"][row]:
        return f"annotations[{row}]"
    image_row = image_rows(c, np.array([row]))[0]
    name = f" {c.image_name[image_row]}" if image_row >= 0 else ""
    return f"annotations[{row}] (id {c.id[row]}, image {c.image[row]}{name})"


def repeated(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Rows whose value stands in a row before; rows that are not good count for nothing."""
    rows = np.flatnonzero(good)
    _, first = np.unique(values[rows], return_index=True)
    again = np.ones(len(rows), bool)
    again[first] = False
    return rows[again]


def found(wanted: np.ndarray, known: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return the first good row of `known` for each wanted value; -1 where there is none."""
    rows = np.flatnonzero(good)
    if not len(rows):
        return np.full(len(wanted), -1)
    order = rows[np.argsort(known[rows], kind="stable")]
    at = np.minimum(np.searchsorted(known[order], wanted), len(order) - 1)
    return np.where(known[order[at]] == wanted, order[at], -1)


def image_rows(c: CocoTable, annotations: np.ndarray | None = None) -> np.ndarray:
    """Return the row in `images` of each annotation; -1 without one."""
    wanted = c.image if annotations is None else c.image[annotations]
    return found(wanted, c.image_id, c.good["images"])


def by_image(c: CocoTable) -> Callable[[int], np.ndarray]:
    """Give the rows of the good annotations of an image id."""
    rows = np.flatnonzero(c.good["annotations"])
    rows = rows[np.argsort(c.image[rows], kind="stable")]
    ids = c.image[rows]
    return lambda image: rows[slice(*np.searchsorted(ids, (image, image + 1)))]


def category_rows(c: CocoTable) -> np.ndarray:
    """Return the row in `categories` of each annotation; -1 without one."""
    return found(c.category, c.category_id, c.good["categories"])
