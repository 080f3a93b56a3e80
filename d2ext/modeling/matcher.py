"""Matching of boxes with objects by IoU, following MMDetection's rule."""

from detectron2.modeling.matcher import Matcher
from torch import Tensor


class MaxIoUMatcher(Matcher):
    """Match each box with its best object, and each object with its best boxes.

    Detectron2's matcher with `allow_low_quality_matches` differs in two points: an object's best
    boxes become positive at any IoU, even 0, and are trained on their own best object.
    """

    def __init__(self, negative: float, positive: float, min_positive: float) -> None:
        """Set the thresholds.

        Args:
            negative: Boxes whose largest IoU is below this are background.
            positive: Boxes whose largest IoU is at least this are positive; those between the two
                thresholds are ignored.
            min_positive: The boxes with an object's largest IoU are matched with that object if
                this IoU is at least `min_positive`.
        """
        if negative == positive:
            super().__init__([positive], [0, 1])
        else:
            super().__init__([negative, positive], [0, -1, 1])
        self.min_positive = min_positive

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match boxes with objects.

        Args:
            match_quality_matrix: IoU (M, N) of M objects and N boxes.

        Returns:
            For each box, the index of its object, and its label: 1 positive, 0 background, -1
            ignored; both have shape (N,).
        """
        matches, labels = super().__call__(match_quality_matrix)
        if match_quality_matrix.numel():
            best = match_quality_matrix.max(dim=1, keepdim=True).values
            own = (match_quality_matrix == best) & (best >= self.min_positive)
            objects, boxes = own.nonzero(as_tuple=True)
            # A box that is the best of several objects goes to the last of them.
            matches[boxes] = -1
            matches.scatter_reduce_(0, boxes, objects, "amax")
            labels[boxes] = 1
        return matches, labels
