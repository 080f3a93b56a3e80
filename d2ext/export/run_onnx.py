#!/usr/bin/env python
"""Detect objects in photos with a model that d2ext exported.

    pip install numpy pillow onnxruntime
    python run_onnx.py PHOTOS --output DIR

PHOTOS are image files and folders. DIR gets predictions.json (COCO results), images.json (images
and classes) and overlays, which replace those of an earlier call. Photos that cannot be read are
skipped; the exit status is then 1. The pixel limit is Pillow's, or D2EXT_MAX_IMAGE_PIXELS.

This file needs the three packages above, and the .onnx file that lies beside it.
"""

import argparse
import colorsys
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont, ImageOps

SUFFIXES = set(
    ".apng .avif .bmp .dib .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pgm"
    " .png .pnm .ppm .tga .tif .tiff .webp".split()
)
FORMAT = 1  # of the model's metadata
KEYS = "classes channels short_edge max_size mask_threshold shown_score_threshold".split()
INFO = {"description": "run_onnx.py"}  # marks images.json, and so the folder, as ours
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow refuses twice that size


class Model:
    """An exported model.

    Args:
        file: The ONNX file.

    Attributes:
        info: Metadata of the model: classes, sizes, thresholds, provenance.
    """

    def __init__(self, file):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:
            sys.exit(f"error: {file} cannot be read: {str(e).splitlines()[0]}; export it again")
        entries = self.session.get_modelmeta().custom_metadata_map
        if entries.get("d2ext_format") != str(FORMAT):
            sys.exit(f"error: {file} is not a model of version {FORMAT}; use the runner beside it")
        try:
            self.info = {key: json.loads(entries[key]) for key in KEYS}
        except (KeyError, ValueError) as e:
            sys.exit(f"error: {file} has damaged metadata ({e}); export it again")

    def resized(self, width, height):
        """Return the width and height at which the model sees a photo."""
        scale = self.info["short_edge"] / min(width, height)
        sides = [scale * width, scale * height]
        sides[1 if height < width else 0] = self.info["short_edge"]
        if max(sides) > self.info["max_size"]:
            scale = self.info["max_size"] / max(sides)
            sides = [scale * side for side in sides]
        return [int(side + 0.5) for side in sides]

    def __call__(self, photo, threshold):
        """Return the objects in a photo, as COCO results without `image_id`, best ones first.

        Args:
            photo: Upright RGB image of Pillow.
            threshold: Lowest score of the objects.
        """
        width, height = photo.size
        size = self.resized(width, height)
        if 0 in size:
            raise ValueError(f"an image of {width} x {height} pixels cannot be resized")
        pixels = np.asarray(photo.resize(size, Image.Resampling.BILINEAR))
        if self.info["channels"] == "BGR":
            pixels = pixels[:, :, ::-1]
        image = np.ascontiguousarray(pixels)
        boxes, scores, classes, *masks = self.session.run(None, {"image": image})
        boxes[:, 0::2] *= np.float32(width / size[0])
        boxes[:, 1::2] *= np.float32(height / size[1])
        boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1) & (scores >= threshold)
        found = []
        for i in sorted(np.flatnonzero(kept), key=lambda i: -scores[i]):
            x0, y0, x1, y1 = boxes[i].tolist()
            row = {"category_id": int(classes[i]) + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            row["score"] = float(scores[i])
            if masks:
                inside, place = paste(masks[0][i], boxes[i], height, width)
                mask = inside >= self.info["mask_threshold"]
                row["segmentation"] = encode(mask, place, height, width)
            found.append(row)
        return found


def paste(mask, box, height, width):
    """Resize a mask to its box; return the probabilities there, and their rows and columns.

    Bilinear, like torch's grid_sample. Rows and columns are weighted one after the other.
    """
    x0, y0, x1, y1 = box
    rows = slice(max(int(np.floor(y0)) - 1, 0), min(int(np.ceil(y1)) + 1, height))
    columns = slice(max(int(np.floor(x0)) - 1, 0), min(int(np.ceil(x1)) + 1, width))
    return weights(rows, y0, y1, len(mask)) @ mask @ weights(columns, x0, x1, len(mask)).T, (
        rows,
        columns,
    )


def weights(pixels, start, end, cells):
    """Return how much each cell of a mask counts for each pixel, (pixels, cells)."""
    centers = np.arange(pixels.start, pixels.stop, dtype=np.float32) + np.float32(0.5)
    places = (centers - start) / (end - start) * cells - np.float32(0.5)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(cells, dtype=np.float32)), 0)


