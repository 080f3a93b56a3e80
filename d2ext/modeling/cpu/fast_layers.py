"""Put all layers that are faster on CPUs into a model."""

from torch import nn

from d2ext.modeling.cpu.folded_norm import fold_norms
from d2ext.modeling.cpu.onednn import use_onednn
from d2ext.modeling.cpu.relu6 import save_relu6_output
from d2ext.modeling.cpu.sampled_rpn import sample_rpn
from d2ext.modeling.roi_align import use_embedding_bag_roi_align


def use_fast_layers(model: nn.Module) -> None:
    """Replace a model's layers in place with faster equivalents; keep all state dict keys."""
    use_embedding_bag_roi_align(model)
    sample_rpn(model)
    save_relu6_output(model)
    fold_norms(model)
    use_onednn(model)
