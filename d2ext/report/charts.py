"""Curves -> inline SVG that takes its text colour from the page (so it works in dark mode)."""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

Curve = list[tuple[float, float]]  # (iteration, value) in the order of the iterations

# Told apart by colour-blind readers, and visible on white as well as on black.
_PALETTE = ("#2f7ff7", "#e8710a", "#12a378", "#c74ad6", "#c79a00", "#e0435a", "#17a2c4", "#8a8f98")
_INK = "#010203"  # stands for the page's text colour until the SVG is written
_MAX_POINTS = 500  # of a line: more cannot be seen, but make the file big


@dataclass(frozen=True)
class Line:
    """One line of a chart: `raw` is drawn pale beneath, `dashed` tells apart lines of a colour."""

    label: str
    curve: Curve
    raw: Curve = ()
    color: int = 0
    dashed: bool = False


def smooth(curve: Curve) -> Curve:
    """Centred moving average over a tenth of the curve."""
    reach = len(curve) // 20
    values = [v for _, v in curve]
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(curve)))
    return [(x, sum(w) / len(w)) for (x, _), w in zip(curve, windows, strict=True)]


def svg(
    lines: Sequence[Line],
    ylabel: str,
    ylim: tuple[float, float] | None = None,
    xlabel: str = "iteration",
) -> str:
    """A line chart, mostly over the iterations.

    Args:
        lines: what to draw; a line of one point is a dot.
        ylabel: name and unit of the values.
        ylim: the range shown (default: what the values need).
        xlabel: name of what they are drawn over.

    Returns:
        An `<svg>` element without links or scripts, text escaped, about 8:5, at most some 30 KB
        a line.
    """
    # Here, because the import takes half a second that a usage error need not wait for.
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "d2ext",  # the same run gives the same page
        "text.parse_math": False,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        style[key] = _INK
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the font
        figure = Figure(figsize=(4.8, 3), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            color = _PALETTE[line.color % len(_PALETTE)]
            if line.raw:
                axes.plot(*_columns(line.raw), color=color, alpha=0.3, lw=0.8)
            axes.plot(
                *_columns(line.curve),
                color=color,
                lw=1.6,
                ls="--" if line.dashed else "-",
                marker="o" if len(line.curve) <= 30 else None,
                ms=3,
                label=line.label.encode(errors="replace").decode(),  # JSON may hold half characters
            )
        axes.xaxis.get_major_locator().set_params(integer=xlabel == "iteration")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.set_ylim(ylim)
        axes.grid(color=_INK, alpha=0.12)
        if any(line.label != ylabel for line in lines):
            columns = 2 if len(lines) <= 4 else 3
            figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # Sizes, XML namespaces and the names of groups mean nothing (and repeat) inside a page.
    text = re.sub(r'^<svg[^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', text)
    return re.sub(r'<g id="[^"]*">', "<g>", text)


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    step = -(-len(curve) // _MAX_POINTS)
    kept = [*curve[:-1:step], curve[-1]] if step > 1 else curve
    return [x for x, _ in kept], [v for _, v in kept]
