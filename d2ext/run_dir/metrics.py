"""Read metrics.json: Detectron2's JSON lines with an `iteration` and a number for each name."""

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path, last: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """Read the rows of metrics.json in file order; return no rows if it is not a regular file.

    A resume from an older checkpoint repeats iterations; later rows take precedence.

    Args:
        path: Path of the file.
        last: Number of lines to read from the end; by default, all.

    Returns:
        The valid rows, each with an `iteration` from 0 to 2**53 - 1, and the number of other lines.
    """
    try:
        # Devices are not read, because they may be endless (/dev/full).
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return [], 0
    lines = text.splitlines()
    rows = [_parse(line) for line in (lines[-last:] if last else lines) if line.strip()]
    valid = [row for row in rows if row is not None]
    return valid, len(rows) - len(valid)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # for example, a line truncated by a kill
        return None
    iteration = row.get("iteration") if isinstance(row, dict) else None
    # Charts use floats, which cannot represent every integer from 2**53 on.
    return row if type(iteration) is int and 0 <= iteration < 2**53 else None
