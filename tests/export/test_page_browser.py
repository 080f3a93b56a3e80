"""The page with a model, in a real browser, opened from the disk without a network."""

import base64
import io
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

import d2ext
from d2ext.data.loading.image_io import read_photo
from d2ext.evaluation.roi_masks import encoded_masks
from d2ext.export.detector import build_detector
from d2ext.export.layers import prepared
from d2ext.export.onnx_file import write_onnx
from d2ext.export.page import write_page
from d2ext.predict.onnx_info import ModelInfo, Provenance
from tests.export.models import spread_outputs

pytestmark = pytest.mark.browser

LOWEST = 0.05
MOST = 300
# Largest differences of a page at half precision from torch: pixels, score. They are those of
# nine in ten objects, because others may come and go.
HALF = (3, 0.03)
STATE = "document.documentElement.dataset.state"
# Decode a photo and resize it in the page's worker: [width, height, pixels in base64].
INPUT = """async (photo) => {
  const bytes = Uint8Array.from(atob(photo), (c) => c.charCodeAt(0));
  const {input} = await readPhoto(new File([bytes], "photo"), model);
  let text = "";
  for (const value of input.pixels) text += String.fromCharCode(value);
  return [input.width, input.height, btoa(text)];
}"""
RESIZED = """([rgba, width, height, newWidth, newHeight]) => {
  const bytes = Uint8Array.from(atob(rgba), (c) => c.charCodeAt(0));
  const narrow = new Uint8Array(3 * newWidth * height);
  resizeRows(bytes, width, resizeWeights(width, newWidth), narrow, 0);
  const pixels = resizeColumns(narrow, 3 * newWidth, resizeWeights(height, newHeight));
  return String.fromCharCode(...pixels);
}"""
MASKS = """([masks, boxes, side, width, height]) => masks.map((mask, i) => encodeMask(
  pasteMask(Float32Array.from(mask), side, boxes[i].map(Math.fround), width, height, 0.5),
  width, height))"""
ENCODED = """([columns, width, height]) => encodeMask(
  {left: 0, top: 0, width, height, inside: columns}, width, height)"""


@pytest.fixture(scope="module")
def exported(trained, real_balloon, tmp_path_factory):
    """Return a predictor, and the pages with its model in both precisions."""
    box = "model.roi_heads.box_predictor"
    overrides = [
        "train.fast_layers=false",
        "dataloader.val.mapper.augmentations[0].short_edge_length=640",
        f"{box}.test_topk_per_image={MOST}",
        f"{box}.test_score_thresh={LOWEST}",
    ]
    predictor = d2ext.Predictor.from_run(trained, overrides=overrides, score_threshold=LOWEST)
    model = predictor._model
    photo = torch.from_numpy(read_photo(photos(real_balloon)[0], "RGB").copy()).permute(2, 0, 1)
    spread_outputs(model, [{"image": photo}])
    detector = build_detector(prepared(model)).eval()
    folder = tmp_path_factory.mktemp("pages")
    pages = {}
    for precision in ("float32", "float16"):
        info = ModelInfo(
            architecture=detector.architecture,
            classes=predictor.classes,
            channels="RGB",
            short_edge=640,
            max_size=1280,
            score_threshold=LOWEST,
            nms_threshold=detector.nms_threshold,
            max_objects=MOST,
            mask_size=detector.mask_size,
            precision=precision,
            provenance=Provenance(run="<b>run</b>", versions={"d2ext": d2ext.__version__}),
        )
        write_onnx(detector, info, folder / f"{precision}.onnx")
        pages[precision] = folder / f"{precision}.html"
        write_page(folder / f"{precision}.onnx", pages[precision])
    return SimpleNamespace(predictor=predictor, **pages)


def photos(real_balloon):
    return sorted((real_balloon / "val").glob("*.jpg"))


def ready(page):
    page.wait_for_selector("html[data-state=ready]", timeout=60_000)
    return page


def take(page, *files):
    """Give photos to a page, and wait until it is done."""
    page.set_input_files("input[type=file]", files)
    page.wait_for_selector("html[data-state=done]", timeout=300_000)


def saved(page, button):
    with page.expect_download() as download:
        page.click(button)
    with open(download.value.path(), "rb") as f:
        return download.value.suggested_filename, f.read()


def results(page, threshold=None):
    """Return the rows of the predictions.json that a page saves, by image id."""
    if threshold is not None:
        page.locator("#threshold").fill(str(threshold))
    name, content = saved(page, "#save-json")
    assert name == "predictions.json"
    rows = json.loads(content)
    return {i: list(found) for i, found in itertools.groupby(rows, lambda row: row["image_id"])}


def differences(mine, others):
    """Pair each row with the nearest of `others`; return differences of boxes and scores, IoUs."""
    found, rest = [], list(others)
    for row in mine:
        distances = [np.abs(np.subtract(row["bbox"], r["bbox"])).max() for r in rest]
        nearest = rest.pop(int(np.argmin(distances)))
        masks = ([row["segmentation"]], [nearest["segmentation"]], [0])
        iou = mask_util.iou(*masks)[0, 0]
        found.append((min(distances), abs(row["score"] - nearest["score"]), iou))
    return np.array(found)


def test_float32_page_finds_what_torch_finds(show, exported, real_balloon):
    """All rows are those of predict: the same order, boxes, scores, and masks but for a pixel."""
    page = ready(show(exported.float32, offline=True))
    files = photos(real_balloon)
    take(page, *reversed(files))  # the page sorts them by name
    rows = results(page, LOWEST)
    several = 0
    for image_id, file in enumerate(files, start=1):
        expected = exported.predictor(file).to_coco(image_id)
        found = rows.get(image_id, [])
        assert len(found) == len(expected)
        boxes, scores, ious = differences(found, expected).T
        assert boxes.max() < 0.01 and scores.max() < 1e-4 and ious.min() > 0.95
        assert [row["score"] for row in found] == sorted([r["score"] for r in found], reverse=True)
        for row in found:
            assert list(row) == list(expected[0])
            assert (
                row["category_id"] == 1
                and row["segmentation"]["size"] == expected[0]["segmentation"]["size"]
            )
        several += len(found)
    assert several > 20 * len(files)  # so many are compared
    assert max(map(len, rows.values())) <= MOST


def test_half_precision_page_stays_close_to_torch(show, exported, real_balloon):
    page = ready(show(exported.float16, offline=True))
    assert exported.float16.stat().st_size < 18e6
    files = photos(real_balloon)[:4]
    take(page, *files)
    rows = results(page)
    found = []
    for image_id, file in enumerate(files, start=1):
        expected = [r for r in exported.predictor(file).to_coco(image_id) if r["score"] >= 0.6]
        found.append(differences(expected, rows[image_id]))
    boxes, scores, _ = np.concatenate(found).T
    assert np.quantile(boxes, 0.9) < HALF[0] and np.quantile(scores, 0.9) < HALF[1]
