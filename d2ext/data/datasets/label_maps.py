"""Give dataset dicts the label map of their photo, for models with a semantic branch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2ext.data.records.records import applied
from d2ext.invocation import command


def with_label_maps(records: Sequence[dict], image_root: str, label_root: str) -> Sequence[dict]:
    """Return Detectron2's dataset dicts with `sem_seg_file_name`, if the folder of maps exists.

    Otherwise, the records stay as they are: evaluations and models without a semantic branch need
    no maps. Preflight refuses to train the others.

    Args:
        records: Dataset dicts.
        image_root: Folder of the photos.
        label_root: Folder of the label maps: PNG files with the photos' names.
    """
    if not Path(label_root).is_dir():
        return records
    return applied(records, _LabelMaps(image_root, label_root))


def maps_remedy(label_root: str) -> str:
    """Return what to do about a folder of label maps that does not exist."""
    remedy = "check label_root, or train without label maps (model.roi_heads.semantic=False)"
    if Path(label_root).match("coco/stuffthingmaps/*2017"):
        remedy += f", or run {command('prepare')} coco --stuff --root DIR and train with"
        remedy += " data.root=DIR"
    return remedy


@dataclass(frozen=True)
class _LabelMaps:
    image_root: str
    label_root: str

    def __call__(self, record: dict) -> dict:
        name = Path(record["file_name"]).relative_to(self.image_root).with_suffix(".png")
        return {**record, "sem_seg_file_name": str(self.label_root / name)}
