"""Check a COCO file and its images; print findings, and write a fixed file and an HTML report."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from d2ext.data.formats.coco_file import read_content
from d2ext.data.validation.coco.checks.all_checks import fast_findings, in_order
from d2ext.data.validation.coco.checks.image_files import (
    DECODED_BY_DEFAULT,
    Photo,
    categories_against,
    identical,
    image_files,
    read_photos,
)
from d2ext.data.validation.coco.finding import ERROR, SEVERITIES, Finding
from d2ext.data.validation.coco.fingerprint import table_fingerprint
from d2ext.data.validation.coco.fixes.fix import Fixed, fix
from d2ext.data.validation.coco.fixes.images_and_categories import Files
from d2ext.data.validation.coco.source import Source
from d2ext.data.validation.coco.table import CocoTable, read_coco_table
from d2ext.errors import UserError
from d2ext.files import atomic_write
from d2ext.text import plural

logger = logging.getLogger(__name__)
_CHANGES_SHOWN = 20


class Checks:
    """The checks that `source` asks for; call them with a table.

    What they read from image files is cached, so that checking a fixed file is fast.

    Attributes:
        photos: Returns the photos of these names that are in the folder.

    Raises:
        UserError: A folder or the other file does not exist, or the latter is not a COCO file.
    """

    def __init__(self, source: Source):
        self._source = source
        self.photos = _album(source.images, source.decode)
        self._other = read_coco_table(source.against) if source.against else None
        self._other_photos = _album(source.against_images or source.images, False)

    def __call__(self, c: CocoTable) -> list[Finding]:
        source, other = self._source, self._other
        found = fast_findings(c, source.anchors, source.images, source.max_detections)
        if other is not None:
            found += categories_against(c, other)
        if source.images is not None:
            seen = self.photos(c.image_name)
            found += image_files(c, seen)
            pair = None
            if other is not None:
                root = source.against_images or source.images
                pair = (self._other_photos(other.image_name), root)
            found += identical(c, seen, source.images, pair)
        return in_order(found)


def _album(
    root: Path | None, decode: bool | None
) -> Callable[[Iterable[str]], Mapping[str, Photo]]:
    if root is not None and not root.is_dir():
        raise UserError(f"--images {root}: no such folder")
    known: dict[str, Photo] = {}

    def photos(names: Iterable[str]) -> Mapping[str, Photo]:
        names = [n for n in dict.fromkeys(names) if n]
        assert root is not None  # without a folder, no check asks for photos
        new = [n for n in names if n not in known]
        pixels = decode if decode is not None else len(names) <= DECODED_BY_DEFAULT
        known.update(read_photos(root, new, pixels))
        return {n: known[n] for n in names if n in known}

    return photos


def write_fixed(source: Source, output: Path, check: Checks, drop: bool = False) -> Fixed:
    """Write a copy of the file without its errors; see `fix` for `drop`.

    Raises:
        UserError: Nothing would be left, an error cannot be fixed (see `fix`), or `output` cannot
            be written.
    """
    content = read_content(source.json_file)
    files = Files(source.images, check.photos) if source.images else None
    fixed = fix(content, check, files, in_place=True, drop=drop)
    for part, remedy in (("images", "check --images"), ("annotations", "see the findings")):
        if content[part] and not fixed.content[part]:
            raise UserError(f"none of {source.json_file}'s {part} would be left; {remedy}")
    with atomic_write(output, "wb") as f:
        f.write(_encoded(fixed.content))
    return fixed


def _encoded(content: dict) -> bytes:
    try:
        return msgspec.json.encode(content)
    except (UnicodeEncodeError, ValueError, OverflowError):
        import json  # escapes lone surrogates and accepts integers of any size

        return json.dumps(content).encode("ascii")


def check_coco_file(
    source: Source, output: Path | None = None, page: Path | None = None, drop: bool = False
) -> int:
    """Check a file, optionally fix it, and print its fingerprint and the findings.

    Args:
        source: File to check, with its options.
        output: Path of the fixed file; None writes none.
        page: Path of the HTML report; None writes none.
        drop: See `fix`.

    Returns:
        1 if there are errors (in the fixed file, if one is written), else 0.

    Raises:
        UserError: A file or folder does not exist, is not a COCO file or cannot be written; an
            output is the same file as an input or another output; or `write_fixed` refuses.
    """
    _refuse_overwriting(source, output, page)
    c = read_coco_table(source.json_file)
    check = Checks(source)
    found = check(c)
    print(
        f"{source.json_file}: {plural(len(c.image_id), 'image')},"
        f" {plural(len(c.id), 'annotation')}, {plural(len(c.category_id), 'category')}"
    )
    if data := table_fingerprint(c):
        for line in data.lines():
            print(f"    {line}")
    for line in lines(found, fixing=output is None):
        print(line)
    fixed = None
    if output is not None:
        fixed = write_fixed(source, output, check, drop)
        for line in fixed_lines(fixed, output):
            print(line)
    if page is not None:
        from d2ext.data.validation.coco.findings_page import write_page

        write_page(page, source, c, found, fixed)
        print(f"{page} written")
    left = fixed.findings if fixed else found
    return int(any(f.severity == ERROR for f in left))


def _refuse_overwriting(source: Source, output: Path | None, page: Path | None) -> None:
    used = {"JSON": source.json_file, "--against": source.against, "--fix": output}
    for option, path in (("--fix", output), ("--html", page)):
        for other, file in used.items():
            if path and file and other != option and _is_same(path, file):
                raise UserError(f"{option} {path} is also the file of {other}; give another name")


def _is_same(a: Path, b: Path) -> bool:
    """Return whether two paths mean one file, which may be linked or not exist yet."""
    both = a.exists() and b.exists()
    return a.samefile(b) if both else os.path.realpath(a) == os.path.realpath(b)


def lines(findings: list[Finding], fixing: bool = True) -> list[str]:
    """Format findings as text: what is wrong, where, and what `--fix` does about it."""
    made = []
    for f in findings:
        made.append(f"{f.severity}: {f.code}: {f.count} {f.what}")
        made.append(f"    e.g. {f.example}")
        if fixing:
            made.append(f"    --fix: {f.fix}")
    counts = ((s, sum(f.severity == s for f in findings)) for s in SEVERITIES)
    return [*made, ", ".join(f"{plural(n, 'kind')} of {s}" for s, n in counts)]


def fixed_lines(fixed: Fixed, output: Path) -> list[str]:
    """Format what was fixed and what remains."""
    removed = sum(": removed: " in change for change in fixed.changes)
    made = [f"{output} written: {plural(len(fixed.changes), 'change')}, {removed} of them removals"]
    made += [f"    {change}" for change in fixed.changes[:_CHANGES_SHOWN]]
    if len(fixed.changes) > _CHANGES_SHOWN:
        more = len(fixed.changes) - _CHANGES_SHOWN
        made.append(f"    and {more} more; --html lists them all")
    rest = ", ".join(f"{f.count} {f.code}" for f in fixed.findings) or "none"
    return [*made, f"no errors are left; other findings: {rest}"]
