"""Keep the rows of a checkpoint's heads for classes that the model shares."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, MaskRCNNConvUpsampleHead
from torch import Tensor, nn


def rows_by_class(
    model: nn.Module, theirs: Mapping[str, Tensor], old: Sequence[str], new: Sequence[str]
) -> dict[str, Tensor]:
    """Return the tensors of a model's heads with a checkpoint's rows for classes of the same name.

    The other classes keep the model's rows. Heads of Detectron2's Fast R-CNN, Mask R-CNN, RetinaNet
    and FCOS are supported; class-agnostic tensors have no rows to choose from.

    Args:
        model: Model with its initial weights.
        theirs: Tensors of the checkpoint, by name in the model.
        old: Class names of the checkpoint.
        new: Class names of the model.

    Returns:
        The changed tensors by name; empty if the class lists are equal or share no class.
    """
    shared = {new.index(name): old.index(name) for name in new if name in old}
    if not shared or list(old) == list(new):
        return {}
    state, found = model.state_dict(), {}
    for name, background, values in _tensors(model):
        if name not in theirs or name not in state:  # a layer without bias
            continue
        # Copied, and not in the channels_last layout, which has no such view.
        mine = state[name].cpu().clone(memory_format=torch.contiguous_format)
        rows = dict(shared)
        if background:
            rows[len(new)] = len(old)
        blocks = _blocks(mine, len(new) + background, values)
        their_blocks = _blocks(theirs[name].contiguous(), len(old) + background, values)
        if blocks is None or their_blocks is None or blocks.shape[::2] != their_blocks.shape[::2]:
            continue
        blocks[:, list(rows)] = their_blocks[:, list(rows.values())].to(blocks.dtype)
        found[name] = mine
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Yield each head's tensors: name, number of background classes, and values per class."""
    for path, module in model.named_modules():
        layers: list[tuple[str, int, int]] = []
        if isinstance(module, FastRCNNOutputLayers):
            layers = [("cls_score", 1, 1), ("bbox_pred", 0, 4)]
        elif isinstance(module, MaskRCNNConvUpsampleHead):
            layers = [("predictor", 0, 1)]
        elif isinstance(module, RetinaNetHead):  # FCOS' head is one, too
            layers = [("cls_score", 0, 1)]
        for layer, background, values in layers:
            for leaf in ("weight", "bias"):
                yield ".".join(filter(None, [path, layer, leaf])), background, values


def _blocks(tensor: Tensor, classes: int, values: int) -> Tensor | None:
    """Return a view (anchors, classes, numbers per class) of a tensor; None if it does not fit."""
    groups, rest = divmod(len(tensor), classes * values)
    if rest or not groups:
        return None
    return tensor.view(groups, classes, -1)
