"""Tests of the page's controls in a real browser, with models that need no training."""

import base64
import io
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from d2ext.data.loading.image_io import read_photo
from d2ext.export.page import write_page
from tests.export.pages import INPUT, encoded, ready, results, saved, take, turned, write_model

pytestmark = pytest.mark.browser

EVIL = "</script><img src=x onerror=alert(1)>"
BLUE = (47, 127, 247)  # of the first object or class
# Drop files, given as {name: content in base64}; return the state of the page at that time.
DROP = """(files) => {
  const {state} = document.documentElement.dataset;
  const dataTransfer = new DataTransfer();
  for (const [name, content] of Object.entries(files)) {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    dataTransfer.items.add(new File([bytes], name));
  }
  const options = {dataTransfer, bubbles: true, cancelable: true};
  document.documentElement.dispatchEvent(new DragEvent("drop", options));
  return state;
}"""
# Add a photo with one object for each box, as if the model had found them; all have the same mask.
ADD = """([photo, width, height, boxes, mask]) => {
  const bytes = Uint8Array.from(atob(photo), (c) => c.charCodeAt(0));
  addPhoto({
    file: new File([bytes], "added.png"), orientation: 1, width, height, note: "",
    boxes: Float32Array.from(boxes.flat()), scores: new Float32Array(boxes.length).fill(0.75),
    labels: boxes.map(() => 0), masks: Float32Array.from(boxes.flatMap(() => mask)),
  });
  setState("done");
}"""
# Bring a page that is done into the state that it has after loading.
FORGET = """() => {
  photos.length = skipped.length = 0;
  totals.clear();
  for (const id of ["photos", "skipped"]) byId(id).replaceChildren();
  byId("threshold").value = 0.5;
  byId("results").hidden = true;
  shown = -1;
  update();
  setState("ready");
}"""
# Milliseconds that a drawing takes, and those of pasting its masks.
TIMES = """() => {
  const time = (task) => {
    const start = performance.now();
    task();
    return performance.now() - start;
  };
  const {width, height} = byId("photo");
  const scale = width / photos[shown].width;
  const paste = ({mask, box}) => pasteMask(
    mask, model.mask_size, box.map((value) => value * scale), width, height, 0.5);
  return [time(draw), time(() => photos[shown].objects.forEach(paste))];
}"""


