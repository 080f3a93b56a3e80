"""A COCO dict without errors: findings are mended, round by round, until none is left to mend."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from d2ext.data.checker import mend_annotations, mend_entries, mend_sizes
from d2ext.data.checker.columns import Columns, columns
from d2ext.data.checker.finding import ERROR, Finding, shown
from d2ext.data.checker.mending import Mending
from d2ext.errors import UserError

_ROUNDS = 50  # each removes or mends something; real files take two or three

# Later ones wait for the earlier: only when its image is right can a mask be said not to fit it.
STAGES: tuple[dict[str, Callable[[Mending, Finding], None]], ...] = (
    mend_entries.REMEDIES,
    mend_annotations.ENTRIES,
    mend_sizes.REMEDIES,
    mend_annotations.SHAPES,
)
# Where a remedy would lose or misplace what may be right, the error stays; what the user can do.
STAYING = {
    "image_size": "neither proportions nor EXIF data tell how its shapes lie in the file: give the"
    " images that were annotated, or correct width and height",
    "image_duplicate_entry": "the entries differ in size: give --images, or correct width and"
    " height",
    "image_path": "several entries or files could be meant: correct file_name",
    "image_missing": "several entries or files could be meant: correct file_name",
}
_NAMED = 10  # entries in a message
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
    findings: Callable[[Columns], list[Finding]],
    files: mend_entries.Files | None = None,
    own: bool = False,
) -> Fixed:
    """Mends what can be mended and removes what is wrong; what was right is left as it was.

    Annotations keep their ids but for those that are 0, missing or taken.

    Args:
        content: a COCO dict.
        findings: the checks.
        files: what is known of the image files; None where they are not looked at.
        own: the dict may be changed.

    Raises:
        UserError: it lacks one of the three lists, or an error stays, because what may be right
            would get lost or to a wrong place: see `STAYING`.
    """
    content = dict(content) if own else copy.deepcopy(content)
    columns(content)  # raises for what is no COCO file
    m = Mending(content, files)
    left: list[Finding] = []
    for turn in range(_ROUNDS + 1):
        m.begin(columns(content))
        left, before = findings(m.columns), m.done
        for stage in STAGES if turn < _ROUNDS else ():
            staying = [f for f in left if f.code in STAYING]
            if stage is mend_annotations.SHAPES and staying:
                raise UserError(_staying(m, staying[0]))  # shapes may be right in another image
            for f in left:
                if f.code in stage:
                    stage[f.code](m, f)
            if m.done > before:
                break
        if m.done == before:
            break
        m.end()
    if errors := [f for f in left if f.severity == ERROR]:
        raise UserError(_staying(m, errors[0]))
    return Fixed(content, m.changes, left)


def _staying(m: Mending, f: Finding) -> str:
    """Why nothing is written: which entries, and what to do."""
    names = [m.where(f.part, row) for row in f.rows[:_NAMED]]
    if f.part == "images":
        names = [f"{n} ({m.columns.image_name[i]})" for n, i in zip(names, f.rows, strict=False)]
    more = f", and {f.count - _NAMED} more" * (f.count > _NAMED)
    places = shown(", ".join(names), 1000) + more
    return (
        f"nothing is written, for not all can be mended: {f.count} {f.what}: {places};"
        f" {STAYING.get(f.code, 'correct it')} (or remove the entries with their annotations)"
    )
