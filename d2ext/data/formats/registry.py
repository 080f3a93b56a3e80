"""The annotation formats. To add one, write its file and add it here."""

from collections.abc import Callable, Mapping

from d2ext.data.formats import (
    coco,
    createml,
    cvat,
    labelme,
    middle,
    open_images,
    via,
    voc,
    yolo,
)
from d2ext.data.formats.format import FORMATS, Format

FORMATS |= {
    form.name: form
    for form in (
        coco.FORMAT,
        via.FORMAT,
        middle.FORMAT,
        labelme.FORMAT,
        yolo.FORMAT,
        voc.FORMAT,
        cvat.FORMAT,
        createml.FORMAT,
        open_images.FORMAT,
    )
}


def converted_formats() -> list[Format]:
    """Return the formats that `d2ext convert` turns into COCO."""
    return [form for form in FORMATS.values() if form.source]


def writers() -> dict[str, Callable[..., Mapping[str, int]]]:
    """Return the writers of all formats, by the names that `d2ext convert coco --to` takes."""
    return dict(sorted(pair for form in FORMATS.values() for pair in form.write.items()))
