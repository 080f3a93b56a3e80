"""Annotation files of another format than their reader's: what they are, and what to do."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

_MARKS = {  # byte order marks; UTF-32's begins with UTF-16's
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b")  # how ZIP and gzip files begin
_ROOT = re.compile(r"<(?:[\w.-]+:)?([A-Za-z_][\w.-]*)")  # the first element of an XML file
_COCO_EXPORT = "export the annotations as COCO there instead"
# Formats that tools/convert_dataset.py reads, and whether a file of them describes one image.
_CONVERTED = {
    "createml": ("a CreateML JSON", False),
    "cvat": ("a CVAT export (XML)", False),
    "labelme": ("a LabelMe annotation", True),
    "open_images": ("an Open Images CSV", False),
    "via": ("a VIA annotation file", False),
    "voc": ("a Pascal VOC annotation (XML)", True),
}
_REFUSED = {
    "bdd100k": "a BDD100K or Scalabel file (JSON); convert it to COCO, for example with scalabel",
    "cityscapes": "a Cityscapes annotation (JSON), which is read only as part of Cityscapes itself"
    " (`python tools/prepare_data.py cityscapes`); convert your own data to COCO",
    "darwin": f"a V7 Darwin JSON; {_COCO_EXPORT}",
    "archive": "an archive; unpack it, and give the annotation file in it",
    "coco": "a COCO annotation file, which is read as it is (data.train.json=FILE)",
    "cvat_video": "a CVAT export for videos; export as 'CVAT for images 1.1' or 'COCO 1.0' instead",
    "datumaro": "a Datumaro JSON; export as COCO instead ('COCO 1.0' in CVAT, `datum convert -f"
    " coco_instances` in Datumaro)",
    "label_studio": f"a Label Studio export (JSON); {_COCO_EXPORT}",
    "labelbox": "a Labelbox export; convert it to COCO, for example with Roboflow or FiftyOne",
    "middle": "in MMDetection's middle format, which is read as it is (data.train.json=FILE)",
    "openlabel": "an OpenLABEL file (JSON); convert it to COCO",
    "results": "a list of detections (COCO results); give the annotations that they belong to",
    "roboflow_csv": "a CSV of boxes as Roboflow and TensorFlow write it; export the annotations as"
    " COCO instead",
    "sagemaker": "a manifest of SageMaker Ground Truth; convert it to COCO",
    "sloth": "a Sloth annotation file (JSON); convert it to COCO",
    "supervisely": "a Supervisely annotation (JSON); export the project as COCO instead",
    "via3": "a project of VIA 3, which is not read; annotate in VIA 2, or export to COCO",
    "vott": "a VoTT file (JSON); export as Pascal VOC there instead, and convert that",
    "yolo": "a file of a YOLO dataset; convert it with `python tools/convert_dataset.py yolo"
    " INPUT --images DIR --output coco.json`, where INPUT is data.yaml or the folder of the labels",
}


def encoding_of(content: bytes) -> str:
    """Return the encoding that a byte order mark names, which decoding drops; else UTF-8."""
    return next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")


def advice(path: str | Path, *wanted: str) -> str:
    """Describe an annotation file that its reader does not take, and what to do with it.

    Args:
        path: the file.
        wanted: the formats that the reader does take: such a file is damaged.

    Returns:
        The end of a sentence that begins with "FILE is"; empty if the file is in one of these
        formats or an unknown one, or cannot be read.
    """
    path = Path(path)
    try:
        kind = _kind(path.read_bytes(), path.suffix.lower())
    except (OSError, ValueError, RecursionError):
        return ""
    if kind in wanted:
        return ""
    if kind in _CONVERTED:
        what, one_image = _CONVERTED[kind]
        given = shlex.quote(str(path.parent if one_image else path))
        command = f"python tools/convert_dataset.py {kind} {given} --images DIR --output coco.json"
        return f"{what}; convert it with `{command}`"
    return _REFUSED.get(kind, "")


def _kind(content: bytes, suffix: str) -> str:
    """Return a key of the tables above; empty for another file."""
    if content.startswith(ARCHIVES):
        return "archive"
    text = content.decode(encoding_of(content), "replace").lstrip()
    if text.startswith("<"):
        root = _ROOT.search(text[:10_000])
        if root and root[1] == "annotations":
            return "cvat_video" if "<track" in text else "cvat"
        return "voc" if root and root[1] == "annotation" else ""
    if text.startswith(("{", "[")):
        return _json_kind(_json(text))
    header = {name.strip(' #"') for name in re.split("[,;\t]", text.partition("\n")[0].strip())}
    if {"ImageID", "LabelName"} <= header:
        return "open_images"
    if "region_shape_attributes" in header:
        return "via"
    if {"filename", "class", "xmin"} <= header:
        return "roboflow_csv"
    return "yolo" if suffix in (".yaml", ".yml", ".txt") else ""


def _json(text: str) -> Any:
    """Return the value of a JSON text, or of its first line if each line is a value (NDJSON)."""
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(text.partition("\n")[0])]


def _json_kind(value: Any) -> str:
    if isinstance(value, list):
        return _kind_of_entry(value[0]) if value and isinstance(value[0], dict) else ""
    for kind, keys in (
        ("coco", {"images", "annotations", "categories"}),
        ("middle", {"metainfo", "data_list"}),
        ("datumaro", {"items", "categories"}),
        ("labelme", {"shapes", "imagePath"}),
        ("supervisely", {"objects", "size"}),
        ("supervisely", {"classes", "tags"}),  # its meta.json
        ("label_studio", {"data", "annotations"}),  # one task
        ("label_studio", {"task", "result"}),
        ("via3", {"project", "metadata", "view"}),
        ("via", {"_via_img_metadata"}),
        ("vott", {"assets", "tags"}),
        ("vott", {"asset", "regions"}),  # of one image
        ("darwin", {"item", "annotations"}),
        ("darwin", {"dataset", "image", "annotations"}),  # version 1
        ("bdd100k", {"name", "frames"}),  # of one image
        ("bdd100k", {"config", "frames"}),
        ("openlabel", {"openlabel"}),
        ("openlabel", {"vcd"}),
        ("sagemaker", {"source-ref"}),
        ("cityscapes", {"imgHeight", "imgWidth", "objects"}),
    ):
        if keys <= value.keys():
            return kind
    entries = [entry for entry in value.values() if isinstance(entry, dict)]
    via = all({"filename", "regions"} <= entry.keys() for entry in entries)
    return "via" if entries and via and len(entries) == len(value) else ""


def _kind_of_entry(entry: dict) -> str:
    """Return the kind of a JSON list by its first entry."""
    if {"image_id", "score"} <= entry.keys():
        return "results"
    if not {"Labeled Data", "DataRow ID", "data_row"}.isdisjoint(entry):
        return "labelbox"
    if "data" in entry or {"annotator", "lead_time"} <= entry.keys() or "annotation_id" in entry:
        return "label_studio"
    if "source-ref" in entry:
        return "sagemaker"
    if {"name", "labels"} <= entry.keys():
        return "bdd100k"
    name = {"image", "imagefilename", "filename"} & entry.keys()
    objects = entry.get("annotations", entry.get("annotation"))
    if not name or not isinstance(objects, list):
        return ""
    first = objects[0] if objects else {"label": "", "coordinates": {}}
    if isinstance(first, dict) and {"label", "coordinates"} <= first.keys():
        return "createml"
    return "sloth" if "class" in entry else ""
