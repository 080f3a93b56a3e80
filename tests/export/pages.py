"""Pages with exported models: a model that needs no training, and what a user does on a page."""

import io
import itertools
import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from d2ext.predict.onnx_info import ModelInfo, Provenance, to_metadata

# Class, score and box in pixels of the resized image, of each object that the model finds.
OBJECTS = ((2, 0.9, (10, 10, 100, 90)), (1, 0.8, (50, 20, 300, 200)), (1, 0.6, (-5, 0, 20, 20)))

# Decode a photo and resize it in the page's worker: [width, height, pixels in base64].
INPUT = """async (photo) => {
  const bytes = Uint8Array.from(atob(photo), (c) => c.charCodeAt(0));
  const {input} = await readPhoto(new File([bytes], "photo"), model);
  let text = "";
  for (const value of input.pixels) text += String.fromCharCode(value);
  return [input.width, input.height, btoa(text)];
}"""


def write_model(file, objects=OBJECTS, more=(), **changes):
    """Write an ONNX file with a trivial graph, which finds the same objects in any image.

    `changes` are those of its metadata, and `more` are other entries.
    """
    values = dict(
        architecture="Mask R-CNN",
        classes=["balloon", "ball", "dog"],
        channels="RGB",
        short_edge=640,
        max_size=1280,
        score_threshold=0.05,
        nms_threshold=0.5,
        max_objects=100,
        mask_size=28,
        provenance=Provenance(),
    )
    info = ModelInfo(**values | changes)
    classes, scores, boxes = ([found[i] for found in objects] for i in range(3))
    outputs = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "classes": np.array(classes, np.int64),
    }
    if info.mask_size:
        outputs["masks"] = np.ones((len(objects), info.mask_size, info.mask_size), np.float32)
    values = [numpy_helper.from_array(value, name) for name, value in outputs.items()]
    graph = helper.make_graph(
        [helper.make_node("Constant", [], [value.name], value=value) for value in values],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])],
        [helper.make_tensor_value_info(v.name, v.data_type, v.dims) for v in values],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, to_metadata(info) | dict(more))
    onnx.save(model, file)
    return file


def ready(page):
    page.wait_for_selector("html[data-state=ready]", timeout=300_000)
    return page


def take(page, *files):
    """Give photos to a page, and wait until it is done."""
    page.set_input_files("input[type=file]", files)
    page.wait_for_selector("html[data-state=done]", timeout=300_000)


def saved(page, button):
    """Return the name and the content of the file that a button saves."""
    with page.expect_download() as download:
        page.click(button)
    with open(download.value.path(), "rb") as f:
        return download.value.suggested_filename, f.read()


def results(page, threshold=None):
    """Return the rows of predictions.json, by image id, with the lowest score if it is given."""
    if threshold is not None:
        page.locator("#threshold").fill(str(threshold))
        page.locator("#least", has_text=f"{threshold:.2f}").wait_for()
    name, content = saved(page, "#save-json")
    assert name == "predictions.json"
    rows = json.loads(content)
    return {i: list(found) for i, found in itertools.groupby(rows, lambda row: row["image_id"])}


def encoded(image, **options):
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def turned(image, orientation, kind="JPEG", **options):
    """Return an image file whose EXIF data has an orientation."""
    exif = image.getexif()
    exif[0x0112] = orientation
    return encoded(image, format=kind, exif=exif, **options)
