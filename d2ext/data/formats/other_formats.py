"""Annotation files of another format than their reader's: what they are, and what to do.

The formats that d2ext reads say so themselves (`Format.advice`); the others are listed here.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from d2ext.data.formats.format import FileHead

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
# Formats that are not read, and what a command says of such a file.
_REFUSED = {
    "bdd100k": "a BDD100K or Scalabel file (JSON); convert it to COCO, for example with scalabel",
    "cityscapes": "a Cityscapes annotation (JSON), which is read only as part of Cityscapes itself"
    " (`python tools/prepare_data.py cityscapes`); convert your own data to COCO",
    "darwin": f"a V7 Darwin JSON; {_COCO_EXPORT}",
    "cvat_video": "a CVAT export for videos; export as 'CVAT for images 1.1' or 'COCO 1.0' instead",
    "datumaro": "a Datumaro JSON; export as COCO instead ('COCO 1.0' in CVAT, `datum convert -f"
    " coco_instances` in Datumaro)",
    "label_studio": f"a Label Studio export (JSON); {_COCO_EXPORT}",
    "labelbox": "a Labelbox export; convert it to COCO, for example with Roboflow or FiftyOne",
    "openlabel": "an OpenLABEL file (JSON); convert it to COCO",
    "results": "a list of detections (COCO results); give the annotations that they belong to",
    "roboflow_csv": "a CSV of boxes as Roboflow and TensorFlow write it; export the annotations as"
    " COCO instead",
    "sagemaker": "a manifest of SageMaker Ground Truth; convert it to COCO",
    "sloth": "a Sloth annotation file (JSON); convert it to COCO",
    "supervisely": "a Supervisely annotation (JSON); export the project as COCO instead",
    "via3": "a project of VIA 3, which is not read; annotate in VIA 2, or export to COCO",
    "vott": "a VoTT file (JSON); export as Pascal VOC there instead, and convert that",
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
        content = path.read_bytes()
        if content.startswith(ARCHIVES):
            return "an archive; unpack it, and give the annotation file in it"
        head = _head(content, path.suffix.lower())
    except (OSError, ValueError, RecursionError):
        return ""
    # The readers in the registry import this module.
    from d2ext.data.formats.registry import FORMATS

    for form in FORMATS.values():
        if form.detect(head):
            if form.name in wanted:
                return ""
            file, folder = (shlex.quote(str(place)) for place in (path, path.parent))
            return form.advice.format(file=file, folder=folder)
    kind = _refused_kind(head)
    return "" if kind in wanted else _REFUSED.get(kind, "")


def _head(content: bytes, suffix: str) -> FileHead:
    """Return what a file holds; ValueError or RecursionError where it is damaged."""
    text = content.decode(encoding_of(content), "replace").lstrip()
    if text.startswith("<"):
        root = _ROOT.search(text[:10_000])
        return FileHead(suffix, root=root[1] if root else "", is_video="<track" in text)
    if text.startswith(("{", "[")):
        return FileHead(suffix, value=_json(text))
    columns = re.split("[,;\t]", text.partition("\n")[0].strip())
    names = {name.strip(' #"') for name in columns} if len(columns) > 1 else set()
    return FileHead(suffix, columns=frozenset(names))


def _json(text: str) -> Any:
    """Return the value of a JSON text, or of its first line if each line is a value (NDJSON)."""
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(text.partition("\n")[0])]


def _refused_kind(head: FileHead) -> str:
    """Return a key of `_REFUSED`; empty for another file."""
    if head.root == "annotations" and head.is_video:
        return "cvat_video"
    if {"filename", "class", "xmin"} <= head.columns:
        return "roboflow_csv"
    if isinstance(head.value, dict):
        return next((kind for kind, keys in _KEYS if keys <= head.value.keys()), "")
    entry = head.value[0] if isinstance(head.value, list) and head.value else None
    return _kind_of_entry(entry) if isinstance(entry, dict) else ""


_KEYS = (  # of a JSON object
    ("datumaro", {"items", "categories"}),
    ("supervisely", {"objects", "size"}),
    ("supervisely", {"classes", "tags"}),  # its meta.json
    ("label_studio", {"data", "annotations"}),  # one task
    ("label_studio", {"task", "result"}),
    ("via3", {"project", "metadata", "view"}),
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
)


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
    return "sloth" if name and isinstance(objects, list) and "class" in entry else ""
