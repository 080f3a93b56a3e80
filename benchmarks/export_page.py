"""Measure the page of `d2ext export RUN --html PAGE` in Chromium, and take the picture for README.

    python benchmarks/export_page.py PAGE PHOTOS [--picture docs/page.jpg]

Opens the page from the disk, without a network, gives it the photos of a folder one by one, and
prints the size of the page, the seconds until it is ready, and those of the first and the median
photo: on the clock, and of the processor, which depend less on other work on the machine. No other
chromium may run. The picture shows the photo with the given number, counted from 1.
"""

import argparse
import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine
from PIL import Image
from playwright.sync_api import sync_playwright

from d2ext.data.formats.images import images_in
from d2ext.text import plural

WIDTH, HEIGHT = 900, 1000  # of the picture, in pixels


def _now() -> np.ndarray:
    """Return the seconds on the clock, and the processor time of all processes of chromium."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            name, _, fields = process.read_text().rpartition(")")
            if name.endswith("(chromium"):
                ticks += sum(map(int, fields.split()[11:13]))
    return np.array((time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK")))


def _process(page: Any, photo: Path) -> np.ndarray:
    """Return both times in which a page processes a photo."""
    start = _now()
    page.set_input_files("input[type=file]", photo)
    page.wait_for_selector("html[data-state=done]", timeout=600_000)
    return _now() - start


def main() -> None:
    """Print the figures, and write the picture if one is wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="JPEG to write")
    parser.add_argument("--photo", type=int, default=1, help="photo of the picture (1)")
    args = parser.parse_args()
    photos = [args.photos / name for name in images_in(args.photos)]
    if len(photos) < 2:
        parser.error(f"{args.photos} has {plural(len(photos), 'photo')}; give at least 2")
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": WIDTH, "height": HEIGHT})
        page = context.new_page()
        start = _now()
        page.goto(args.page.resolve().as_uri())
        page.wait_for_selector("html[data-state=ready]", timeout=600_000)
        ready = _now() - start
        first, *others = (_process(page, photo) for photo in photos)
        if args.picture:
            page.locator("#photos button").nth(args.photo - 1).click()
            page.locator("#caption", has_text=f"{args.photo}. ").wait_for()
            page.evaluate("scrollTo(0, 0)")
            shot = args.picture.with_suffix(".png")
            page.screenshot(path=shot)
            with Image.open(shot) as image:
                image.convert("RGB").save(args.picture, quality=80, optimize=True)
            shot.unlink()
        version = browser.version
        browser.close()
    print(f"{args.page.stat().st_size / 1e6:.1f} MB, {len(photos)} photos")
    for what, (wall, cpu) in (
        ("ready", ready),
        ("the first photo", first),
        ("a photo (median of the others)", np.median(others, axis=0)),
    ):
        print(f"{what}: {wall:.2f} s, {cpu:.2f} s of the processor")
    print(f"{machine()}, Chromium {version}")


if __name__ == "__main__":
    main()
