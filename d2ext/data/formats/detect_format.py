"""Detect the format of an annotation file from its content."""

from collections.abc import Iterable
from pathlib import Path

from d2ext.data.formats.file_head import FileHead, read_head
from d2ext.data.formats.format import Format, formats, matching
from d2ext.data.formats.json_io import outline, read_bytes, read_json, read_text
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.registry import BUILT_IN, converted_formats
from d2ext.errors import UserError
from d2ext.invocation import command

# Files with other suffixes must be JSON; an error states where they are damaged.
_NOT_JSON = (".csv", ".txt", ".xml", ".yaml", ".yml", ".zip")


def detect_format(file: str | Path) -> str:
    """Return the name of an annotation file's format if training reads it directly.

    Raises:
        UserError: The file does not exist, cannot be read, or has another format.
    """
    if name := _detect(file, formats().values()):
        return name
    raise _unknown(file)


def detect_built_in(file: str | Path) -> str | None:
    """Return the name of a file's format if it is one of d2ext's own; None for other files.

    Raises:
        UserError: The file does not exist or cannot be read.
    """
    return _detect(file, BUILT_IN)


def _detect(file: str | Path, among: Iterable[Format]) -> str | None:
    form = matching(_head(Path(file)), [form for form in among if form.in_training])
    return form.name if form else None


def _head(file: Path) -> FileHead:
    """Return the parts of a file that identify its format, without parsing all of it."""
    suffix = file.suffix.lower()
    if file.is_dir():
        return FileHead(suffix)
    if suffix in _NOT_JSON:
        content = read_text(file).encode() if suffix == ".csv" else read_bytes(file)
        try:
            return read_head(content, suffix)
        except (ValueError, RecursionError):
            return FileHead(suffix)
    value = outline(file)
    if isinstance(value, dict) and all(isinstance(part, dict) for part in value.values()):
        value = read_json(file)  # the content of these dicts may identify the format
    return FileHead(suffix, value=value)


def _unknown(file: str | Path) -> UserError:
    read = [form for form in formats().values() if form.in_training]
    if known := advice(file, *(form.name for form in read)):
        return UserError(f"{file} is {known}")
    converted = [form for form in converted_formats() if not form.in_training]
    *others, last = (form.title for form in converted)
    return UserError(
        f"{file} has none of the formats that training reads:"
        f" {', '.join(form.title for form in read)}; convert it with `{command('convert')}`, which"
        f" reads {', '.join(others)} and {last}, or export it as COCO from the program that wrote"
        " it"
    )
