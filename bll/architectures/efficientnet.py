"""A network of EfficientNet's layers (Tan and Le 2019), without pooling and classifier: readouts do their work.

With the default widths and stem_stride 2 it is EfficientNet-B0, less its stochastic depth.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from bll.architectures.images import image_channels, make_stem
from bll.architectures.layers import Architecture, KeyedDropout, Layer
from bll.config import NetworkConfig
from bll.errors import InvalidConfig, Violation


class _Stage(NamedTuple):
    depth: int
    kernel: int
    stride: int
    """Of its first layer; the others keep the size."""
    expansion: int


_STAGES = (
    _Stage(depth=1, kernel=3, stride=1, expansion=1),
    _Stage(depth=2, kernel=3, stride=2, expansion=6),
    _Stage(depth=2, kernel=5, stride=2, expansion=6),
    _Stage(depth=3, kernel=3, stride=2, expansion=6),
    _Stage(depth=3, kernel=5, stride=1, expansion=6),
    _Stage(depth=4, kernel=5, stride=2, expansion=6),
    _Stage(depth=1, kernel=3, stride=1, expansion=6),
)
"""Table 1 of the paper."""


def _layers(config: NetworkConfig, input_shape: tuple[int, ...]) -> list[Layer]:
    """A stem, the MBConv layers of seven stages, and a 1x1 convolution, with `config.widths` in this order.

    Raises InvalidConfig for samples that are no images, or too small.
    """
    expected = len(_STAGES) + 2
    if len(config.widths) != expected:
        rule = f"must list {expected} entries (stem, {len(_STAGES)} stages, head of {config.architecture!r}), got "
        raise InvalidConfig([Violation("network.widths", rule + str(list(config.widths)))])
    channels = image_channels(config, input_shape, [stage.stride for stage in _STAGES])
    inputs, *widths, head = config.widths
    stem = f"stem {channels}->{inputs}" + (f" /{config.stem_stride}" if config.stem_stride > 1 else "")
    layers = [Layer(stem, partial(make_stem, channels, inputs, config.stem_stride, nn.SiLU))]
    for stage, outputs in zip(_STAGES, widths, strict=True):
        for position in range(stage.depth):
            stride = 1 if position else stage.stride
            name = f"mbconv{stage.expansion} {inputs}->{outputs}" + (" /2" if stride == 2 else "")
            build = partial(MBConvLayer, inputs, outputs, stage.kernel, stride, stage.expansion, config.dropout)
            layers.append(Layer(name, build))
            inputs = outputs
    return [*layers, Layer(f"head {inputs}->{head}", partial(_convolution, inputs, head, 1))]


EFFICIENTNET_SMALL = Architecture(_layers, widths=(32, 16, 24, 40, 80, 112, 192, 320, 1280), stem_strides=(1, 2))


class MBConvLayer(nn.Module):
    """Widen, convolve each channel by itself, weigh the channels, narrow; plus the input if the shape allows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, dropout: float) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = _convolution(inputs, width, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(width, width, kernel, stride, groups=width)
        self.excite = SqueezeExcitation(width, max(1, inputs // 4))
        self.dropout = KeyedDropout(dropout)
        self.narrow = nn.Sequential(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, images_BCHW: Tensor) -> Tensor:
        hidden: Tensor = self.excite(self.depthwise(self.expand(images_BCHW)))
        hidden = self.narrow(self.dropout(hidden))
        return hidden + images_BCHW if self.has_shortcut else hidden


class SqueezeExcitation(nn.Module):
    """Scales each channel by a function of all channels' means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        mean_BC11 = images_BCHW.mean((2, 3), keepdim=True)
        scale_BC11: Tensor = self.excite(F.silu(self.squeeze(mean_BC11))).sigmoid()
        return images_BCHW * scale_BC11


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )
