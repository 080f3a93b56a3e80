"""The layers that are faster on the CPU, put into a model all together."""

from torch import nn

from d2ext.modeling.cpu.folded_norm import fold_norms
from d2ext.modeling.cpu.relu6 import keep_outputs
from d2ext.modeling.cpu.roi_align import use_bags
from d2ext.modeling.cpu.sampled_rpn import sample_rpn


def use_fast_layers(model: nn.Module) -> None:
    """Has a model's layers compute what they did in another way, in place; no key changes."""
    use_bags(model)
    sample_rpn(model)
    keep_outputs(model)
    fold_norms(model)
