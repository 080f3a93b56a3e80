"""Which format an annotation file is of, from what is in it."""

import csv
from pathlib import Path

from d2ext.data.formats.common import outline, read_json
from d2ext.errors import UserError


def annotation_format(file: str | Path) -> str:
    """`coco`, `middle` (MMDetection's) or `via` (JSON of VIA 1 or 2, a project, or its CSV).

    Raises:
        UserError: the file is absent, cannot be read, or is of none of these.
    """
    suffix = Path(file).suffix.lower()
    if suffix in (".yaml", ".yml", ".xml", ".txt") or Path(file).is_dir():
        raise _unknown(file)
    if suffix == ".csv":
        known = _is_via_csv(Path(file))
        if known:
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
    return UserError(
        f"{file} is of no format that is known here: COCO (images, annotations, categories), VIA 1"
        " or 2 (JSON, project or CSV), MMDetection's middle format (metainfo, data_list); convert"
        " it with tools/convert_dataset.py"
    )


def _has_via_entries(file: str | Path, content: dict) -> bool:
    if not content or not all(isinstance(value, dict) for value in content.values()):
        return False
    return all({"filename", "regions"} <= entry.keys() for entry in read_json(file).values())


def _is_via_csv(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as f:
            head = next(csv.reader(f), [])
    except FileNotFoundError:
        raise UserError(f"the annotation file {file} does not exist; check json_file") from None
    except (OSError, csv.Error) as e:
        raise UserError(f"cannot read the annotation file {file}: {e}") from e
    return {"region_shape_attributes", "region_attributes"} <= {name.strip() for name in head}
