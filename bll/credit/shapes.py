"""Linear maps between samples of two shapes, for networks that are learned beside the layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ImageMap(nn.Module):
    """A 3x3 convolution between images; to a larger one, transposed, with a kernel that overlaps by one pixel."""

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        super().__init__()
        self.size = target[1:]
        smaller = (min(source[1], target[1]), min(source[2], target[2]))
        self.pool = nn.Identity() if smaller == source[1:] else nn.AdaptiveAvgPool2d(smaller)
        strides = [-(-size // own) for size, own in zip(self.size, smaller, strict=True)]
        kernel = [stride + 2 for stride in strides]
        self.convolution = nn.ConvTranspose2d(source[0], target[0], kernel, strides, padding=1)  # type: ignore[arg-type]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        height, width = self.size
        images_BCHW = self.convolution(self.pool(images_BCHW))
        return images_BCHW[..., :height, :width]


def linear_between(source: tuple[int, ...], target: tuple[int, ...]) -> nn.Module:
    """A linear map from samples of shape `source` to those of shape `target`.

    Local among images (channels, height, width); position by position among sequences (positions, features) of one
    length; dense otherwise.
    """
    if len(source) == len(target) == 3:
        return ImageMap(source, target)
    if len(source) == len(target) == 2 and source[0] == target[0]:
        return nn.Linear(source[1], target[1])
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(source), math.prod(target)), nn.Unflatten(1, torch.Size(target))
    )


def with_classes(hidden: Tensor, one_hot_BC: Tensor) -> Tensor:
    """`hidden` with its sample's class as further features: planes of an image, or features at every position."""
    axis = feature_axis(tuple(hidden.shape[1:]))
    shape = [len(hidden)] + [1] * (hidden.ndim - 1)
    shape[axis] = one_hot_BC.shape[1]
    spread = list(hidden.shape)
    spread[axis] = one_hot_BC.shape[1]
    return torch.cat((hidden, one_hot_BC.to(hidden.dtype).reshape(shape).expand(spread)), dim=axis)


def feature_axis(shape: tuple[int, ...]) -> int:
    """The axis, in a batch, of the features of samples of `shape`: an image's channels, else the last."""
    return 1 if len(shape) == 3 else len(shape)
