"""The data of charts."""

import json
import random
from pathlib import Path

import pytest

from d2ext.report import charts
from d2ext.report.charts import Line, chart, smooth, thinned


def test_moving_average_over_a_tenth():
    assert smooth([(0, 1.0), (5, 3.0)]) == [(0, 1.0), (5, 3.0)]
    curve = [(i, float(i % 2)) for i in range(40)]
    assert smooth(curve)[20] == (20, pytest.approx(0.4))  # 18 to 22
    assert smooth(curve)[0] == (0, pytest.approx(1 / 3))  # 0 to 2
    assert smooth([]) == []
    long = smooth([(i, float(i % 2)) for i in range(20_001)])
    assert len(long) == 500 and (long[0][0], long[-1][0]) == (0, 20_000)
    assert {round(v, 1) for _, v in long} == {0.5}


@pytest.mark.parametrize("length", [0, 1, 2, 500, 501, 997, 12_345])
def test_thinned_curve_keeps_extremes(length):
    noise = random.Random(length)
    curve = [(3 * i, noise.gauss(0, 1)) for i in range(length)]
    kept = thinned(curve)
    assert len(kept) <= 500 and set(kept) <= set(curve) and kept == sorted(kept)
    if length <= 500:
        assert kept == curve
        return
    assert len(kept) > 400 and (kept[0], kept[-1]) == (curve[0], curve[-1])
    for extreme in (min, max):
        assert extreme(v for _, v in kept) == extreme(v for _, v in curve)


def test_peak_of_one_point_is_kept():
    curve = [(i, 100.0 if i == 5_001 else 1.0) for i in range(10_000)]
    assert (5_001, 100.0) in thinned(curve)


def test_chart_data_cannot_end_its_script_element():
    evil = "</script><!-- \u2028 气球 \ud800"
    bars = [(20, 1.5, 2.5)]
    line = Line(evil, [(0, 1 / 3), (20, 2.0)], raw=[(0, 1e38)], color=2, dashed=True, bars=bars)
    text = chart([line], "loss", (0, 1))
    assert "<" not in text and text.isascii()
    assert json.loads(text) == {
        "xlabel": "iteration",
        "ylabel": "loss",
        "ylim": [0, 1],
        "lines": [
            {
                "label": evil,
                "color": 2,
                "dashed": True,
                "curve": [[0, 20], [0.333333, 2.0]],
                "raw": [[0], [1e38]],
                "bars": [[20, 1.5, 2.5]],
            }
        ],
    }


def test_the_script_is_small():
    script = (Path(charts.__file__).parent / "charts.js").read_text()
    assert len(script.splitlines()) <= 100 and "\r" not in script and "</" not in script
    assert max(map(len, script.splitlines())) <= 100
