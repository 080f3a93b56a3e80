"""Datasets with all kinds of edge cases, and pycocotools' results for them."""

import contextlib
import copy
import io
import math
from pathlib import Path

import pycocotools.mask
from hypothesis import reject
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2ext.errors import UserError
from d2ext.evaluation.dataset_file import read_dataset
from d2ext.evaluation.instances import Detections, GroundTruth
from d2ext.evaluation.results_file import read_results, to_detections
from d2ext.files import write_json

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
HEIGHT, WIDTH = 120, 160
_CIRCLE = [(math.cos(a * math.pi / 8), math.sin(a * math.pi / 8)) for a in range(16)]


def rle(box: list[float], height: int = HEIGHT, width: int = WIDTH) -> dict:
    """Return the ellipse in a box as compressed RLE for JSON."""
    x, y, w, h = box
    points = [(x + w / 2 * (1 + dx), y + h / 2 * (1 + dy)) for dx, dy in _CIRCLE]
    polygon = [v for point in points for v in point]
    (made,) = pycocotools.mask.frPyObjects([polygon], height, width)
    return {"size": [height, width], "counts": made["counts"].decode()}


def corners(box: list[float]) -> list[list[float]]:
    """Return a box as a polygon."""
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def official(content: dict, results: list[dict], task: str, **params: object) -> dict[str, float]:
    """Return pycocotools' results in percent, with NaN for -1, for a COCO dict and COCO results.

    As in Detectron2, the size of a detection with a mask is the mask's area; pycocotools would use
    the area of the box if there is one.
    """
    results = copy.deepcopy(results)
    if task == "segm":
        for r in results:
            r.pop("bbox", None)
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth, found = COCO(), COCO()
        ground_truth.dataset = copy.deepcopy(content)
        ground_truth.createIndex()
        if results:
            found = ground_truth.loadRes(results)
        else:
            found.dataset = {**ground_truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(ground_truth, found, task)
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = [100 * v if v > -1 else math.nan for v in evaluation.stats]
    return dict(zip(NAMES, numbers, strict=True))


def columns(content: dict, results: list[dict], folder: Path) -> tuple[GroundTruth, Detections]:
    """Write ground truth and results to files, and read them as columns."""
    write_json(folder / "ground_truth.json", content)
    write_json(folder / "found.json", results)
    entries = read_results(folder / "found.json")
    dataset = read_dataset(folder / "ground_truth.json", with_masks=True)
    try:
        return dataset.ground_truth, to_detections(folder / "found.json", entries, dataset)
    except UserError as e:
        if "boxes seem to be" in str(e):  # random boxes may look that way
            reject()
        raise


_sides = st.sampled_from([0, 1, 8, 20, 31.5, 32, 33, 60, 97, 150])
_places = st.sampled_from([-30, -1, 0, 3, 10.25, 40, 70, 119, 159])
boxes = st.tuples(_places, _places, _sides, _sides).map(list)
_scores = st.sampled_from([0.0, 0.1, 0.1, 0.5, 0.9, 1.0])  # few values, so that many are equal


@st.composite
def datasets(draw: st.DrawFn) -> tuple[dict, list[dict]]:
    """Draw a COCO dict and results with id gaps, boxes outside of images, crowds, ties or nothing.

    Either list may be empty.
    """
    categories = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
    images = draw(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
    annotations, results = [], []
    rows = st.tuples(st.sampled_from(images), st.sampled_from(categories), boxes)
    kinds = st.sampled_from(["polygon", "rle", "crowd"])
    for image, category, box in draw(st.lists(rows, max_size=8)):
        kind = draw(kinds)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3] * draw(st.sampled_from([0.5, 1, 1])),
                "iscrowd": int(kind == "crowd"),
                "segmentation": corners(box) if kind == "polygon" else rle(box),
            }
        )
    near = st.sampled_from([0, 0, 1, 3, -4])
    for image, category, box in draw(st.lists(rows, max_size=14)):
        if annotations and draw(st.booleans()):  # near an object
            like = draw(st.sampled_from(annotations))
            image, same = like["image_id"], like["category_id"]
            category = draw(st.sampled_from([same, same, same, *categories]))
            box = [v + draw(near) for v in like["bbox"]]
            box[2:] = [max(v, 0) for v in box[2:]]
        row = {"image_id": image, "category_id": category, "bbox": box, "score": draw(_scores)}
        if row not in results:  # duplicates are refused
            results.append(row)
    results = [{**row, "segmentation": rle(row["bbox"])} for row in results]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in images
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in categories],
    }
    return content, results
