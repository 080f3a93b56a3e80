"""A COCO dict without errors: findings are mended, round by round, until none is left to mend."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from d2ext.data.validation.coco.finding import ERROR, Finding, printable
from d2ext.data.validation.coco.fixes import annotations, image_sizes, images_and_categories
from d2ext.data.validation.coco.fixes.changes import Mending
from d2ext.data.validation.coco.table import CocoTable, coco_table
from d2ext.errors import UserError

_ROUNDS = 50  # each removes or mends something; real files take two or three

# Later ones wait for the earlier: only when its image is right can a mask be said not to fit it.
STAGES: tuple[dict[str, Callable[[Mending, Finding], None]], ...] = (
    images_and_categories.REMEDIES,
    annotations.ENTRIES,
    image_sizes.REMEDIES,
    annotations.SHAPES,
)
# Where a remedy would lose or misplace what may be right, the error stays; what the user can do.
STAYING = {
    "image_malformed": "correct the entries",
    "image_path": "which file is meant is not certain: correct file_name",
    "image_duplicate_id": "annotations have the id, and which image they are of is unknown: give"
    " the images different ids",
    "image_duplicate_entry": "the entries differ in size: give --images, or correct width and"
    " height",
    "image_missing": "which file is meant is not certain: check --images, put the files there, or"
    " correct file_name",
    "image_refused": "see the finding for the remedy",
    "image_unreadable": "replace the files",
    "image_size": "neither proportions nor EXIF data tell how its shapes lie in the file: give the"
    " images that were annotated, or correct width and height",
    "category_duplicate_id": "annotations have the id, and which category they are of is unknown:"
    " give the categories different ids",
    "annotation_malformed": "correct image_id, category_id, bbox or segmentation",
    "unknown_image": "list the images",
    "box_outside": "correct the boxes, or width and height of the images",
    "rle_size": "give the images that were annotated, or correct the masks",
}
# Of these, --drop-unusable removes what cannot be repaired.
DROPPED = frozenset(
    "image_malformed image_path image_missing image_unreadable annotation_malformed unknown_image"
    " box_outside rle_size".split()
)
_NAMED = 10  # entries in a message
_SIMILAR = 3  # files named for one of them
REMEDIES = {code: remedy for stage in STAGES for code, remedy in stage.items()}


@dataclass(frozen=True)
class Fixed:
    """A mended file.

    Attributes:
        content: the COCO dict.
        changes: what was done, one line a change, by the rows of the file as it was.
        findings: what stays; no errors among it.
    """

    content: dict
    changes: list[str]
    findings: list[Finding] = field(repr=False)


def fix(
    content: dict,
    findings: Callable[[CocoTable], list[Finding]],
    files: images_and_categories.Files | None = None,
    own: bool = False,
    drop: bool = False,
) -> Fixed:
    """Fix what can be fixed; leave the rest as it was.

    Only what no one could use is removed: an annotation without box and mask, say, or a copy.
    Annotations keep their ids but for those that are 0, missing or taken.

    Args:
        content: a COCO dict.
        findings: the checks.
        files: what is known of the image files; None where they are not looked at.
        own: the dict may be changed.
        drop: also remove images and annotations that the user could still repair; see `DROPPED`.

    Raises:
        UserError: it lacks one of the three lists, or an error stays, because what may be right
            would get lost or to a wrong place: see `STAYING`.
    """
    content = dict(content) if own else copy.deepcopy(content)
    coco_table(content)  # raises for what is no COCO file
    m = Mending(content, files, drop)
    left: list[Finding] = []
    for turn in range(_ROUNDS + 1):
        m.begin(coco_table(content))
        left, before = findings(m.columns), m.done
        for stage in STAGES if turn < _ROUNDS else ():
            if stage is annotations.SHAPES and (staying := [f for f in left if _is_early(f)]):
                raise UserError(_staying(m, staying))  # shapes may be right in another image
            for f in left:
                if f.code in stage:
                    stage[f.code](m, f)
            if m.done > before:
                break
        if m.done == before:
            break
        m.end()
    if errors := [f for f in left if f.severity == ERROR]:
        raise UserError(_staying(m, errors))
    return Fixed(content, m.changes, left)


def _is_early(f: Finding) -> bool:
    return f.severity == ERROR and f.code not in annotations.SHAPES


def _image(m: Mending, f: Finding, row: int) -> str:
    """Return an image's name and, if no file has it, the files that it resembles."""
    name = m.columns.image_name[row]
    similar = m.files.similar(name) if m.files and f.code in ("image_path", "image_missing") else []
    return f"{name}, similar to {' and '.join(similar[:_SIMILAR])}" if similar else name


def _staying(m: Mending, errors: Sequence[Finding]) -> str:
    """Return why nothing is written: which entries, and what to do."""
    f, *more = errors
    names = [m.where(f.part, row) for row in f.rows[:_NAMED]]
    if f.part == "images":
        names = [f"{n} ({_image(m, f, i)})" for n, i in zip(names, f.rows, strict=False)]
    rest = f", and {f.count - _NAMED} more" if f.count > _NAMED else ""
    places = printable(", ".join(names), 1000) + rest
    remedy = STAYING.get(f.code, "correct them")
    if f.code in DROPPED and not m.drop:
        remedy += "; --drop-unusable removes those that cannot be repaired"
    others = f" (and {sum(e.count for e in more)} other errors)" if more else ""
    return (
        "nothing was written, because some errors cannot be fixed without a loss:"
        f" {f.count} {f.what}: {places}{others}; {remedy}"
    )
