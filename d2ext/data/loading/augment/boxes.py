"""Check that an augmentation receives the boxes of the objects."""

import numpy as np

from d2ext.errors import UserError


def required_boxes(augmentation: object, boxes: np.ndarray | None) -> np.ndarray:
    """Return the boxes that a mapper passes to an augmentation.

    Args:
        augmentation: The augmentation, for the message.
        boxes: Shape (N, 4), x0 y0 x1 y1 in pixels; None from a mapper that passes none.

    Raises:
        UserError: There are none, as from Detectron2's DatasetMapper.
    """
    if boxes is None:
        raise UserError(
            f"{type(augmentation).__name__} needs the boxes of the objects, which this mapper does"
            " not pass; set dataloader.train.mapper._target_=d2ext.data.loading.mapper.Mapper"
        )
    return boxes
