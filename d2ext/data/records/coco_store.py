"""Cache a COCO file without building Python dicts of its objects: masks stay JSON text."""

import zlib
from collections.abc import Iterator
from typing import IO, Any

import msgspec
import numpy as np

from d2ext.data.formats.annotation_kinds import CROWD, DIFFICULT, GROUP_OF
from d2ext.data.formats.coco_file import CocoColumns
from d2ext.data.records.array_file import ArrayFileWriter
from d2ext.data.records.columns import Columns, no_keypoints
from d2ext.data.records.records import write_columns


def write_store(file: IO[bytes], coco: CocoColumns, info: dict[str, Any]) -> None:
    """Write columns as a file that `Records` reads.

    Args:
        file: File to write to.
        coco: Columns returned by `read_repaired`.
        info: JSON values for `Records.info`.
    """
    writer = ArrayFileWriter(file)
    counts = np.bincount(coco.image, minlength=len(coco.image_ids))
    lengths = np.empty(len(counts), np.int64)
    crcs = np.empty(len(counts), np.uint32)
    writer.add_bytes("data", _data(coco, counts, lengths, crcs))
    writer.add("boxes", np.hstack([coco.boxes[:, :2], coco.boxes[:, :2] + coco.boxes[:, 2:]]))
    writer.add("areas", coco.areas)
    writer.add("starts", np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
    flags = coco.crowd * CROWD | coco.difficult * DIFFICULT | coco.group_of * GROUP_OF
    assert coco.mask_kinds is not None  # as `repair` reads it
    columns = Columns(
        coco.heights.astype(np.int32),
        coco.widths.astype(np.int32),
        counts.astype(np.int32),
        coco.label.astype(np.int32),
        coco.mask_kinds,
        flags.astype(np.uint8),
        no_keypoints(len(coco.label)) if coco.keypoint_counts is None else coco.keypoint_counts,
    )
    write_columns(writer, lengths, crcs, coco.image_names, coco.image_ids, columns)
    writer.finish(info)


def _data(
    coco: CocoColumns, counts: np.ndarray, lengths: np.ndarray, crcs: np.ndarray
) -> Iterator[bytes]:
    """Yield the JSON of each image; set its length and CRC.

    It is [image_id, file_name, [segmentation, ...]], followed by [keypoints, ...] if it has some.
    """
    assert coco.masks is not None  # as `repair` reads it
    first = 0
    rows = zip(coco.image_ids, coco.image_names, counts.tolist(), strict=True)
    for i, (image_id, name, count) in enumerate(rows):
        texts = b",".join(coco.masks[first : first + count])
        text = b"[%d,%b,[%b]" % (image_id, msgspec.json.encode(name), texts)
        if coco.keypoint_counts is not None and coco.keypoint_counts[first : first + count].any():
            assert coco.keypoints is not None  # has the counts
            text += b",[%b]" % b",".join(coco.keypoints[first : first + count])
        text += b"]"
        lengths[i], crcs[i] = len(text), zlib.crc32(text)
        first += count
        yield text
