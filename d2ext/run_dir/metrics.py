"""Read metrics.json: Detectron2's JSON lines, an `iteration` and a number for each name."""

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path, last: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """Read the rows of metrics.json in the order of the file; what is not a file has none.

    A resume from an older checkpoint repeats iterations: later rows win.

    Args:
        path: The file.
        last: Number of lines to read, from the end; by default, all.

    Returns:
        The valid rows, each with an `iteration` from 0 to 2**53 - 1, and the number of other lines.
    """
    try:
        # Not a device: /dev/full, for one, has no end.
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
    except (ValueError, RecursionError):  # such as a line that a kill cut off
        return None
    iteration = row.get("iteration") if isinstance(row, dict) else None
    # From 2**53 on, a float (all that a chart knows) no longer holds every integer.
    return row if type(iteration) is int and 0 <= iteration < 2**53 else None
