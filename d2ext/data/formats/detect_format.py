"""Which format an annotation file is of, from what is in it."""

import csv
from pathlib import Path

from d2ext.data.formats.format import FileHead
from d2ext.data.formats.json_io import csv_rows, outline, read_json
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.registry import FORMATS
from d2ext.errors import UserError


def detect_format(file: str | Path) -> str:
    """Return the name of the format of an annotation file that training reads as it is.

    Raises:
        UserError: the file is absent, cannot be read, or is of another format.
    """
    head = _head(Path(file))
    for form in FORMATS.values():
        if form.dataset and form.detect(head):
            return form.name
    raise _unknown(file)


def _head(file: Path) -> FileHead:
    """Return what a file holds, read in a fraction of the time of its whole content."""
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml", ".xml", ".txt", ".zip") or file.is_dir():
        return FileHead(suffix)  # `advice` reads it
    if suffix == ".csv":
        try:
            return FileHead(suffix, columns=frozenset(csv_rows(file).fieldnames))
        except csv.Error:
            return FileHead(suffix)
    value = outline(file)
    if isinstance(value, dict) and all(isinstance(part, dict) for part in value.values()):
        value = read_json(file)  # a format may be known by what these hold
    return FileHead(suffix, value=value)


def _unknown(file: str | Path) -> UserError:
    read = [form for form in FORMATS.values() if form.dataset]
    if known := advice(file, *(form.name for form in read)):
        return UserError(f"{file} is {known}")
    *others, last = (form.title for form in FORMATS.values() if not form.dataset)
    return UserError(
        f"{file} is of no format that is known here: {', '.join(form.title for form in read)};"
        f" convert it with tools/convert_dataset.py, which reads {', '.join(others)} and {last}, or"
        " export it as COCO from the program that wrote it"
    )