def encode(mask, place, height, width):
    """Return the compressed COCO RLE of an image that is empty except for a mask."""
    rows, columns = place
    image = np.zeros((width, height), bool)
    image[columns, rows] = mask.T
    ends = np.flatnonzero(np.diff(image.ravel(), prepend=False)).tolist()  # column by column
    counts = np.diff([0, *ends, image.size]).tolist()
    text = []
    for i, count in enumerate(counts):
        value = count - (counts[i - 2] if i > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            text.append(chr(bits + (0 if last else 32) + 48))
            if last:
                break
    return {"size": [height, width], "counts": "".join(text)}


def decode(rle):
    """Return the mask of a compressed COCO RLE, bool (height, width)."""
    counts, value, shift = [], 0, 0
    for code in rle["counts"].encode():
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    height, width = rle["size"]
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def read(file):
    """Return a photo upright, in RGB with 8 bits; deeper gray values are scaled to their range."""
    with Image.open(file) as image:
        image.load()
        photo = ImageOps.exif_transpose(image)
    if photo.mode.startswith(("I", "F")):
        values = np.asarray(photo)
        kind = np.float32 if values.itemsize <= 2 else np.float64
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        scaled = (values.astype(kind) - kind(low)) * kind(255 / (high - low or 1))
        scaled = np.nan_to_num(scaled, nan=0).clip(0, 255) + kind(0.5)
        photo = Image.fromarray(scaled.astype(np.uint8))
    return photo.convert("RGB")


def photos_in(inputs, output):
    """Return the image files, sorted within each folder, and the names of their overlays."""
    found = {}
    for path in map(Path, inputs):
        if not path.exists():
            sys.exit(f"error: {path} does not exist; give images or folders")
        if output.resolve() in (path.resolve(), *path.resolve().parents):
            sys.exit(f"error: the input {path} is in --output {output}; choose another --output")
        names, others = [path], 0
        if path.is_dir():
            walk = os.walk(path, followlinks=True)
            files = (os.path.relpath(os.path.join(top, n), path) for top, _, ns in walk for n in ns)
            names = [path / n for n in sorted(files) if not any(map(is_hidden, Path(n).parts))]
            names = [n for n in names if output.resolve() not in n.resolve().parents]
            photos = [n for n in names if n.suffix.lower() in SUFFIXES]
            others, names = len(names) - len(photos), photos
        if others:
            print(f"{path}: skipped {others} files that are not images", file=sys.stderr)
        for file in names:
            inside = file.relative_to(path) if path.is_dir() else Path(file.name)
            name, n = str(inside.with_suffix("")), 1
            while name in found:
                n += 1
                name = f"{inside.with_suffix('')}_{n}"
            found[name] = file
    return found


def is_hidden(name):
    """Return whether a file or folder is hidden or was created by an operating system."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir")


def draw(photo, objects, classes):
    """Return a photo with masks, boxes, class names and scores."""
    pixels = np.array(photo)
    colors = [
        tuple(round(255 * v) for v in colorsys.hsv_to_rgb(0.618 * o["category_id"] % 1, 0.8, 1))
        for o in objects
    ]
    for found, color in zip(objects, colors, strict=True):
        if "segmentation" in found:
            mask = decode(found["segmentation"])
            pixels[mask] = (pixels[mask] * 0.5 + np.array(color) * 0.5).astype(np.uint8)
    picture = Image.fromarray(pixels)
    drawing = ImageDraw.Draw(picture)
    thick = max(1, round(max(photo.size) / 500))
    font = ImageFont.load_default(max(10, round(max(photo.size) / 60)))
    for found, color in zip(objects, colors, strict=True):
        x, y, w, h = found["bbox"]
        drawing.rectangle((x, y, x + w, y + h), outline=color, width=thick)
        label = f"{classes[found['category_id'] - 1]} {found['score']:.2f}"
        drawing.text((x + 2 * thick, y + thick), label, color, font, stroke_width=1, stroke_fill=0)
    return picture


def prepare(output):
    """Create the output folder, or remove earlier results of this program from it."""
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        try:
            ours = json.loads((output / "images.json").read_bytes())["info"] == INFO
        except (OSError, ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            sys.exit(
                f"error: --output {output} is not empty and does not hold earlier results of this"
                " program; choose another --output"
            )
        (output / "predictions.json").unlink(missing_ok=True)
        if (output / "overlays").exists():
            shutil.rmtree(output / "overlays")


def write(file, text):
    """Write a file that is complete or, after an error, absent."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def score(text):
    """Return a number from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def parse(argv=None):
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTOS", help="images, or folders of images")
    add("--output", type=Path, required=True, metavar="DIR", help="output folder")
    default = "(model.onnx beside this file, or the only .onnx file there)"
    add("--model", type=Path, metavar="FILE", help=default)
    add("--score-threshold", type=score, metavar="S", help="lowest score (0.5)")
    add("--no-overlays", action="store_true", help="do not draw the objects")
    return parser.parse_args(argv)


def find_model():
    """Return the model beside this file."""
    folder = Path(__file__).resolve().parent
    found = [folder / "model.onnx"]
    if not found[0].exists():
        found = sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        sys.exit(f"error: {len(found)} .onnx files beside this program; give --model FILE")
    return found[0]


def detect(args):
    """Run the model on all photos; return the exit status."""
    if limit := os.environ.get("D2EXT_MAX_IMAGE_PIXELS"):
        if not limit.isdecimal() or int(limit) < 1:
            sys.exit(f"error: D2EXT_MAX_IMAGE_PIXELS={limit}: give a number of pixels")
        Image.MAX_IMAGE_PIXELS = int(limit) / 2
    model = Model(args.model or find_model())
    threshold = args.score_threshold
    if threshold is None:
        threshold = model.info["shown_score_threshold"]
    found = photos_in(args.photos, args.output)
    if not found:
        sys.exit(f"error: no image in {', '.join(args.photos)}")
    prepare(args.output)
    classes = model.info["classes"]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    images, results, skipped = [], [], []
    index = {"info": INFO, "images": images, "annotations": [], "categories": categories}
    index["skipped"] = skipped
    write(args.output / "images.json", json.dumps(index))  # marks the folder as ours
    for name, file in found.items():
        try:
            photo = read(file)
            objects = model(photo, threshold)
        except Exception as e:  # Pillow raises many kinds of errors for damaged files
            reason = (str(e) or type(e).__name__).splitlines()[0]
            print(f"{file} cannot be read and is skipped: {reason}", file=sys.stderr)
            skipped.append({"file_name": str(file), "reason": reason})
            continue
        image_id, (width, height) = len(images) + 1, photo.size
        images.append({"id": image_id, "file_name": str(file), "output_name": name})
        images[-1] |= {"width": width, "height": height}
        results += [{"image_id": image_id, **row} for row in objects]
        if not args.no_overlays:
            picture = args.output / "overlays" / f"{name}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            draw(photo, objects, classes).save(picture, quality=92)
    rows = ",\n".join(map(json.dumps, results))
    write(args.output / "predictions.json", f"[{rows}]\n")
    write(args.output / "images.json", json.dumps(index, indent=1))
    print(f"{args.output}: {len(images)} images, {len(results)} objects")
    return int(bool(skipped))


def main():
    """Run the command; return the exit status."""
    args = parse()
    try:
        return detect(args)
    except OSError as e:
        sys.exit(f"error: {e.filename or args.output}: {e.strerror or e}; choose another --output")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
