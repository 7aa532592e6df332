"""ResNet-18, -34, -50 and -101 (He et al. 2016), without pooling and classifier: readouts do their work.

Convolutions start from He's normal distribution (He et al. 2015, fan-out, gain of ReLU), and the last normalisation
of each residual branch from zero (Goyal et al. 2017, section 5.1): both are the published recipe of these networks,
and the second makes every layer start as its shortcut, so that a block of thirty layers learns from its first step
like a shallow one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from bll.architectures.images import image_channels, make_stem
from bll.architectures.layers import Architecture, KeyedDropout, Layer
from bll.architectures.residual_cnn import ResidualLayer
from bll.config import NetworkConfig
from bll.errors import InvalidConfig, Violation

_STAGES = 4
_EXPANSION = 4
"""Output channels of a bottleneck for each inner channel."""


def _layers(
    depths: tuple[int, int, int, int],
    unit: Callable[[int, int, int, float], nn.Module],
    expansion: int,
    config: NetworkConfig,
    input_shape: tuple[int, ...],
) -> list[Layer]:
    """A stem, then `depths` residual layers in four stages, each with its entry of `config.widths`.

    Every stage but the first halves the image. Raises InvalidConfig for samples that are no images, or too small.
    """
    if len(config.widths) != _STAGES:
        rule = f"must list one entry for each of the {_STAGES} stages of {config.architecture!r}, got "
        raise InvalidConfig([Violation("network.widths", rule + str(list(config.widths)))])
    channels = image_channels(config, input_shape, (1, 2, 2, 2))
    inputs = config.widths[0]
    stem = f"stem {channels}->{inputs}" + (f" /{config.stem_stride}" if config.stem_stride > 1 else "")
    layers = [Layer(stem, partial(_initialised_stem, channels, inputs, config.stem_stride))]
    for stage, (width, depth) in enumerate(zip(config.widths, depths, strict=True)):
        for position in range(depth):
            stride = 2 if stage and not position else 1
            outputs = width * expansion
            name = f"{unit.__name__} {inputs}->{outputs}" + (" /2" if stride == 2 else "")
            layers.append(Layer(name, partial(unit, inputs, outputs, stride, config.dropout)))
            inputs = outputs
    return layers


def basic(inputs: int, outputs: int, stride: int, dropout: float) -> nn.Module:
    """A residual layer of two 3x3 convolutions."""
    layer = ResidualLayer(inputs, outputs, stride, dropout)
    _initialise(layer)
    nn.init.zeros_(layer.norm2.weight)
    return layer


def bottleneck(inputs: int, outputs: int, stride: int, dropout: float) -> nn.Module:
    """A residual layer of a 1x1, a 3x3 and a 1x1 convolution."""
    layer = BottleneckLayer(inputs, outputs, stride, dropout)
    _initialise(layer)
    nn.init.zeros_(layer.norm3.weight)
    return layer


class BottleneckLayer(nn.Module):
    """Narrow, convolve, widen (He et al. 2016). The stride is in the 3x3 convolution, as everyone has it since
    Goyal et al. 2017 (footnote 4), not in the first."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        width = outputs // _EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.dropout = KeyedDropout(dropout)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(images_BCHW)))
        hidden = F.relu(self.norm2(self.conv2(hidden)))
        hidden = self.norm3(self.conv3(self.dropout(hidden)))
        return F.relu(hidden + self.shortcut(images_BCHW))


def _initialised_stem(inputs: int, outputs: int, stride: int) -> nn.Module:
    stem = make_stem(inputs, outputs, stride)
    _initialise(stem)
    return stem


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _resnet(
    depths: tuple[int, int, int, int], unit: Callable[[int, int, int, float], nn.Module], expansion: int
) -> Architecture:
    return Architecture(partial(_layers, depths, unit, expansion), widths=(64, 128, 256, 512), stem_strides=(1, 2, 4))


RESNET18 = _resnet((2, 2, 2, 2), basic, 1)
RESNET34 = _resnet((3, 4, 6, 3), basic, 1)
RESNET50 = _resnet((3, 4, 6, 3), bottleneck, _EXPANSION)
RESNET101 = _resnet((3, 4, 23, 3), bottleneck, _EXPANSION)
