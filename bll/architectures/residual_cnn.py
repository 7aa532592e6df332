"""A small residual network for images."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from bll.architectures.images import image_channels, make_stem
from bll.architectures.layers import Architecture, KeyedDropout, Layer
from bll.config import NetworkConfig


def _layers(config: NetworkConfig, input_shape: tuple[int, ...]) -> list[Layer]:
    """A stem, then one basic residual layer (two 3x3 convolutions) per entry of `config.widths`.

    A layer that widens halves the image. Raises InvalidConfig for samples that are no images, or too small.
    """
    widths = [config.widths[0], *config.widths]
    strides = [2 if after > before else 1 for before, after in pairwise(widths)]
    channels = image_channels(config, input_shape, strides)
    stem = Layer(f"stem {channels}->{widths[0]}", partial(make_stem, channels, widths[0], config.stem_stride))
    return [stem] + [
        Layer(f"residual {i}->{o}" + (" /2" if s == 2 else ""), partial(ResidualLayer, i, o, s, config.dropout))
        for (i, o), s in zip(pairwise(widths), strides, strict=True)
    ]


RESIDUAL_CNN = Architecture(_layers, widths=(16, 16, 32, 32, 64, 64), stem_strides=(1, 2))


class ResidualLayer(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))  (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = KeyedDropout(dropout)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(images_BCHW)))
        hidden = self.norm2(self.conv2(self.dropout(hidden)))
        return F.relu(hidden + self.shortcut(images_BCHW))
