"""Stacked hourglass networks, as CornerNet uses them.

Source: Newell et al., ECCV 2016, https://arxiv.org/abs/1603.06937, with the changes of section 3.5
of CornerNet, https://arxiv.org/abs/1808.01244: strides instead of max pooling, other channels, and
no predictions that are fed back. That section has no equations.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

_T = TypeVar("_T")


def conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, activation=F.relu
) -> Conv2d:
    """Build a convolution with padding, BatchNorm and an activation."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
        norm=get_norm("BN", out_channels),
        activation=activation,
    )


class Residual(nn.Module):
    """The residual module of CornerNet's section 3.5.

    Two 3x3 convolutions and an identity, which is a 1x1 convolution if the shape changes.
    """

    recomputes = False  # whether training computes it again in the backward pass

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.conv2 = conv(out_channels, out_channels, 3, activation=None)
        self.shortcut = None
        if stride > 1 or in_channels != out_channels:
            self.shortcut = conv(in_channels, out_channels, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of shape (N, out_channels, H / stride, W / stride)."""
        if self.recomputes and self.training:
            return recomputed(self, self._layers, x)
        return self._layers(x)

    def _layers(self, x: Tensor) -> Tensor:
        identity = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.conv2(self.conv1(x)) + identity)


class Hourglass(nn.Module):
    """One hourglass (section 3.1 of Newell et al., and CornerNet's section 3.5).

    It halves the resolution several times, and returns to it with skip connections.
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int]):
        """Build an hourglass that contains the smaller ones.

        Args:
            channels: Channels of each resolution, the largest one first; two or more.
            blocks: Number of residual blocks of each resolution.
        """
        super().__init__()
        outer, inner, count = channels[0], channels[1], blocks[0]
        self.skip = nn.Sequential(*(Residual(outer, outer) for _ in range(count)))
        self.down = nn.Sequential(
            Residual(outer, inner, stride=2), *(Residual(inner, inner) for _ in range(count - 1))
        )
        self.inner: nn.Module
        if len(channels) > 2:
            self.inner = Hourglass(channels[1:], blocks[1:])
        else:
            self.inner = nn.Sequential(*(Residual(inner, inner) for _ in range(blocks[1])))
        self.up = nn.Sequential(
            *(Residual(inner, inner) for _ in range(count - 1)), Residual(inner, outer)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x`."""
        skip = self.skip(x)
        low = self.up(self.inner(self.down(x)))
        return skip + F.interpolate(low, size=skip.shape[2:], mode="nearest")


class HourglassNet(Backbone):
    """Hourglasses in a row, each of which returns a feature map of stride 4.

    Each map can be supervised (section 3.3 of Newell et al.). CornerNet's section 3.5 describes
    the layers before the first hourglass and between two of them.
    """

    def __init__(
        self,
        channels: Sequence[int] = (256, 256, 384, 384, 384, 512),
        blocks: Sequence[int] = (2, 2, 2, 2, 2, 4),
        num_stacks: int = 2,
        activation_checkpointing: bool = False,
    ):
        """Build the network; the defaults are Hourglass-104.

        Args:
            channels: Channels of each resolution of an hourglass; the first is also the output's.
            blocks: Number of residual blocks of each resolution.
            num_stacks: Number of hourglasses.
            activation_checkpointing: Whether training stores only the inputs of residual blocks,
                and computes their layers a second time in the backward pass.
        """
        super().__init__()
        width = channels[0]
        self.channels = width
        self.coarsest_stride = 4 * 2 ** (len(channels) - 1)
        self.stem = nn.Sequential(conv(3, width // 2, 7, 2), Residual(width // 2, width, 2))
        stacks, between = range(num_stacks), range(num_stacks - 1)
        self.hourglasses = nn.ModuleList(Hourglass(channels, blocks) for _ in stacks)
        self.outputs = nn.ModuleList(conv(width, width, 3) for _ in stacks)
        # Between two hourglasses: the sum of the first one's input and output, and a block.
        self.from_input = nn.ModuleList(conv(width, width, 1, activation=None) for _ in between)
        self.from_output = nn.ModuleList(conv(width, width, 1, activation=None) for _ in between)
        self.merged = nn.ModuleList(Residual(width, width) for _ in between)
        for module in self.modules():
            if isinstance(module, Residual):
                module.recomputes = activation_checkpointing

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature map of each hourglass, of shape (N, channels[0], H / 4, W / 4).

        Args:
            x: Images, shape (N, 3, H, W).
        """
        found = {}
        features = self.stem(x)
        for i, hourglass in enumerate(self.hourglasses):
            output = self.outputs[i](hourglass(features))
            found[f"hourglass{i}"] = output
            if i < len(self.merged):
                merged = self.from_input[i](features) + self.from_output[i](output)
                features = self.merged[i](F.relu(merged))
        return found

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map."""
        shape = ShapeSpec(channels=self.channels, stride=4)
        return {f"hourglass{i}": shape for i in range(len(self.hourglasses))}


def recomputed(module: nn.Module, function: Callable[[Tensor], _T], x: Tensor) -> _T:
    """Call a function without storing activations; the backward pass calls it again.

    Args:
        module: Contains the layers that the function uses. Its BatchNorms update their statistics
            only once.
        function: The function.
        x: Its argument.
    """
    contexts = lambda: (nullcontext(), _statistics_kept(module))  # noqa: E731
    return checkpoint(function, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let BatchNorms update copies of their statistics, which have been updated already."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
