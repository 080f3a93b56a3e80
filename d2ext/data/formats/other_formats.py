"""Identify annotation files in a format that a reader does not support, with advice on conversion.

Formats that d2ext reads bring their own advice (`Format.advice`); all others are listed here.
"""

import shlex
from pathlib import Path

from d2ext.data.formats.file_head import ARCHIVES, FileHead, read_head
from d2ext.data.formats.format import advice_of, formats, matching
from d2ext.invocation import command

_COCO_EXPORT = "export the annotations as COCO there instead"
# Unsupported formats, and the advice for a file in each.
_REFUSED = {
    "bdd100k": "a BDD100K or Scalabel file (JSON); convert it to COCO, for example with scalabel",
    "cityscapes": "a Cityscapes annotation (JSON), which is read only as part of Cityscapes itself"
    " (`{prepare} cityscapes`); convert your own data to COCO",
    "darwin": f"a V7 Darwin JSON; {_COCO_EXPORT}",
    "cvat_video": "a CVAT export for videos; export as 'CVAT for images 1.1' or 'COCO 1.0' instead",
    "datumaro": "a Datumaro JSON; export as COCO instead ('COCO 1.0' in CVAT, `datum convert -f"
    " coco_instances` in Datumaro)",
    "label_studio": f"a Label Studio export (JSON); {_COCO_EXPORT}",
    "labelbox": "a Labelbox export; convert it to COCO, for example with Roboflow or FiftyOne",
    "openlabel": "an OpenLABEL file (JSON); convert it to COCO",
    "results": "a list of detections (COCO results); give the annotations that they belong to",
    "roboflow_csv": "a CSV of boxes in the format of Roboflow and TensorFlow; export the"
    " annotations as COCO instead",
    "sagemaker": "a SageMaker Ground Truth manifest; convert it to COCO",
    "sloth": "a Sloth annotation file (JSON); convert it to COCO",
    "supervisely": "a Supervisely annotation (JSON); export the project as COCO instead",
    "via3": "a VIA 3 project, which is not supported; annotate in VIA 2, or export as COCO",
    "vott": "a VoTT file (JSON); export as Pascal VOC from VoTT instead, and convert that export",
}


def advice(path: str | Path, *wanted: str) -> str:
    """Describe an annotation file that a reader rejected, and say what to do with it.

    Args:
        path: Path of the file.
        wanted: Formats that the reader supports; a file in one of them is damaged.

    Returns:
        The end of a sentence that starts with "FILE is"; empty if the file is in a `wanted` or
        unknown format, or cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if content.startswith(ARCHIVES):
            return "an archive; unpack it, and give the annotation file in it"
        head = read_head(content, path.suffix.lower())
    except (OSError, ValueError, RecursionError):
        return ""
    if form := matching(head, formats().values()):
        if form.name in wanted:
            return ""
        file, folder = (shlex.quote(str(place)) for place in (path, path.parent))
        return advice_of(form).format(file=file, folder=folder, convert=command("convert"))
    kind = _refused_kind(head)
    return "" if kind in wanted else _REFUSED.get(kind, "").format(prepare=command("prepare"))


def _refused_kind(head: FileHead) -> str:
    """Return a key of `_REFUSED`, or an empty string for other files."""
    if head.root == "annotations" and head.is_video:
        return "cvat_video"
    if {"filename", "class", "xmin"} <= head.columns:
        return "roboflow_csv"
    if isinstance(head.value, dict):
        return next((kind for kind, keys in _KEYS if keys <= head.value.keys()), "")
    entry = head.value[0] if isinstance(head.value, list) and head.value else None
    return _kind_of_entry(entry) if isinstance(entry, dict) else ""


_KEYS = (  # top-level keys of a JSON object
    ("datumaro", {"items", "categories"}),
    ("supervisely", {"objects", "size"}),
    ("supervisely", {"classes", "tags"}),  # meta.json
    ("label_studio", {"data", "annotations"}),  # one task
    ("label_studio", {"task", "result"}),
    ("via3", {"project", "metadata", "view"}),
    ("vott", {"assets", "tags"}),
    ("vott", {"asset", "regions"}),  # one image
    ("darwin", {"item", "annotations"}),
    ("darwin", {"dataset", "image", "annotations"}),  # version 1
    ("bdd100k", {"name", "frames"}),  # one image
    ("bdd100k", {"config", "frames"}),
    ("openlabel", {"openlabel"}),
    ("openlabel", {"vcd"}),
    ("sagemaker", {"source-ref"}),
    ("cityscapes", {"imgHeight", "imgWidth", "objects"}),
)


def _kind_of_entry(entry: dict) -> str:
    """Return the kind of a JSON list, identified by its first entry."""
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
