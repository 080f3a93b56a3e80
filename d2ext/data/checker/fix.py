"""A COCO dict without errors: findings are mended, round by round, until none is left to mend."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from d2ext.data.checker import mend_annotations, mend_entries
from d2ext.data.checker.columns import Columns, columns
from d2ext.data.checker.finding import ERROR, Finding
from d2ext.data.checker.mending import Mending
from d2ext.errors import UserError

_ROUNDS = 50  # each removes or mends something; real files take two or three

# Later ones wait for the earlier: only when its image is right can a mask be said not to fit it.
STAGES: tuple[dict[str, Callable[[Mending, Finding], None]], ...] = (
    mend_entries.REMEDIES,
    mend_annotations.ENTRIES,
    mend_annotations.SHAPES,
)
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
    """Mends what can be mended and removes what cannot; what was right is left as it was.

    Annotations keep their ids but for those that are 0, missing or taken.

    Args:
        content: a COCO dict.
        findings: the checks.
        files: what is known of the image files; None where they are not looked at.
        own: the dict may be changed.

    Raises:
        UserError: it lacks one of the three lists.
    """
    content = dict(content) if own else copy.deepcopy(content)
    columns(content)  # raises for what is no COCO file
    m = Mending(content, files)
    left: list[Finding] = []
    for turn in range(_ROUNDS + 1):
        m.begin(columns(content))
        left, before = findings(m.columns), m.done
        for stage in STAGES if turn < _ROUNDS else ():
            for f in left:
                if f.code in stage:
                    stage[f.code](m, f)
            if m.done > before:
                break
        if m.done == before:
            break
        m.end()
    if errors := [f for f in left if f.severity == ERROR]:
        raise UserError(f"cannot be mended: {errors[0].what}: {errors[0].example}; correct it")
    return Fixed(content, m.changes, left)
