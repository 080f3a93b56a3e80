"""Determine when a page was written, and how long it counts as current."""

from datetime import datetime
from itertools import pairwise
from statistics import fmean
from typing import Any

from d2ext.report.read import RunRecord

_LEAST = 600  # seconds
_GAPS = 5  # multiple of the longest interval between evaluations, each of which writes a page


def live(run: RunRecord) -> dict[str, Any]:
    """Return `written` (a date), `seconds` (the same since 1970) and `patience` (in seconds)."""
    now = datetime.now().astimezone()
    return {
        "written": f"{now:%Y-%m-%d %H:%M %Z}",
        "seconds": round(now.timestamp()),
        "patience": round(_patience(run)),
    }


def _patience(run: RunRecord) -> float:
    """Return the number of seconds without a new page after which training may have ended."""
    steps = [seconds for _, seconds in run.curves.get("time", []) if seconds > 0]
    if not steps:
        return _LEAST
    # Names of results have four parts. The time since the last evaluation is an interval, too.
    ends = {i for name, curve in run.curves.items() if name.count("/") >= 3 for i, _ in curve}
    ends |= {-1, run.curves["time"][-1][0]}
    gap = max(b - a for a, b in pairwise(sorted(ends)))
    return max(_LEAST, _GAPS * gap * fmean(steps))
