"""When a page was written, and how long one of a training stands for something that is alive."""

from datetime import datetime
from itertools import pairwise
from statistics import fmean
from typing import Any

from d2ext.report.read import RunRecord

_LEAST = 600  # seconds
_GAPS = 5  # so many times the longest one between two evaluations, each of which writes a page


def live(run: RunRecord) -> dict[str, Any]:
    """`written`, a date in words; `seconds`, the same since 1970; `patience`, see `_patience`."""
    now = datetime.now().astimezone()
    return {
        "written": f"{now:%Y-%m-%d %H:%M %Z}",
        "seconds": round(now.timestamp()),
        "patience": round(_patience(run)),
    }


def _patience(run: RunRecord) -> float:
    """Seconds without a new page after which a training may have ended."""
    steps = [seconds for _, seconds in run.curves.get("time", []) if seconds > 0]
    if not steps:
        return _LEAST
    # Results have names of four parts. What is trained since the last ones is a gap as well.
    ends = {i for name, curve in run.curves.items() if name.count("/") >= 3 for i, _ in curve}
    ends |= {-1, run.curves["time"][-1][0]}
    gap = max(b - a for a, b in pairwise(sorted(ends)))
    return max(_LEAST, _GAPS * gap * fmean(steps))
