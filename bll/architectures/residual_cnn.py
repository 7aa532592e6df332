"""A small residual network for images."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from bll.architectures.layers import KeyedDropout, Layer
from bll.config import NetworkConfig
from bll.errors import InvalidConfig, Violation


def residual_cnn(config: NetworkConfig, input_shape: tuple[int, ...]) -> list[Layer]:
    """A stem, then one basic residual layer (two 3x3 convolutions) per entry of `config.widths`.

    A layer that widens halves the image. Raises InvalidConfig for samples that are no images, or too small.
    """
    if len(input_shape) != 3:
        rule = f"'residual_cnn' needs images (channels, height, width), got samples of shape {list(input_shape)}"
        raise InvalidConfig([Violation("network.architecture", rule)])
    channels, height, width = input_shape
    widths = [config.widths[0], *config.widths]
    strides = [2 if after > before else 1 for before, after in pairwise(widths)]
    smallest = min(height, width)
    for stride in (config.stem_stride, *strides):
        if smallest < stride:
            rule = f"halves {height}x{width} images more often than they can be, got {list(config.widths)}"
            raise InvalidConfig([Violation("network.widths", rule)])
        smallest = -(-smallest // stride)
    stem = Layer(f"stem {channels}->{widths[0]}", partial(_stem, channels, widths[0], config.stem_stride))
    return [stem] + [
        Layer(f"residual {i}->{o}" + (" /2" if s == 2 else ""), partial(ResidualLayer, i, o, s, config.dropout))
        for (i, o), s in zip(pairwise(widths), strides, strict=True)
    ]


def _stem(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


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
