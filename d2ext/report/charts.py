"""Prepare data for charts.js, and the scripts and styles of a page with charts."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

Curve = list[tuple[float, float]]  # (iteration, value) in the order of the iterations

_HERE = Path(__file__).parent
_MAX_POINTS = 500  # per line; more are not visible, but increase the file size


@dataclass(frozen=True)
class Line:
    """A line of a chart; `raw` is drawn pale below it, `dashed` sets apart lines of one color."""

    label: str
    curve: Curve
    raw: Curve = ()
    color: int = 0
    dashed: bool = False


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
    }


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    kept = thinned(curve)
    return [x for x, _ in kept], [float(f"{v:.6g}") for _, v in kept]


def page_parts() -> dict[str, Markup]:
    """Return `style`, `script`, and its `script_hash` for the page's security policy."""
    script = "".join(_text(name) for name in ("uplot/uPlot.iife.min.js", "charts.js", "live.js"))
    digest = hashlib.sha256(script.encode()).digest()
    return {
        "style": Markup(_text("uplot/uPlot.min.css")),
        "script": Markup(script),
        "script_hash": Markup("sha256-" + base64.b64encode(digest).decode()),
    }


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
