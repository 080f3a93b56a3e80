"""Prepare data for charts.js, and the scripts and styles of a page with charts."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from d2ext.evaluation.bootstrap.comparison import Difference

Curve = list[tuple[float, float]]  # (iteration, value) in the order of the iterations

_HERE = Path(__file__).parent
_MAX_POINTS = 500  # per line; more are not visible, but increase the file size


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: Name in the legend.
        curve: Points of the line.
        raw: Points of a pale line below it.
        color: Number of the color.
        dashed: Whether to draw dashes, which set apart lines of one color.
        bars: Intervals as (iteration, low, high), drawn as vertical bars.
    """

    label: str
    curve: Curve
    raw: Curve = ()
    color: int = 0
    dashed: bool = False
    bars: Sequence[tuple[float, float, float]] = ()


def smooth(curve: Curve) -> Curve:
    """Return a centered moving average over a tenth of the curve, at up to 500 points."""
    last, reach = len(curve) - 1, len(curve) // 20
    values = [v for _, v in curve]
    count = min(len(curve), _MAX_POINTS)
    rows = [round(k * last / max(1, count - 1)) for k in range(count)]
    windows = [values[max(0, i - reach) : i + reach + 1] for i in rows]
    return [(curve[i][0], sum(w) / len(w)) for i, w in zip(rows, windows, strict=True)]


def thinned(curve: Curve, limit: int = _MAX_POINTS) -> Curve:
    """Return at most `limit` points: both ends, and the extremes of equal segments in between."""
    if len(curve) <= limit:
        return list(curve)
    parts = limit // 2 - 1
    inner, kept = len(curve) - 2, [0]
    for k in range(parts):
        part = range(1 + k * inner // parts, 1 + (k + 1) * inner // parts)
        extremes = (f(part, key=lambda i: curve[i][1]) for f in (min, max))
        kept += sorted(set(extremes))
    return [curve[i] for i in [*kept, len(curve) - 1]]


def chart(
    lines: Sequence[Line],
    ylabel: str,
    ylim: tuple[float, float] | None = None,
    xlabel: str = "iteration",
) -> Markup:
    """Return the data of a line chart.

    Args:
        lines: Lines to draw; a line of one point is a dot.
        ylabel: Name and unit of the values.
        ylim: Range to show; by default, the range of the values.
        xlabel: Name of the horizontal axis.

    Returns:
        JSON for a `<script type="application/json">`, escaped so that it cannot end the element.
    """
    content = {"xlabel": xlabel, "ylabel": ylabel, "ylim": ylim, "lines": list(map(_plain, lines))}
    # Names come from users; without "<", there can be neither "</script" nor "<!--".
    return Markup(json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"))


def _plain(line: Line) -> dict:
    return {
        "label": line.label,
        "color": line.color,
        "dashed": line.dashed,
        "curve": _columns(line.curve),
        "raw": _columns(line.raw),
        "bars": line.bars,
    }


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    kept = thinned(curve)
    return [x for x, _ in kept], [float(f"{v:.6g}") for _, v in kept]


def whiskers(rows: Iterable[Difference]) -> dict[str, Any]:
    """Return the places of differences and their intervals on a common scale that includes 0.

    Returns:
        `rows` of (start, width, value) in percent of the scale; `zero`, the place of 0 on it; and
        its ends `low` and `high`.
    """
    rows = list(rows)
    ends = [0.0, *(end for row in rows for end in row.interval)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    def width(row: Difference) -> float:
        return place(row.interval[1]) - place(row.interval[0])

    places = [(place(row.interval[0]), width(row), place(row.value)) for row in rows]
    return {"low": low, "high": high, "zero": place(0), "rows": places}


def page_parts() -> dict[str, Markup]:
    """Return `style`, `script`, and its `script_hash` for the page's security policy."""
    scripts = ("uplot/uPlot.iife.min.js", "bars.js", "charts.js", "live.js")
    script = "".join(map(_text, scripts))
    digest = hashlib.sha256(script.encode()).digest()
    return {
        "style": Markup(_text("uplot/uPlot.min.css")),
        "script": Markup(script),
        "script_hash": Markup("sha256-" + base64.b64encode(digest).decode()),
    }


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
