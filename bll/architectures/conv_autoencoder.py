"""Convolutional autoencoder: images through a dense bottleneck and back, mirrored, without skips."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from bll.architectures.images import image_channels
from bll.architectures.layers import Architecture, KeyedDropout, Layer
from bll.config import NetworkConfig
from bll.errors import InvalidConfig, Violation


def _layers(config: NetworkConfig, input_shape: tuple[int, ...]) -> list[Layer]:
    """A convolution that halves the image per entry of `config.widths` but the last, which is the dense bottleneck's;
    then each of these layers mirrored. Images of odd size halve upwards and are cropped on the way back.

    Raises InvalidConfig for samples that are no images, or too small, and for fewer than two widths.
    """
    if len(config.widths) < 2:
        rule = f"must list at least 2 entries for {config.architecture!r} (convolutions, then the bottleneck), got "
        raise InvalidConfig([Violation("network.widths", rule + str(list(config.widths)))])
    *widths, bottleneck = config.widths
    channels = [image_channels(config, input_shape, [2] * len(widths)), *widths]
    sizes = [input_shape[1:]]
    for _ in widths:
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    features = (widths[-1], *sizes[-1])
    down = [Layer(f"conv {i}->{o} /2", partial(_conv_down, i, o, config.dropout)) for i, o in pairwise(channels)]
    # The last layer gives features, not pixels: a block's output is read out and decoded by its exit.
    up_channels = [*reversed(widths), widths[0]]
    up = [
        Layer(f"conv {i}->{o} x2", partial(_conv_up, i, o, size, config.dropout))
        for (i, o), size in zip(pairwise(up_channels), reversed(sizes[:-1]), strict=True)
    ]
    flat = math.prod(features)
    return [
        *down,
        Layer(f"dense {flat}->{bottleneck}", partial(_dense_down, flat, bottleneck, config.dropout)),
        Layer(f"dense {bottleneck}->{flat}", partial(_dense_up, bottleneck, features, config.dropout)),
        *up,
    ]


CONV_AUTOENCODER = Architecture(_layers, widths=(16, 32, 64))


class Crop(nn.Module):
    """The first rows and columns of each image."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.height, self.width = size

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, :, : self.height, : self.width]


def _conv_down(inputs: int, outputs: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        KeyedDropout(dropout),
    )


def _dense_down(inputs: int, outputs: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(), KeyedDropout(dropout)
    )


def _dense_up(inputs: int, features: tuple[int, ...], dropout: float) -> nn.Module:
    outputs = math.prod(features)
    return nn.Sequential(
        nn.Linear(inputs, outputs, bias=False),
        nn.BatchNorm1d(outputs),
        nn.ReLU(),
        KeyedDropout(dropout),
        nn.Unflatten(1, features),
    )


def _conv_up(inputs: int, outputs: int, size: tuple[int, ...], dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        Crop(size),
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        KeyedDropout(dropout),
    )