def written(tmp_path_factory, **changes):
    folder = tmp_path_factory.mktemp("pages")
    write_page(write_model(folder / "model.onnx", **changes), folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def masks_page(tmp_path_factory):
    """Return a page with a Mask R-CNN, which finds OBJECTS in each photo."""
    return written(tmp_path_factory)


@pytest.fixture(scope="module")
def boxes_page(tmp_path_factory):
    """Return a page with a RetinaNet that takes BGR, and one of whose classes has an evil name."""
    classes = ["ball", EVIL, "dog"]
    return written(
        tmp_path_factory, architecture="RetinaNet", channels="BGR", classes=classes, mask_size=0
    )


@pytest.fixture(scope="module")
def opened(chromium, masks_page):
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.goto(masks_page.as_uri())
    yield ready(page)
    context.close()


@pytest.fixture
def page(opened):
    """Return a page without photos; opening a new one for each test would take minutes."""
    opened.set_viewport_size({"width": 1280, "height": 720})
    opened.evaluate(FORGET)
    return opened


def photo(folder, name, color="black", size=(150, 100)):
    """Write a photo of one color."""
    Image.new("RGB", size, color).save(folder / name)
    return folder / name


def in_base64(*files):
    return {file.name: base64.b64encode(file.read_bytes()).decode() for file in files}


def listed(page):
    return page.locator("#photos button").all_inner_texts()


def picture(page):
    """Return the name and the pixels of the picture that the page saves."""
    name, content = saved(page, "#save-png")
    return name, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_a_model_of_boxes(show, boxes_page, real_balloon, tmp_path):
    """Its classes are counted and saved, its input is BGR, and names are text, never HTML."""
    page = ready(show(boxes_page, offline=True))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "file"
    evil = photo(tmp_path, "<img src=x onerror=alert(2)>.png")
    take(page, evil, photo(tmp_path, "b.png"))
    assert listed(page) == [f"{evil.name}: {EVIL} 2, dog 1", f"b.png: {EVIL} 2, dog 1"]
    assert page.inner_text("#counts").split("\n") == [f"{EVIL}\t2\t4", "dog\t1\t2"]
    scores = page.locator("#scores li").all_text_contents()
    assert scores == ["dog 0.90", f"{EVIL} 0.80", f"{EVIL} 0.60"]
    assert page.locator("#caption").inner_text().startswith(f"1. {evil.name}, 150 x 100 pixels: ")
    found = results(page)
    assert list(found) == [1, 2]
    assert list(found[1][0]) == ["image_id", "category_id", "bbox", "score"]
    assert [row["category_id"] for row in found[2]] == [3, 2, 2]
    scale = 150 / 960  # the photo's width and the model's
    boxes = np.array([(10, 10, 90, 80), (50, 20, 250, 180), (0, 0, 20, 20)]) * scale
    assert np.abs([row["bbox"] for row in found[2]] - boxes).max() < 1e-4
    _, content = saved(page, "#save-images")
    index = json.loads(content)
    assert [category["name"] for category in index["categories"]] == ["ball", EVIL, "dog"]
    assert index["images"][0]["file_name"] == evil.name
    page.locator("#threshold").fill("0.85")
    page.locator("#least", has_text="0.85").wait_for()
    assert page.inner_text("#counts").strip() == "dog\t1\t2"
    assert listed(page)[1] == "b.png: dog 1"
    assert [len(rows) for rows in results(page).values()] == [1, 1]
    _, pixels = picture(page)
    edge = round(10 * scale)  # of the box of class 2, whose color is the third
    assert np.abs(pixels[10, edge] - (18, 163, 120)).max() < 30
    page.locator("#threshold").fill("1")
    page.locator("#caption", has_text="no objects").wait_for()
    assert not page.locator("#counts tr").count() and results(page) == {}
    assert page.locator("main img").count() == 0
    file = sorted((real_balloon / "val").glob("*.jpg"))[3]
    *size, pixels = page.workers[0].evaluate(INPUT, in_base64(file)[file.name])
    image = Image.fromarray(read_photo(file, "BGR"))
    assert base64.b64decode(pixels) == image.resize(size, Image.Resampling.BILINEAR).tobytes()


def test_photos_dropped_while_the_page_loads_are_processed(chromium, masks_page, tmp_path):
    files = json.dumps(in_base64(photo(tmp_path, "early.png")))
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.add_init_script(
        f"addEventListener('DOMContentLoaded', () => {{ window.early = ({DROP})({files}); }})"
    )
    page.goto(masks_page.as_uri())
    page.wait_for_selector("html[data-state=done]", timeout=300_000)
    assert page.evaluate("early") == "loading" and len(listed(page)) == 1
    context.close()


def test_photos_added_while_others_are_processed(page, tmp_path):
    """They wait for their turn; nothing is saved meanwhile, because it would be incomplete."""
    take(page, photo(tmp_path, "first.png"))
    a, b, c = (in_base64(photo(tmp_path, f"{name}.png")) for name in "abc")
    seen = page.evaluate(
        f"""async ([first, second]) => {{
          const seen = [];
          const observer = new MutationObserver(() => seen.push([
            byId("status").textContent, byId("progress").hidden, byId("progress").position]));
          observer.observe(byId("status"), {{childList: true}});
          const drop = {DROP};
          const states = [drop(first), drop(second)];
          const saving = ["save-json", "save-images"].map((id) => byId(id).disabled);
          while (document.documentElement.dataset.state !== "done")
            await new Promise((resume) => setTimeout(resume, 10));
          return {{seen, states, saving}};
        }}""",
        [c | b, a],
    )
    assert seen["states"] == ["done", "busy"] and seen["saving"] == [True, True]
    *steps, (last, is_hidden, _) = seen["seen"]
    assert [step[:2] for step in steps] == [
        ["b.png: photo 1 of 2", False],
        ["c.png: photo 2 of 3", False],
        ["a.png: photo 3 of 3", False],
    ]
    assert [step[2] for step in steps] == pytest.approx([-1, 1 / 3, 2 / 3])  # -1: unknown
    assert last == "4 photos." and is_hidden
    names = [text.partition(":")[0] for text in listed(page)]
    assert names == ["first.png", "b.png", "c.png", "a.png"]
    assert list(results(page)) == [1, 2, 3, 4]


def test_photos_dropped_while_results_are_saved_are_processed(page, tmp_path):
    take(page, photo(tmp_path, "a.png"))
    with page.expect_download() as download:
        state = page.evaluate(
            f"(files) => {{ byId('save-json').click(); return ({DROP})(files); }}",
            in_base64(photo(tmp_path, "b.png")),
        )
    page.wait_for_selector("html[data-state=done]")
    rows = json.loads(download.value.path().read_text())
    assert state == "busy" and {row["image_id"] for row in rows} == {1}
    assert len(listed(page)) == 2 and page.locator("#save-json").is_enabled()


def test_only_a_new_photo_changes_the_list(page, tmp_path):
    """With a thousand photos, writing all of them for each new one would take minutes."""
    take(page, photo(tmp_path, "a.png"), photo(tmp_path, "b.png"))
    page.evaluate("""() => {
      window.changed = new Set();
      const note = (records) => records.forEach(({target}) => changed.add(target.textContent));
      new MutationObserver(note).observe(byId("photos"), {childList: true, subtree: true});
    }""")
    take(page, photo(tmp_path, "c.png"))
    changed = page.evaluate("[...changed]")
    assert "c.png: ball 2, dog 1" in changed
    assert not {"a.png: ball 2, dog 1", "b.png: ball 2, dog 1"} & set(changed)


def test_pixels_and_objects_are_never_of_two_photos(page, tmp_path):
    """Until the next photo is decoded, there is no picture to save."""
    red = photo(tmp_path, "red.png", "red")
    take(page, red, photo(tmp_path, "wide.png", "lime", (3000, 1000)))
    page.locator("#save-png:enabled").wait_for()
    between = page.evaluate("""async () => {
      byId("photos").lastChild.firstChild.click();
      byId("threshold").dispatchEvent(new Event("input"));
      const canvas = byId("photo");
      const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, 50);
      const {disabled} = byId("save-png");
      return [byId("caption").textContent, disabled, data.reduce((a, b) => Math.max(a, b))];
    }""")
    assert between == ["2. wide.png, 3000 x 1000 pixels: ball 2, dog 1", True, 0]
    name, pixels = picture(page)
    assert name == "wide.png" and pixels.shape == (1000, 3000, 3)
    assert pixels[-1, -1].tolist() == [0, 255, 0]
    red.unlink()
    page.locator("#photos button").first.click()
    page.locator("#note", has_text="can no longer be shown").wait_for()
    assert page.locator("#save-png").is_disabled()


def test_only_the_last_pixels_are_kept(page, tmp_path):
    """Those of a photo that is shown twice, or was removed meanwhile, are closed."""
    take(page, photo(tmp_path, "a.png"))
    page.locator("#save-png:enabled").wait_for()
    seen = page.evaluate("""async () => {
      const original = createImageBitmap;
      const made = [];
      window.createImageBitmap = async (...values) => {
        made.push(await original(...values));
        return made.at(-1);
      };
      await Promise.all([show(0), show(0)]);
      const open = made.map((pixels) => pixels.width > 0);
      const last = show(0);
      photos[0] = {...photos[0]};
      await last;
      window.createImageBitmap = original;
      return [open, bitmap, made[2].width];
    }""")
    assert sorted(seen[0]) == [False, True] and seen[1:] == [None, 0]


def test_notes_of_a_photo_stay(page, tmp_path):
    """Also after its file could not be read."""
    file = tmp_path / "printed.jpg"
    Image.new("CMYK", (60, 40)).save(file)
    take(page, file)
    page.locator("#note", has_text="CMYK").wait_for()
    page.locator("#save-png:enabled").wait_for()
    for code in ("async () => { throw new Error(); }", "original"):
        note = page.evaluate(f"""async () => {{
          const original = window.original = window.original || createImageBitmap;
          window.createImageBitmap = {code};
          await show(0);
          update();
          await new Promise(requestAnimationFrame);
          return byId("note").textContent;
        }}""")
        assert ("can no longer be shown" in note) == (code != "original")
        assert ("CMYK" in note) == (code == "original")


def test_the_slider_is_quick_with_many_large_masks(page):
    """The page draws once for all events of a frame, in little more time than pasting takes."""
    boxes = [[i, i, i + 400, i + 400] for i in range(100)]
    file = encoded(Image.new("RGB", (1200, 800)), format="PNG")
    page.evaluate(ADD, [base64.b64encode(file).decode(), 1200, 800, boxes, [1] * 784])
    page.locator("#save-png:enabled").wait_for()
    drawings = page.evaluate("""async () => {
      const original = drawPhoto;
      let count = 0;
      window.drawPhoto = (...values) => { count += 1; original(...values); };
      for (let i = 0; i < 20; i += 1) byId("threshold").dispatchEvent(new Event("input"));
      for (let i = 0; i < 2; i += 1) await new Promise(requestAnimationFrame);
      window.drawPhoto = original;
      return count;
    }""")
    assert drawings == 1
    drawing, pasting = np.min([page.evaluate(TIMES) for _ in range(3)], axis=0)
    assert drawing < 6 * pasting, (drawing, pasting)


def test_masks_are_drawn_with_an_edge(page):
    """The left half of a box is inside."""
    mask = ([1] * 14 + [0] * 14) * 28
    file = encoded(Image.new("RGB", (200, 100)), format="PNG")
    page.evaluate(ADD, [base64.b64encode(file).decode(), 200, 100, [[20, 10, 180, 90]], mask])
    _, pixels = picture(page)
    inside = np.array(BLUE) * 100 / 255
    for x, color in ((20, BLUE), (30, inside), (96, inside), (150, (0, 0, 0)), (190, (0, 0, 0))):
        assert np.abs(pixels[60, x] - color).max() <= 1, x
    (x,) = np.flatnonzero((pixels[60, 80:120] == BLUE).all(1))
    assert 98 <= 80 + x <= 101 and np.abs(pixels[40:89, 80 + x] - BLUE).max() <= 1


def test_300_objects_are_counted_drawn_and_saved(page):
    """As many as Detectron2's configs allow at most."""
    boxes = [[2 * i, 0.5 * i, 2 * i + 30, 0.5 * i + 40] for i in range(300)]
    file = encoded(Image.new("RGB", (960, 640)), format="PNG")
    page.evaluate(ADD, [base64.b64encode(file).decode(), 960, 640, boxes, [1] * 784])
    page.locator("#caption", has_text="balloon 300").wait_for()
    (rows,) = results(page).values()
    assert [row["bbox"] for row in rows] == [[2 * i, 0.5 * i, 30, 40] for i in range(300)]
    assert {mask_util.area(row["segmentation"]) for row in rows} >= {30 * 40}
    name, pixels = picture(page)
    assert name == "added.png" and pixels.shape == (640, 960, 3)


@pytest.mark.parametrize("kind", ["WEBP", "JPEG", "PNG"])
def test_turned_photos_are_upright(page, real_balloon, tmp_path, kind):
    """In all orientations of EXIF, also in WebP and PNG, where some browsers ignore them."""
    image = Image.open(sorted((real_balloon / "val").glob("*.jpg"))[0]).convert("RGB")
    image = image.resize((120, 80))
    files = [tmp_path / f"{i}.image" for i in range(1, 9)]
    for i, file in enumerate(files, start=1):
        file.write_bytes(turned(image, i, kind, quality=95))
    take(page, *files)
    page.locator("#threshold").fill("1")
    for i, file in enumerate(files):
        page.locator("#photos button").nth(i).click()
        page.locator("#caption", has_text=f"{file.name}, ").wait_for()
        page.locator("#save-png:enabled").wait_for()
        _, pixels = picture(page)
        expected = read_photo(file, "RGB")
        assert pixels.shape == expected.shape and np.abs(pixels - expected).max() <= 1, file.name


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_photo_of_100_megapixels(page, tmp_path):
    """Strips of it are resized for the model, and the whole to 4096 pixels for the screen."""
    down, across = (np.linspace(0, 127, side).astype(np.uint8) for side in (8000, 12500))
    file = tmp_path / "large.jpg"
    Image.fromarray(np.add.outer(down, across)).save(file)
    page.workers[0].evaluate("""() => {
      const run = session.run.bind(session);
      session.run = (feeds) => { self.image = feeds.image; return run(feeds); };
    }""")
    take(page, file)
    text = """() => {
      const letters = [];
      for (const value of image.data) letters.push(String.fromCharCode(value));
      return btoa(letters.join(""));
    }"""
    pixels = base64.b64decode(page.workers[0].evaluate(text))
    image = Image.fromarray(read_photo(file, "RGB"))
    assert pixels == image.resize((1000, 640), Image.Resampling.BILINEAR).tobytes()
    page.locator("#threshold").fill("1")
    page.locator("#save-png:enabled").wait_for(timeout=60_000)
    _, pixels = picture(page)
    assert pixels.shape == (2621, 4096, 3)
    expected = np.asarray(image.resize((4096, 2621), Image.Resampling.BILINEAR))
    assert np.abs(pixels - expected).max() <= 4
    index = json.loads(saved(page, "#save-images")[1])["images"]
    assert (index[0]["width"], index[0]["height"]) == (12500, 8000)


def test_a_crash_is_reported(show, masks_page, tmp_path):
    """Results from before it can still be saved."""
    page = ready(show(masks_page, offline=True))
    take(page, photo(tmp_path, "a.png"))
    page.workers[0].evaluate("""() => {
      session.run = () => new Promise(() => setTimeout(() => { throw new Error("boom"); }));
    }""")
    page.set_input_files("#files", [photo(tmp_path, "b.png"), photo(tmp_path, "c.png")])
    page.locator("html[data-state=failed]").wait_for()
    for _ in range(2):
        status = page.inner_text("#status")
        assert "boom" in status and "reload the page" in status
        assert page.locator("#files").is_disabled() and page.locator("#progress").is_hidden()
        assert list(results(page)) == [1]
        page.locator("html[data-state=failed]").wait_for()
    assert page.evaluate(DROP, in_base64(tmp_path / "c.png")) == "failed"
    assert page.locator("#skipped li").all_inner_texts() == [
        "b.png stopped the model: Uncaught Error: boom."
    ]


def test_a_picture_that_cannot_be_saved(page, tmp_path):
    take(page, photo(tmp_path, "a.png"))
    page.locator("#save-png:enabled").wait_for()
    page.evaluate("""() => {
      const {toBlob} = HTMLCanvasElement.prototype;
      HTMLCanvasElement.prototype.toBlob = (done) => done(null);
      byId("save-png").click();
      HTMLCanvasElement.prototype.toBlob = toBlob;
    }""")
    assert "cannot be saved" in page.inner_text("#status")


def test_results_that_cannot_be_saved(page, tmp_path):
    """The reason stays on the screen, and the page goes on."""
    take(page, photo(tmp_path, "a.png"))
    page.evaluate("""() => {
      window.original = cocoResults;
      window.cocoResults = () => { throw new RangeError("too large"); };
      byId("save-json").click();
    }""")
    page.locator("#status", has_text="predictions.json cannot be saved: too large").wait_for()
    page.wait_for_selector("html[data-state=done]")
    page.evaluate("() => { window.cocoResults = original; }")
    assert list(results(page)) == [1]


def test_captions_are_announced_only_if_they_change(page, tmp_path):
    take(page, photo(tmp_path, "a.png"))
    page.locator("#save-png:enabled").wait_for()
    changes = page.evaluate("""() => {
      const observer = new MutationObserver(() => {});
      observer.observe(byId("caption").parentElement, {childList: true, subtree: true});
      draw();
      const same = observer.takeRecords().length;
      byId("threshold").value = 1;
      draw();
      return [same, observer.takeRecords().length > 0];
    }""")
    assert changes == [0, True]


def test_a_segment_without_a_length_is_ignored(page, tmp_path):
    """Like Pillow and Chromium, the page reads the rest of the JPEG."""
    content = encoded(Image.new("RGB", (60, 40)), format="JPEG")
    file = tmp_path / "a.jpg"
    file.write_bytes(content[:2] + b"\xff\xe1\0\0Exif\0\0" + content[2:])
    take(page, file)
    assert read_photo(file, "RGB").shape == (40, 60, 3)
    assert listed(page) == ["a.jpg: ball 2, dog 1"]


def test_licenses_of_libraries_are_shown(page):
    for text in ("About the model", "Licenses of the libraries"):
        page.locator("summary", has_text=text).click()
    notices = page.locator("#third-party pre", has_text="THIRD PARTY SOFTWARE NOTICES")
    notices.wait_for()
    assert "Protocol Buffers" in notices.inner_text() or "protobuf" in notices.inner_text()


def test_drop_zone_is_marked_while_files_are_over_the_page(page):
    """Also when the pointer moves from one element of the page to another."""
    marked = page.evaluate("""() => {
      const marked = [];
      const send = (type, relatedTarget) => {
        const event = new DragEvent(type, {bubbles: true, cancelable: true, relatedTarget});
        byId("status").dispatchEvent(event);
        marked.push(byId("drop").classList.contains("over"));
      };
      send("dragover", null);
      send("dragleave", byId("drop"));
      send("dragleave", null);
      return marked;
    }""")
    assert marked == [True, True, False]


def test_keyboard(page, tmp_path):
    files = [photo(tmp_path, f"{name}.png") for name in "abc"]
    take(page, *files)
    caption = page.locator("#caption")
    for key, number in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowRight", 1), ("ArrowLeft", 3)):
        page.keyboard.press(key)
        caption.get_by_text(f"{number}. {files[number - 1].name}").wait_for()
        current = page.locator("#photos button[aria-current=true]").all_inner_texts()
        assert current == [f"{files[number - 1].name}: ball 2, dog 1"]
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#least", has_text="0.51").wait_for()
    assert caption.inner_text().startswith("3.")
    label = page.get_attribute("#photo", "aria-label")
    assert label == "c.png: ball 2, dog 1"
    for element in ("#skipped", "figcaption"):
        assert page.get_attribute(element, "aria-live") == "polite"
    assert page.locator("thead th:not([scope=col])").count() == 0


def test_it_fits_screens(page, tmp_path):
    """On wide and narrow screens, in light and dark."""
    take(page, photo(tmp_path, "a.png", "gray", (960, 640)))
    page.locator("details summary").first.click()
    for width, scheme in ((1200, "light"), (360, "dark"), (360, "light"), (1200, "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        for _ in range(2):
            page.evaluate("() => new Promise(requestAnimationFrame)")
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        area = page.locator("#photo").bounding_box()
        assert 200 < area["width"] <= width and 100 < area["height"] <= 800
        assert page.locator("#save-json").is_visible()
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(color[4:].split(",")[0]) < 128) == (scheme == "dark")
