"""Write the findings as one self-contained HTML page."""

from pathlib import Path

from d2ext.data.validation.coco.finding import SEVERITIES, Finding
from d2ext.data.validation.coco.fixes.fix import Fixed
from d2ext.data.validation.coco.source import Source
from d2ext.data.validation.coco.table import CocoTable
from d2ext.files import atomic_write
from d2ext.html import page_template

_PLACES = 50  # rows listed for each finding
_CHANGES = 100_000


def write_page(
    path: Path, source: Source, c: CocoTable, findings: list[Finding], fixed: Fixed | None
) -> None:
    """Write the page; raise UserError if it cannot be written."""
    html = page_template(Path(__file__).with_name("findings_page.html")).render(
        name=source.json_file.name,
        source=source,
        counts=[
            ("images", len(c.image_id)),
            ("annotations", len(c.id)),
            ("categories", len(c.category_id)),
        ],
        severities={s: sum(f.severity == s for f in findings) for s in SEVERITIES},
        findings=[(f, _places(f)) for f in findings],
        changes=fixed.changes[:_CHANGES] if fixed else None,
        number_of_changes=len(fixed.changes) if fixed else 0,
        left=fixed.findings if fixed else [],
    )
    with atomic_write(path, "wb") as f:
        f.write(html.encode("utf-8", errors="replace"))


def _places(f: Finding) -> str:
    rows = [str(row) for row in f.rows[:_PLACES]]
    return f"{f.part}: {', '.join(rows)}" + (", ..." if f.count > _PLACES else "")
