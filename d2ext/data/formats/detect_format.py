"""Which format an annotation file is of, from what is in it."""

import csv
from pathlib import Path

from d2ext.data.formats.json_io import csv_rows, outline, read_json
from d2ext.data.formats.other_formats import advice
from d2ext.errors import UserError


def detect_format(file: str | Path) -> str:
    """`coco`, `middle` (MMDetection's) or `via` (JSON of VIA 1 or 2, a project, or its CSV).

    Raises:
        UserError: the file is absent, cannot be read, or is of none of these.
    """
    suffix = Path(file).suffix.lower()
    if suffix in (".yaml", ".yml", ".xml", ".txt", ".zip") or Path(file).is_dir():
        raise _unknown(file)
    if suffix == ".csv":
        if _is_via_csv(Path(file)):
            return "via"
    else:
        content = outline(file)
        if isinstance(content, dict):
            lists = {key for key, value in content.items() if isinstance(value, list)}
            if {"images", "annotations"} <= lists:
                return "coco"
            if "data_list" in lists:
                return "middle"
            if "_via_img_metadata" in content or _has_via_entries(file, content):
                return "via"
    raise _unknown(file)


def _unknown(file: str | Path) -> UserError:
    if known := advice(file, "coco", "middle", "via"):
        return UserError(f"{file} is {known}")
    return UserError(
        f"{file} is of no format that is known here: COCO (images, annotations, categories), VIA 1"
        " or 2 (JSON, project or CSV), MMDetection's middle format (metainfo, data_list); convert"
        " it with tools/convert_dataset.py, which reads LabelMe, YOLO, Pascal VOC, CVAT, CreateML"
        " and Open Images, or export it as COCO from the program that wrote it"
    )


def _has_via_entries(file: str | Path, content: dict) -> bool:
    if not content or not all(isinstance(value, dict) for value in content.values()):
        return False
    return all({"filename", "regions"} <= entry.keys() for entry in read_json(file).values())


def _is_via_csv(file: Path) -> bool:
    try:
        return {"region_shape_attributes", "region_attributes"} <= set(csv_rows(file).fieldnames)
    except csv.Error:
        return False
