"""Describe places in a COCO file, and join its lists."""

from collections.abc import Callable

import numpy as np

from d2ext.data.validation.coco.table import CocoTable


def image(c: CocoTable, row: int) -> str:
    """Describe an image, such as "images[3] (id 7, a.jpg)"."""
    if not c.good["images"][row]:
        return f"images[{row}]"
    return f"images[{row}] (id {c.image_id[row]}, {c.image_name[row]})"


def category(c: CocoTable, row: int) -> str:
    """Describe a category, such as "categories[0] (id 1, dog)"."""
    if not c.good["categories"][row]:
        return f"categories[{row}]"
    return f"categories[{row}] (id {c.category_id[row]}, {c.category_name[row]})"


def annotation(c: CocoTable, row: int) -> str:
    """Describe an annotation, such as "annotations[5] (id 6, image 7 a.jpg)"."""
    if not c.good["annotations"][row]:
        return f"annotations[{row}]"
    image_row = image_rows(c, np.array([row]))[0]
    name = f" {c.image_name[image_row]}" if image_row >= 0 else ""
    return f"annotations[{row}] (id {c.id[row]}, image {c.image[row]}{name})"


def repeated(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return the good rows whose value an earlier good row has, too."""
    rows = np.flatnonzero(good)
    _, first = np.unique(values[rows], return_index=True)
    again = np.ones(len(rows), bool)
    again[first] = False
    return rows[again]


def found(wanted: np.ndarray, known: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return the first good row of `known` for each wanted value, or -1 if there is none."""
    rows = np.flatnonzero(good)
    if not len(rows):
        return np.full(len(wanted), -1)
    order = rows[np.argsort(known[rows], kind="stable")]
    at = np.minimum(np.searchsorted(known[order], wanted), len(order) - 1)
    return np.where(known[order[at]] == wanted, order[at], -1)


def image_rows(c: CocoTable, annotations: np.ndarray | None = None) -> np.ndarray:
    """Return the row in `images` of each annotation, or -1 if it is not listed."""
    wanted = c.image if annotations is None else c.image[annotations]
    return found(wanted, c.image_id, c.good["images"])


def by_image(c: CocoTable) -> Callable[[int], np.ndarray]:
    """Return a function that maps an image id to the rows of its good annotations."""
    rows = np.flatnonzero(c.good["annotations"])
    rows = rows[np.argsort(c.image[rows], kind="stable")]
    ids = c.image[rows]
    return lambda image: rows[slice(*np.searchsorted(ids, (image, image + 1)))]


def category_rows(c: CocoTable) -> np.ndarray:
    """Return the row in `categories` of each annotation, or -1 if it is not listed."""
    return found(c.category, c.category_id, c.good["categories"])
