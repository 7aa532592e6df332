"""The rule `prototype`: the objective of the authors' ImageNet trainer as far as it is public, with its faults mended.

What is public (method, section 1): at each boundary one linear map from the one-hot target, that is a table of class
prototypes, regressed on class means; a correlation loss; a similarity loss; a local cross-entropy head; a denoising
loss. The terms, each with weight 1, for a batch of B samples whose classes are the set Y:

    f_b      feature of sample b: the block's output, images averaged to the readout's grid, flattened
    t_c      prototype of class c, row c of the table: what a linear map makes of the one-hot target
    corr     cosine of two vectors that are each centred over their own numbers (Pearson's correlation)

    regression    mean over c in Y, and over features, of (t_c - mean of f_b over b of class c)^2; trains the table
    correlation   mean over b of 1 - corr(f_b, t of b's class); trains the block
    similarity    mean over pairs b != b' of one class of 1 - corr(f_b, f_b'); trains the block; 0 without such pairs
    head          L_k: cross-entropy of the class table's exit p_k(y|x) at m = 0; trains block, readout and table
    denoising     mean squared error of a decoder from the block's output, with noise, to what the block received

Mended: the similarity term attracts; the heads are trained; a class that is not in the batch gives no target, neither
to its prototype nor to anything else. Chosen where the description is silent: the weights, the features, no gradient
from the table's loss to the block nor back, the form of the similarity term, and the noise, which is normal with a
tenth of the root mean square of the batch's output. The exit of evaluation and serving is that of the head.
Shapes: B batch, F features, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bll.families.base import normal_noise
from bll.readouts import GridPool
from bll.similarity import centred_unit_vectors

_NOISE = 0.1
"""Standard deviation of the denoising term's noise, in root mean squares of the output."""


class Prototypes(nn.Module):
    """A block's table of class prototypes, and the terms that need it."""

    def __init__(self, output_shape: tuple[int, ...], num_classes: int, grid: int) -> None:
        super().__init__()
        features: list[nn.Module] = []
        count = math.prod(output_shape)
        if len(output_shape) == 3:
            channels, height, width = output_shape
            cells = (min(grid, height), min(grid, width))
            features.append(GridPool((height, width), cells))
            count = channels * cells[0] * cells[1]
        self.features = nn.Sequential(*features, nn.Flatten())
        self.num_classes = num_classes
        # A vector, so that weight decay leaves it alone as it does other class tables.
        self.table = nn.Parameter(torch.empty(num_classes * count).normal_())

    def forward(self, output: Tensor, targets_B: Tensor) -> Tensor:
        """The sum of regression, correlation and similarity, a scalar."""
        features_BF, table_CF = self.features(output), self.table.view(self.num_classes, -1)
        return (
            regression(features_BF.detach(), table_CF, targets_B)
            + correlation(features_BF, table_CF.detach(), targets_B)
            + similarity(features_BF, targets_B)
        )

    def noisy(self, output: Tensor, generator: Generator) -> Tensor:
        """`output` with the noise that the decoder must see through."""
        scale = _NOISE * output.detach().square().mean().sqrt()
        return output + scale * normal_noise(output, generator)


def regression(features_BF: Tensor, table_CF: Tensor, targets_B: Tensor) -> Tensor:
    """Mean squared distance of the prototypes from the class means of the batch, over the classes that it has."""
    one_hot_BC = F.one_hot(targets_B, len(table_CF)).to(features_BF.dtype)
    rows_C = one_hot_BC.sum(0)
    means_CF = one_hot_BC.T @ features_BF / rows_C.clamp(min=1).unsqueeze(1)
    distance_C = (table_CF - means_CF).square().mean(1)
    present_C = (rows_C > 0).to(distance_C.dtype)
    return (distance_C * present_C).sum() / present_C.sum()


def correlation(features_BF: Tensor, table_CF: Tensor, targets_B: Tensor) -> Tensor:
    """Mean of 1 - corr(feature, prototype of its class)."""
    return 1 - (centred_unit_vectors(features_BF) * centred_unit_vectors(table_CF)[targets_B]).sum(1).mean()


def similarity(features_BF: Tensor, targets_B: Tensor) -> Tensor:
    """Mean of 1 - corr(feature, feature) over pairs of samples of one class; 0 if there are none."""
    unit_BF = centred_unit_vectors(features_BF)
    pairs_BB = (targets_B.unsqueeze(0) == targets_B.unsqueeze(1)).to(unit_BF.dtype)
    pairs_BB = pairs_BB - torch.eye(len(targets_B), dtype=unit_BF.dtype, device=unit_BF.device)
    return ((1 - unit_BF @ unit_BF.T) * pairs_BB).sum() / pairs_BB.sum().clamp(min=1)
