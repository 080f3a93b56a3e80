"""Add precomputed object proposals to dataset dicts."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from d2ext.data.records.records import applied, image_ids_of
from d2ext.errors import UserError
from d2ext.plain_pickle import read_pickle

_BOX_MODE = (BoxMode.__module__, BoxMode.__name__)
_KEYS = "ids (or indexes), boxes and objectness_logits (or scores)"


def with_proposals(records: Sequence[dict], file: str, dataset: str) -> Sequence[dict]:
    """Return dataset dicts with precomputed proposals, added on access.

    The dicts are those of Detectron2's `load_proposals_into_dataset`.

    Args:
        records: Dataset dicts.
        file: Pickle with the keys `ids` (or `indexes`), image ids; `boxes`, an array (P, 4) for
            each image; `objectness_logits` (or `scores`), an array (P,) for each image; and
            `bbox_mode` (default: XYXY_ABS).
        dataset: Name of the dataset, for messages.

    Raises:
        UserError: The file cannot be read, or lacks a key or an image.
    """
    try:
        with PathManager.open(file, "rb") as f:
            content = read_pickle(f, "write a dict", {_BOX_MODE: BoxMode})
        ids = content["ids" if "ids" in content else "indexes"]
        logits = content["objectness_logits" if "objectness_logits" in content else "scores"]
        boxes, mode = content["boxes"], BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
        if not len(ids) == len(boxes) == len(logits):
            raise ValueError(f"{len(ids)} ids, {len(boxes)} boxes, {len(logits)} logits")
    except OSError as e:
        raise UserError(f"cannot read the proposals {file}: {e.strerror or e}") from e
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{file} is not a dict with {_KEYS} for each image: {e!r}") from e
    index = {str(id_): i for i, id_ in enumerate(ids)}
    wanted = list(map(str, image_ids_of(records)))
    if lacking := [id_ for id_ in wanted if id_ not in index]:
        raise UserError(
            f"{file} has no proposals for {len(lacking)} of the {len(wanted)} images of dataset"
            f" {dataset!r}, the first has the image_id {lacking[0]}; compute them for all images"
        )
    proposals = {id_: (boxes[index[id_]], logits[index[id_]]) for id_ in wanted}
    return applied(records, _WithProposals(proposals, mode))


@dataclass(frozen=True)
class _WithProposals:
    """Add an image's proposals, sorted by descending score, to its dict."""

    proposals: dict[str, tuple[np.ndarray, np.ndarray]]
    mode: Any

    def __call__(self, record: dict) -> dict:
        boxes, logits = self.proposals[str(record["image_id"])]
        order = logits.argsort()[::-1]
        return {
            **record,
            "proposal_boxes": boxes[order],
            "proposal_objectness_logits": logits[order],
            "proposal_bbox_mode": self.mode,
        }
