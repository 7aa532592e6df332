"""Local decoders: the exits of real-valued targets, p_k(y|z_k) = N(mean(z_k), variance(z_k)) for each dimension.

Shapes: B batch, D units, Y the shape of one target.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bll.families.base import bounded

MIN_VARIANCE, MAX_VARIANCE = 1e-4, 10.0
"""Bounds of a decoder's variance, in units of the training targets' own variance."""

_VARIANCE_POWER = 0.5
"""beta of the beta-NLL (Seitzer et al. 2022): 0 is the plain gradient, 1 that of the squared error for the mean."""


class Decoder(nn.Module):
    """One hidden layer from a latent's units to mean and variance of each dimension of the targets."""

    centre: Tensor
    scale: Tensor

    def __init__(
        self, units: int, hidden_units: int, target_shape: tuple[int, ...], centre: Tensor, scale: Tensor
    ) -> None:
        """`centre` and `scale` are mean and deviation of the training targets, in which the decoder counts."""
        super().__init__()
        self.target_shape = target_shape
        values = math.prod(target_shape)
        self.register_buffer("centre", centre.clone())
        self.register_buffer("scale", scale.clone())
        self.hidden = nn.Sequential(nn.Linear(units, hidden_units), nn.ReLU())
        self.mean = nn.Linear(hidden_units, values)
        self.variance = nn.Linear(hidden_units, values)

    def forward(self, code_BD: Tensor) -> Tensor:
        """Mean and variance of p_k(y|z) for codes z, in the targets' own units, shape (B, 2, *Y)."""
        hidden = self.hidden(code_BD)
        mean_BY = self.mean(hidden).unflatten(1, self.target_shape)
        raw_BY = self.variance(hidden).unflatten(1, self.target_shape)
        variance_BY = bounded(raw_BY, MIN_VARIANCE, MAX_VARIANCE)
        return torch.stack((self.centre + self.scale * mean_BY, self.scale.square() * variance_BY), dim=1)


def normal_nll(exit_B2Y: Tensor, targets_BY: Tensor) -> Tensor:
    """-log N(y; mean, variance) of each dimension, shape (B, *Y), in nats."""
    mean_BY, variance_BY = exit_B2Y.unbind(1)
    return ((targets_BY - mean_BY).square() / variance_BY + variance_BY.log() + math.log(2 * math.pi)) / 2


def decoder_nll(exit_B2Y: Tensor, targets_BY: Tensor) -> Tensor:
    """-log p_k(y|z) of each row, shape (B,), in nats, with the gradient of the beta-NLL.

    The plain gradient of a mean is divided by its variance, so that what is badly predicted is soon given up. Each
    dimension's gradient is multiplied by a power of its own variance against that; the powers are scaled to mean 1
    over a row's dimensions, so that the weight of the whole against KL(rho || alpha) stays. The value is untouched.
    """
    nll_BY = normal_nll(exit_B2Y, targets_BY)
    weight_BX = exit_B2Y[:, 1].detach().flatten(1).pow(_VARIANCE_POWER)
    weighted_B = (weight_BX / weight_BX.mean(1, keepdim=True) * nll_BY.flatten(1)).sum(1)
    return nll_BY.flatten(1).sum(1).detach() + (weighted_B - weighted_B.detach())
