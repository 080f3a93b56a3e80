"""Register d2ext's annotation formats; to add one, write its module and add it here."""

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
from d2ext.data.formats.format import Format, formats, register_format

BUILT_IN = (
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
for form in BUILT_IN:
    register_format(form)


def converted_formats() -> list[Format]:
    """Return the formats that `d2ext convert` turns into COCO."""
    return [form for form in formats().values() if form.source]


def writers() -> dict[str, Callable[..., Mapping[str, int]]]:
    """Return the writers of all formats, by the names that `d2ext convert coco --to` accepts."""
    return dict(sorted(pair for form in formats().values() for pair in form.write.items()))
