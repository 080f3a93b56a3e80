"""Fix the errors in a COCO dict, in rounds, until nothing fixable is left."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from d2ext.data.validation.coco.finding import ERROR, Finding, printable
from d2ext.data.validation.coco.fixes import annotations, image_sizes, images_and_categories
from d2ext.data.validation.coco.fixes.changes import MutableCoco
from d2ext.data.validation.coco.table import CocoTable, coco_table
from d2ext.errors import UserError

_ROUNDS = 50  # each removes or fixes something; real files take two or three

# Each stage waits for the earlier ones, because a mask can be judged only by a correct image entry.
STAGES: tuple[Mapping[str, Callable[[MutableCoco, Finding], None]], ...] = (
    images_and_categories.REMEDIES,
    annotations.ENTRIES,
    image_sizes.REMEDIES,
    annotations.SHAPES,
)
# If a fix could lose or misplace valid data, the error stays; these are the steps for the user.
MANUAL_FIXES = {
    "image_malformed": "correct the entries",
    "image_path": "the intended file is ambiguous: correct file_name",
    "image_duplicate_id": "annotations refer to the id, and their image is unknown: give the images"
    " different ids",
    "image_duplicate_entry": "the entries differ in size: give --images, or correct width and"
    " height",
    "image_missing": "the intended file is ambiguous or missing: check --images, put the files"
    " there, or correct file_name",
    "image_refused": "see the finding for the remedy",
    "image_unreadable": "replace the files",
    "image_size": "neither proportions nor EXIF data show how to move its shapes: give the images"
    " that were annotated, or correct width and height",
    "category_duplicate_id": "annotations refer to the id, and their category is unknown: give the"
    " categories different ids",
    "annotation_malformed": "correct image_id, category_id, bbox or segmentation",
    "unknown_image": "add the images to the file",
    "box_outside": "correct the boxes, or width and height of the images",
    "rle_size": "give the images that were annotated, or correct the masks",
}
# Entries with these errors that cannot be fixed are removed by --drop-unusable.
DROPPED = frozenset(
    "image_malformed image_path image_missing image_unreadable annotation_malformed unknown_image"
    " box_outside rle_size".split()
)
_NAMED = 10  # entries listed in a message
_SIMILAR = 3  # similar files listed for each of them
REMEDIES = {code: remedy for stage in STAGES for code, remedy in stage.items()}


@dataclass(frozen=True)
class Fixed:
    """A fixed file.

    Attributes:
        content: The COCO dict.
        changes: One line for each change, with the rows of the original file.
        findings: Remaining findings, none of which is an error.
    """

    content: dict
    changes: list[str]
    findings: list[Finding] = field(repr=False)


def fix(
    content: dict,
    findings: Callable[[CocoTable], list[Finding]],
    files: images_and_categories.Files | None = None,
    in_place: bool = False,
    drop: bool = False,
) -> Fixed:
    """Fix all errors in a COCO dict, and leave the rest unchanged.

    Only useless entries are removed, such as copies, and annotations with neither box nor mask.
    Annotations keep their ids, unless these are 0, missing or taken.

    Args:
        content: COCO dict.
        findings: Function that runs the checks.
        files: Image folder; None if images are not read.
        in_place: Allow changes to the lists and entries of `content`.
        drop: Also remove images and annotations that the user could still repair; see `DROPPED`.

    Raises:
        UserError: The dict lacks one of the three lists, or an error cannot be fixed without the
            risk of losing or misplacing valid data; see `MANUAL_FIXES`.
    """
    content = dict(content) if in_place else copy.deepcopy(content)
    coco_table(content)  # raises UserError unless this is a COCO dict
    m = MutableCoco(content, files, drop)
    left: list[Finding] = []
    for turn in range(_ROUNDS + 1):
        m.begin(coco_table(content))
        left, before = findings(m.columns), m.done
        for stage in STAGES if turn < _ROUNDS else ():
            if stage is annotations.SHAPES and (unfixed := [f for f in left if _is_early(f)]):
                raise UserError(_refusal(m, unfixed))  # shapes may be valid in another image
            for f in left:
                if f.code in stage:
                    stage[f.code](m, f)
            if m.done > before:
                break
        if m.done == before:
            break
        m.end()
    if errors := [f for f in left if f.severity == ERROR]:
        raise UserError(_refusal(m, errors))
    return Fixed(content, m.changes, left)


def _is_early(f: Finding) -> bool:
    return f.severity == ERROR and f.code not in annotations.SHAPES


def _image(m: MutableCoco, f: Finding, row: int) -> str:
    """Return an image's name and, if there is no such file, similar file names."""
    name = m.columns.image_name[row]
    similar = m.files.similar(name) if m.files and f.code in ("image_path", "image_missing") else []
    return f"{name}, similar to {' and '.join(similar[:_SIMILAR])}" if similar else name


def _refusal(m: MutableCoco, errors: Sequence[Finding]) -> str:
    """Explain why nothing is written: the entries with errors, and what to do."""
    f, *more = errors
    names = [m.where(f.part, row) for row in f.rows[:_NAMED]]
    if f.part == "images":
        names = [f"{n} ({_image(m, f, i)})" for n, i in zip(names, f.rows, strict=False)]
    rest = f", and {f.count - _NAMED} more" if f.count > _NAMED else ""
    places = printable(", ".join(names), 1000) + rest
    remedy = MANUAL_FIXES.get(f.code, "correct them")
    if f.code in DROPPED and not m.drop:
        remedy += "; --drop-unusable removes entries that cannot be fixed"
    others = f" (and {sum(e.count for e in more)} other errors)" if more else ""
    return (
        "nothing was written, because some errors cannot be fixed automatically:"
        f" {f.count} {f.what}: {places}{others}; {remedy}"
    )
