"""Pages in a real browser: charts are drawn, without errors, on phones and with the keyboard."""

import json
from datetime import datetime, timedelta

import pytest

from d2ext.report import write_comparison, write_report
from tests.report.test_compare import write_drawn
from tests.report.test_report import (
    add_intervals,
    write_analysis,
    write_overview,
    write_run,
    write_scaling,
)

pytestmark = pytest.mark.browser

EVIL = "</script><script>document.title = 'evil'</script><!--\"'&"
RANGE = "(box) => [box.plot.scales.x.min, box.plot.scales.x.max]"
# Number of drawn pixels of a canvas, and the mean sum of their three colors.
INK = """(canvas) => {
  const {width, height} = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  const {data} = copy.getImageData(0, 0, width, height);
  let drawn = 0, light = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3]) { drawn += 1; light += data[i] + data[i + 1] + data[i + 2]; }
  return [drawn, light / drawn];
}"""

DRAWN = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  const boxes = [...document.querySelectorAll(".chart")];
  while (boxes.some((box) => box.checkVisibility() && !box.plot)) await frame();
  for (let i = 0; i < 3; i += 1) await frame();
}"""


@pytest.fixture
def run(tmp_path):
    """Write a run with everything that a page can show."""
    run = write_run(tmp_path / "run")
    write_analysis(run, ["balloon", EVIL], "overlays/balloon_val/photo.jpg")
    write_overview(run)
    write_scaling(run)
    (run / "log.txt").write_text("2026-03-04 10:00:00 W d2ext.a: " + "a_long_word" * 20 + "\n")
    return run


def drawn(page):
    """Wait until all visible charts are drawn, and return their `INK`."""
    page.evaluate(DRAWN)  # wait_for_function needs eval, which the pages' policy forbids
    return [canvas.evaluate(INK) for canvas in page.query_selector_all(".chart canvas")]


def fits(page):
    """Return whether the page does not scroll horizontally."""
    return page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def middle(element):
    """Scroll an element into view, and return the mouse position of its center."""
    element.scroll_into_view_if_needed()
    area = element.bounding_box()
    return area["x"] + area["width"] / 2, area["y"] + area["height"] / 2


def running(run, **more):
    """Write the page of a run that is still training."""
    info = json.loads((run / "run.json").read_text())
    info.pop("train_seconds", None)
    (run / "run.json").write_text(json.dumps(info | more))
    return write_report(run)


def pages(run, tmp_path):
    """Write the report and a comparison with another run."""
    other = write_run(tmp_path / "other")
    return write_report(run), write_comparison([run, other], tmp_path / "comparison.html")


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_drawn(show, run, tmp_path, width, scheme):
    report, comparison = pages(run, tmp_path)
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    for file, charts in ((report, 7), (comparison, 4)):
        page = show(file, **options)
        inks = drawn(page)
        assert len(inks) >= charts and all(pixels > 500 for pixels, _ in inks), inks
        assert fits(page)
        assert page.title() in ("my_recipe", "2 runs")
        for part in page.query_selector_all("details:not([open]) > summary"):
            part.click()
        assert len(drawn(page)) == page.evaluate("document.querySelectorAll('.chart').length")
        assert fits(page)


@pytest.mark.parametrize("width", [1200, 360])
def test_intervals_in_tables_and_charts(show, run, width):
    options = {"viewport": {"width": width, "height": 800}}
    chart = "[aria-label^='AP on balloon_val'] canvas"
    inks = []
    for with_bars in (False, True):
        if with_bars:
            add_intervals(run)
        page = show(write_report(run), **options)
        drawn(page)
        inks.append(page.query_selector(chart).evaluate(INK)[0])
        assert fits(page)
    assert inks[1] > inks[0] + 100  # the bars
    cell = page.get_by_text("[46.7, 56.7]").first
    assert cell.is_visible() and cell.bounding_box()["height"] < 40  # one line
    assert page.get_by_text("95 % bootstrap interval").is_visible()


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_differences_are_drawn(show, tmp_path, width, scheme):
    runs = [write_run(tmp_path / name) for name in ("one", "better", "a_name_that_is_long_" * 4)]
    for i, run in enumerate(runs):
        write_drawn(run, [50 + 4 * i * (k % 3 - 0.8) for k in range(40)])
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    page = show(write_comparison(runs, tmp_path / "page.html"), **options)
    drawn(page)
    assert fits(page)
    for whisker in page.query_selector_all(".whisker"):
        area = whisker.bounding_box()
        assert area["width"] > 200
        zero, reach, value = (i.bounding_box() for i in whisker.query_selector_all("i"))
        assert reach["width"] > 20 and value["width"] == 10
        middle = value["x"] + 5
        assert reach["x"] <= middle <= reach["x"] + reach["width"]
        assert 0 <= reach["x"] and reach["x"] + reach["width"] <= width
        # The second row's mean is 0.2 higher, so the interval contains 0.
        assert reach["x"] <= zero["x"] <= reach["x"] + reach["width"]
        assert whisker.get_attribute("aria-label").startswith(("better is", "a_name"))
    assert len(page.query_selector_all(".whisker")) == 2


def test_colors_follow_the_scheme(show, run):
    page = show(write_report(run), color_scheme="light")
    light = drawn(page)[0][1]
    page.emulate_media(color_scheme="dark")
    dark = drawn(page)[0][1]
    assert dark != light
    assert drawn(show(write_report(run), color_scheme="dark"))[0][1] == pytest.approx(
        dark, rel=0.01
    )


def test_keyboard_zooms(show, run):
    page = show(write_report(run))
    drawn(page)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.chart')"):
            break
    box = page.evaluate_handle("document.activeElement").as_element()
    assert box.get_attribute("aria-label").startswith("Total loss")
    assert box.evaluate("(e) => getComputedStyle(e).outlineStyle") == "solid"
    ranges = {}
    for key in ("", "+", "ArrowRight", "ArrowLeft", "-", "+", "+", "0"):
        if key:
            page.keyboard.press(key)
        drawn(page)
        ranges.setdefault(key, []).append(box.evaluate(RANGE))
    assert ranges[""] == [[0, 95]]
    assert ranges["+"][0] == [23.75, 71.25]
    assert ranges["ArrowRight"] == [[35.625, 83.125]]
    assert ranges["ArrowLeft"] == [[23.75, 71.25]]
    assert ranges["-"] == [[0, 95]]
    assert ranges["+"][2] == [35.625, 59.375]
    assert ranges["0"] == [[0, 95]]


def test_mouse_zooms_and_shows_values(show, run):
    page = show(write_report(run))
    drawn(page)
    box = page.query_selector(".chart")
    box.scroll_into_view_if_needed()
    area = box.query_selector(".u-over").bounding_box()
    middle = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + area["width"] / 2, middle)
    assert "iteration45total loss2.1" in box.inner_text().replace("\n", "")
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.75, middle, steps=4)
    page.mouse.up()
    drawn(page)
    low, high = box.evaluate(RANGE)
    assert 40 < low < 55 and 65 < high < 80
    page.mouse.dblclick(area["x"] + 40, middle)
    drawn(page)
    assert box.evaluate(RANGE) == [0, 95]


def test_hiding_a_line_hides_its_pale_line(show, run):
    page = show(write_report(run))
    drawn(page)
    shown = "(box) => box.plot.series.slice(1).map((s) => s.show)"
    box = page.query_selector(".chart")
    assert box.evaluate(shown) == [True, True]
    page.click(".chart .u-legend tr:not(.pale) >> text=total loss")
    assert box.evaluate(shown) == [False, False]


def test_extreme_numbers(show, run):
    rows = [{"iteration": 7, "lr": 1e-7, "d/coco/bbox/AP": 3.0, "loss_" + EVIL: 1e-38}]
    rows += [{"iteration": 10**15 * k, "total_loss": 1e38 * (-1) ** k} for k in range(1, 4)]
    (run / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = show(write_report(run))
    assert len(drawn(page)) == 5  # including the precision-recall curves
    assert page.title() == "my_recipe"


def test_only_pages_of_running_trainings_reload(show, run):
    for trains in (False, True):
        if trains:
            running(run)
        assert show(write_report(run)).locator(".live").count() == trains
        page = show(write_report(run), java_script_enabled=False)
        assert page.locator("noscript > meta[http-equiv=refresh]").count() == trains


def test_page_reloads_while_it_is_only_viewed(show, run):
    page = show(running(run), now=datetime.now())
    drawn(page)
    page.mouse.move(*middle(page.query_selector(".chart .u-over")))
    page.mouse.wheel(0, 300)
    running(run, name="renewed")
    with page.expect_event("load"):
        page.clock.fast_forward(61_000)
    assert page.title() == "renewed"
    assert page.is_hidden(".renew") and page.is_visible("text=Training is in progress")


def _drag(page):
    x, y = middle(page.query_selector(".chart .u-over"))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 50, y, steps=3)
    page.mouse.up()


TOUCHES = {
    "a zoom with the mouse": _drag,
    "a zoom with a button": lambda page: page.click(".zoom button >> nth=3"),
    "a hidden line": lambda page: page.click(".chart .u-legend tr:not(.pale) >> text=total loss"),
    "opened details": lambda page: page.click("details:not([open]) > summary >> nth=0"),
    "closed details": lambda page: page.click("details[open] > summary >> nth=0"),
    "details opened by find-in-page": lambda page: page.evaluate(
        "document.querySelector('details:not([open])').open = true"
    ),
    "the keyboard": lambda page: page.keyboard.press("Tab"),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_page_does_not_reload_after_an_interaction(show, run, touch):
    page = show(running(run), now=datetime.now(), viewport={"width": 360, "height": 800})
    drawn(page)
    assert page.is_hidden(".renew")
    TOUCHES[touch](page)
    page.click("h1")  # move the focus elsewhere
    running(run, name="renewed")
    for _ in range(2):
        page.clock.fast_forward(61_000)
        page.wait_for_timeout(200)
    assert page.title() == "my_recipe" and page.is_visible(".renew") and fits(page)
    with page.expect_event("load"):
        page.click("text=Reload now")
    assert page.title() == "renewed" and page.is_hidden(".renew")


def test_page_of_a_killed_training_says_so(show, run):
    page = show(running(run), now=datetime.now() + timedelta(minutes=8))
    assert page.inner_text(".live").startswith("Training is in progress")
    page.keyboard.press("Tab")
    page.clock.fast_forward(180_000)
    assert page.inner_text(".live").startswith("No update since 20")
    page = show(running(run), now=datetime.now() + timedelta(days=1))
    assert page.inner_text(".live").endswith("; training may have ended.")


def test_touch_zooms(show, run):
    page = show(write_report(run), has_touch=True, viewport={"width": 360, "height": 740})
    drawn(page)
    box = page.query_selector(".chart")
    for name, low, high in (
        ("zoom in", 23.75, 71.25),
        ("move right", 35.625, 83.125),
        ("move left", 23.75, 71.25),
        ("zoom out", 0, 95),
        ("zoom in", 23.75, 71.25),
        ("show all", 0, 95),
    ):
        button = page.get_by_role("button", name=name).first
        assert min(button.bounding_box()[side] for side in ("width", "height")) >= 24
        button.tap()
        drawn(page)
        assert box.evaluate(RANGE) == [low, high]
    button.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    drawn(page)
    assert box.evaluate(RANGE) == [23.75, 71.25]
    assert fits(page)


def test_page_without_scripts_says_so(show, run):
    page = show(write_report(run), java_script_enabled=False)
    assert "JavaScript, which is off" in page.inner_text("body")
    assert page.is_hidden(".zoom >> nth=0")
