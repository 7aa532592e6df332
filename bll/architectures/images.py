"""What the architectures for images share: the check of the samples, and the stem."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bll.config import NetworkConfig
from bll.errors import InvalidConfig, Violation


def image_channels(config: NetworkConfig, input_shape: tuple[int, ...], strides: Sequence[int]) -> int:
    """Channels of the images that `input_shape` describes.

    Raises InvalidConfig for samples that are no images, or too small for the stem and the layers' `strides`.
    """
    if len(input_shape) != 3:
        rule = f"{config.architecture!r} needs images (channels, height, width), got samples of shape "
        raise InvalidConfig([Violation("network.architecture", rule + str(list(input_shape)))])
    channels, height, width = input_shape
    stem = (2, 2) if config.stem_stride == 4 else (config.stem_stride,)
    smallest = min(height, width)
    for stride in (*stem, *strides):
        if smallest < stride:
            rule = f"{config.architecture!r} with stem_stride {config.stem_stride} and widths {list(config.widths)}"
            halves = f"{rule} halves {height}x{width} images more often than they can be"
            raise InvalidConfig([Violation("network.architecture", halves)])
        smallest = -(-smallest // stride)
    return channels


def make_stem(inputs: int, outputs: int, stride: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """The first layer: a 3x3 convolution, or at stride 4 a 7x7 one and max pooling, each of stride 2."""
    size = 7 if stride == 4 else 3
    layers = [
        nn.Conv2d(inputs, outputs, size, min(stride, 2), padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        activation(),
    ]
    if stride == 4:
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    return nn.Sequential(*layers)
