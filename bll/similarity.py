"""Similarity matching: the local loss of Nokland and Eidnes 2019 that compares samples with each other.

Shapes: B batch, F features, C classes.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

_NORM_EPSILON = 1e-8
"""Smallest norm of a centred vector that is scaled to 1; below it similarities shrink to 0."""

_MIN_CHANNELS = 4
"""Images of at least so many channels are compared by the spread of each channel."""


class SimilarityMatching(nn.Module):
    """Samples that share a class should be alike in the block's output, others not (Nokland and Eidnes 2019, eq. 1).

    Mean squared error between the similarity matrices of a network of the output, a 3x3 convolution of images and a
    linear map of all else, and of one-hot targets.
    """

    def __init__(self, output_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        if len(output_shape) == 3:
            channels = output_shape[0]
            self.network: nn.Module = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        else:
            features = math.prod(output_shape)
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(features, features, bias=False))

    def forward(self, output: Tensor, targets_B: Tensor) -> Tensor:
        """The loss of a batch, 0 to 4."""
        one_hot_BC = F.one_hot(targets_B, self.num_classes).to(output.dtype)
        return F.mse_loss(similarity_matrix(self.network(output)), similarity_matrix(one_hot_BC))


def similarity_matrix(features: Tensor) -> Tensor:
    """Cosine similarities between the samples of a batch, each centred over its own features, shape (B, B).

    Of images the features are the standard deviations of each channel over its pixels, as published.
    """
    if features.ndim == 4 and features.shape[1] >= _MIN_CHANNELS and features[0, 0].numel() > 1:
        features = features.flatten(2).std(2)
    unit_BF = centred_unit_vectors(features.flatten(1))
    return unit_BF @ unit_BF.T


def centred_unit_vectors(vectors_BF: Tensor) -> Tensor:
    """Each vector centred over its own numbers and scaled to norm 1: products of two are Pearson's correlation."""
    # normalize has a gradient, of 0, where a vector is constant; the square root of a sum of squares has none.
    return F.normalize(vectors_BF - vectors_BF.mean(1, keepdim=True), dim=1, eps=_NORM_EPSILON)
