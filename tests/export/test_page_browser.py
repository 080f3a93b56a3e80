"""The page with a model, in a real browser, opened from the disk without a network."""

import base64
import io
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import d2ext
from d2ext.data.formats.images import image_size
from d2ext.data.loading.image_io import read_photo
from d2ext.evaluation.instances import Detections
from d2ext.evaluation.roi_masks import encoded_masks
from d2ext.export.detector import build_detector
from d2ext.export.layers import prepared
from d2ext.export.metadata import describe
from d2ext.export.onnx_file import write_onnx
from d2ext.export.page import write_page
from d2ext.export.verify import TOLERANCES, compare
from d2ext.predict.predictor import load_trained
from tests.export.conftest import STOCK
from tests.export.pages import INPUT, encoded, ready, results, saved, take, turned

pytestmark = pytest.mark.browser

LOWEST = 0.05  # score
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>
</rdf:RDF></x:xmpmeta>"""
# Resize an image that is read in parts of `most` pixels; drop the fourth bytes.
RESIZED = """([rgba, width, height, newWidth, newHeight, most]) => {
  const bytes = Uint8Array.from(atob(rgba), (c) => c.charCodeAt(0));
  const read = (left, top, columns, rows) => {
    const part = [];
    for (let y = top; y < top + rows; y += 1)
      part.push(...bytes.subarray(4 * (y * width + left), 4 * (y * width + left + columns)));
    return Uint8Array.from(part);
  };
  const pixels = resizeImage(read, width, height, newWidth, newHeight, most);
  return String.fromCharCode(...pixels.filter((_, i) => i % 4 < 3));
}"""
MASKS = """([masks, boxes, side, width, height]) => masks.map((mask, i) => encodeMask(
  pasteMask(Float32Array.from(mask), side, boxes[i].map(Math.fround), width, height, 0.5),
  width, height))"""
ENCODED = """([columns, width, height]) => encodeMask(
  {left: 0, top: 0, width, height, inside: columns}, width, height)"""


@pytest.fixture(scope="module")
def float32(spread_run, exported):
    """Return the page with the exported model of `spread_run`, and its predictor in torch."""
    file = exported / "page_float32.html"
    write_page(exported / "model.onnx", file)
    return file, d2ext.Predictor.from_run(spread_run, overrides=STOCK, score_threshold=0)


@pytest.fixture(scope="module")
def float16(spread_run, tmp_path_factory):
    """Return a page with the same model at half precision."""
    trained = load_trained(spread_run / "config.yaml", None, STOCK)
    detector = build_detector(prepared(trained.model)).eval()
    info = describe(trained, detector)
    info.precision = "float16"
    info.provenance.run = "<b>run</b>"
    file = tmp_path_factory.mktemp("pages") / "page.html"
    write_onnx(detector, info, file.with_suffix(".onnx"))
    write_page(file.with_suffix(".onnx"), file)
    return file


def photos(real_balloon):
    return sorted((real_balloon / "val").glob("*.jpg"))


def differences(mine, others):
    """Pair each row with the nearest of `others`; return differences of box, score and pixels."""
    found, rest = [], list(others)
    for row in mine:
        distances = [np.abs(np.subtract(row["bbox"], r["bbox"])).max() for r in rest]
        nearest = rest.pop(int(np.argmin(distances)))
        masks = mask_util.decode([row["segmentation"], nearest["segmentation"]])
        pixels = (masks[..., 0] != masks[..., 1]).sum()
        found.append((min(distances), abs(row["score"] - nearest["score"]), pixels))
    return np.array(found)


@pytest.fixture(scope="module")
def expected_rows(float32, real_balloon):
    """Return the rows of `d2ext predict` for all validation photos, by image id."""
    _, predict = float32
    rows = {i: predict(file).to_coco(i) for i, file in enumerate(photos(real_balloon), start=1)}
    return {i: [row for row in found if row["score"] >= LOWEST] for i, found in rows.items()}


def test_float32_page_finds_what_predict_finds(show, float32, expected_rows, real_balloon):
    """On all validation photos: same rows in the same order, masks but for single pixels."""
    file, _ = float32
    page = ready(show(file, offline=True))
    take(page, *reversed(photos(real_balloon)))  # the page sorts them by name
    rows = results(page, LOWEST)
    for image_id, expected in expected_rows.items():
        found = rows[image_id]
        assert len(found) == len(expected) > 20
        boxes, scores, pixels = differences(found, expected).T
        assert boxes.max() < 0.01 and scores.max() < 1e-4 and pixels.max() <= 3
        assert np.all(np.diff([row["score"] for row in found]) <= 0)
        for row in found:
            assert list(row) == list(expected[0]) and row["category_id"] == 1
            assert row["segmentation"]["size"] == expected[0]["segmentation"]["size"]


def test_half_precision_page_is_within_its_tolerance(show, float16, expected_rows, real_balloon):
    """Objects may come and go, as in the proof of an export."""
    assert float16.stat().st_size < 18e6
    page = ready(show(float16, offline=True))
    assert page.title() == page.inner_text("h1")
    take(page, *photos(real_balloon))
    found = compare(*map(detections, (expected_rows, results(page, LOWEST))))
    limits = TOLERANCES["float16"]
    within = (found.boxes <= limits["boxes"]) & (found.scores <= limits["scores"])
    within &= found.masks <= limits["masks"]
    assert found.objects > 13 * 20
    assert within.sum() / (found.alone + len(within)) >= limits["within"]


def detections(rows):
    """Return rows of predictions.json, by image id, as `compare` takes them."""
    rows = [row for found in rows.values() for row in found]
    columns = [[row[key] for row in rows] for key in ("image_id", "category_id", "bbox", "score")]
    return Detections(*map(np.array, columns), [row["segmentation"] for row in rows])


@pytest.fixture(scope="module")
def opened(chromium, float32):
    """Return a page that is ready, for tests of its functions."""
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.goto(float32[0].as_uri())
    yield ready(page)
    context.close()


def test_input_is_that_of_predict(opened, real_balloon, tmp_path):
    """The model sees the same bytes as in predict: decoded, turned upright and resized."""
    file = photos(real_balloon)[3]
    photo = Image.open(file).convert("RGB")
    small = photo.resize((150, 100))
    plain = Image.Exif()
    plain[0x010F] = "a camera"
    xmp = PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", (XMP % 8).decode())
    cases = {
        "a photo": file.read_bytes(),
        "progressive": encoded(photo, format="JPEG", progressive=True),
        "gray": encoded(photo.convert("L"), format="JPEG"),
        "CMYK": encoded(photo.convert("CMYK"), format="JPEG"),
        "PNG": encoded(small, format="PNG"),
        "opaque alpha": encoded(small.convert("RGBA"), format="PNG"),
        "palette": encoded(small.quantize(64), format="GIF"),
        "WebP": encoded(photo, format="WEBP", quality=80),
        "1 x 1": encoded(photo.resize((1, 1)), format="PNG"),
        "wide": encoded(photo.resize((2000, 3)), format="PNG"),
        "tall": encoded(photo.resize((900, 4600)), format="PNG"),
        "strips": encoded(photo.resize((3000, 2700)), format="JPEG"),
        **{f"EXIF {i}": turned(small, i, quality=90) for i in range(1, 9)},
        **{f"EXIF {i} of WebP": turned(small, i, "WEBP") for i in range(9)},
        **{f"XMP {i}": encoded(small, format="JPEG", xmp=XMP % i) for i in range(10)},
        **{f"EXIF {i} of PNG": turned(small, i, "PNG") for i in (1, 6, 8, 9)},
        "XMP of WebP": encoded(small, format="WEBP", xmp=XMP % 6),
        "XMP of PNG": encoded(small, format="PNG", pnginfo=xmp),
        "EXIF and XMP of PNG": turned(small, 6, "PNG", pnginfo=xmp),
        "EXIF and XMP": turned(small, 6, xmp=XMP % 8),
        "EXIF and XMP of WebP": turned(small, 6, "WEBP", xmp=XMP % 8),
        "EXIF without an orientation, and XMP": encoded(
            small, format="JPEG", exif=plain, xmp=XMP % 3
        ),
        "damaged EXIF": encoded(small, format="WEBP", exif=b"Exif\0\0II*\0\xff\xff\0\0"),
    }
    for name, content in cases.items():
        (tmp_path / "photo").write_bytes(content)
        pixels = read_photo(tmp_path / "photo", "RGB")
        height, width = ResizeShortestEdge.get_output_shape(*pixels.shape[:2], 640, 1280)
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        found = opened.workers[0].evaluate(INPUT, base64.b64encode(content).decode())
        assert found[:2] == [width, height], name
        assert base64.b64decode(found[2]) == resized.tobytes(), name


def test_resize_equals_pillow(opened):
    """Random sizes, from 1 to 128 pixels, read in parts of random sizes."""
    generator = np.random.default_rng(0)
    for _ in range(100):
        width, height, *new = (int(2**x) for x in generator.uniform(0, 7, 4))
        image = generator.integers(0, 256, (height, width, 4), np.uint8)
        task = [width, height, *new, int(generator.integers(1, 2000))]
        found = opened.workers[0].evaluate(RESIZED, [base64.b64encode(image).decode(), *task])
        expected = Image.fromarray(image[:, :, :3].copy()).resize(new, Image.Resampling.BILINEAR)
        assert found.encode("latin-1") == expected.tobytes(), task


def test_masks_equal_detectron2(opened):
    """Boxes of all sizes, also narrower than a pixel and at the edges, in float32."""
    generator = np.random.default_rng(0)
    width, height, side = 90, 70, 28
    size = np.array([width, height, width, height])
    corners = generator.uniform(-0.2, 1.2, (120, 2, 2)) * (width, height)
    corners[::3, 1] = corners[::3, 0] + generator.uniform(0.01, 3, (40, 2))
    boxes = np.hstack([corners.min(1), corners.max(1)]).clip(0, size).astype(np.float32)
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    assert len(boxes) > 80
    small = generator.random((len(boxes), 1, 6, 6))
    masks = torch.nn.functional.interpolate(torch.tensor(small), (side, side), mode="bicubic")
    masks = masks.clamp(0, 1).float()
    expected = encoded_masks(masks, torch.from_numpy(boxes), height, width)
    rows = masks.flatten(1).double().tolist()
    found = opened.evaluate(MASKS, [rows, boxes.astype(float).tolist(), side, width, height])
    pixels = [mask_util.decode(rles).astype(int) for rles in (found, expected)]
    assert np.abs(pixels[0] - pixels[1]).sum((0, 1)).max() <= 1
    equal = sum(a == b for a, b in zip(found, expected, strict=True))
    assert equal >= len(boxes) - 2 and pixels[0].sum() > 1000


def test_encoding_equals_pycocotools(opened):
    generator = np.random.default_rng(0)
    for share in (0, 0.02, 0.5, 0.98, 1):
        for width, height in ((1, 1), (7, 5), (60, 80), (1, 300), (300, 1)):
            mask = (generator.random((height, width)) < share).astype(np.uint8)
            rle = mask_util.encode(np.asfortranarray(mask))
            columns = mask.T.ravel().tolist()
            found = opened.evaluate(ENCODED, [columns, width, height])
            assert found == {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture
def odd(tmp_path, real_balloon):
    """Return files that are unusual or not photos, by what is expected of them."""
    photo = photos(real_balloon)[0]
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    image = Image.open(photo).convert("RGB")
    Image.new("RGB", (640, 480)).save(good / "black.png")
    Image.new("RGB", (1, 1), "red").save(good / "one.png")
    image.convert("CMYK").save(good / "printed.jpg")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.resize((120, 80)).save(good / "transparent.png")
    (bad / "broken.jpg").write_bytes(b"no photo")
    (bad / "cut.jpg").write_bytes(photo.read_bytes()[:40_000])
    (bad / "cut.png").write_bytes((good / "transparent.png").read_bytes()[:-20])
    (bad / "empty.png").write_bytes(b"")
    Image.new("1", (18000, 10000)).save(bad / "huge.png")
    Image.new("L", (20000, 3)).save(bad / "narrow.png")
    return sorted(good.iterdir()), sorted(bad.iterdir())


REASONS = {
    "broken.jpg": "it is damaged, or not an image",
    "cut.jpg": "is cut off",
    "cut.png": "is cut off",
    "empty.png": "it is damaged, or not an image",
    "huge.png": "has 180 megapixels; the limit is 179",
    "narrow.png": "too narrow to be resized",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_odd_files_are_named_and_others_go_on(show, float32, real_balloon, odd):
    good, bad = odd
    photo = photos(real_balloon)[0]
    file, predict = float32
    page = ready(show(file, offline=True))
    take(page, *good, *bad, photo)
    skipped = page.locator("#skipped li").all_inner_texts()
    assert len(skipped) == len(bad) and f"{len(bad)} skipped" in page.inner_text("#status")
    for text, (name, reason) in zip(skipped, REASONS.items(), strict=True):
        assert text.startswith(name) and reason in text
    rows = results(page)
    name, content = saved(page, "#save-images")
    index = json.loads(content)
    assert name == "images.json"
    assert [image["file_name"] for image in index["images"]] == [
        photo.name,
        *(path.name for path in good),
    ]
    assert index["categories"] == [{"id": 1, "name": "balloon"}]
    assert [entry["file_name"] for entry in index["skipped"]] == list(REASONS)
    for image, path in zip(index["images"], [photo, *good], strict=True):
        assert (image["width"], image["height"]) == image_size(path)
        if path.name != "transparent.png":
            expected = [r for r in predict(path).to_coco(image["id"]) if r["score"] >= 0.5]
            assert len(rows.get(image["id"], [])) == len(expected), path.name
    assert rows.keys() <= {image["id"] for image in index["images"]} and 1 in rows
    for i, note in ((3, "CMYK"), (4, "Transparent")):
        page.locator("#photos button").nth(i).click()
        page.locator("#note", has_text=note).wait_for()


def test_threshold_counts_and_pictures(show, float32, real_balloon):
    files = photos(real_balloon)[:2]
    page = ready(show(float32[0], offline=True))
    assert page.locator("#results").is_hidden()
    take(page, *files)
    before = page.inner_text("#counts")
    page.locator("#save-png:enabled").wait_for()
    drawn = page.locator("#photo").screenshot()
    for threshold in (0.05, 0.7, 1):
        rows = results(page, threshold)
        counts = [len(rows.get(i, [])) for i in (1, 2)]
        assert all(row["score"] >= threshold for found in rows.values() for row in found)
        listed = page.locator("#photos button").all_inner_texts()
        for text, count, file in zip(listed, counts, files, strict=True):
            assert text == f"{file.name}: {f'balloon {count}' if count else 'no objects'}"
        expected = f"balloon\t{counts[0]}\t{sum(counts)}" if sum(counts) else ""
        assert page.inner_text("#counts").strip() == expected != before
    assert page.locator("#photo").screenshot() != drawn
    name, picture = saved(page, "#save-png")
    assert name == f"{files[0].stem}.png"
    plain = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    photo = read_photo(files[0], "RGB")  # no object has a score of 1
    assert plain.shape == photo.shape and np.abs(plain.astype(int) - photo).mean() < 2
    page.locator("#threshold").fill("0.05")
    _, picture = saved(page, "#save-png")
    marked = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    assert (marked != plain).any(2).mean() > 0.02


def test_the_network_is_forbidden(opened):
    """Not because it is off: the policy of the page refuses connections, also in its worker."""
    heard = """(url) => new Promise((resolve) => {
      self.addEventListener("securitypolicyviolation", (e) => resolve(e.effectiveDirective));
      fetch(url).catch(() => setTimeout(() => resolve("no violation"), 5000));
    })"""
    for place in (opened, opened.workers[0]):
        assert place.evaluate(heard, "https://example.com/") == "connect-src"


def test_a_damaged_page_says_so(chromium, float32, tmp_path):
    html = float32[0].read_text()
    start = html.index('id="onnx"') + 2_000_000
    for name, content, text in (
        ("short.html", html[:start], "the file is incomplete"),
        ("wrong.html", html[:start] + "A" * 4000 + html[start + 4000 :], "cannot be loaded"),
    ):
        (tmp_path / name).write_text(content)
        context = chromium.new_context(offline=True)
        page = context.new_page()
        page.goto((tmp_path / name).as_uri())
        page.locator("#status", has_text=text).wait_for(timeout=60_000)
        assert page.locator("#files").is_disabled()
        context.close()
