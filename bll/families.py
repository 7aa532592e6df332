"""Exponential families h(z) exp(<eta, T(z)> - A(eta)), elementwise over the units of a latent.

Shapes: B batch (or classes: any leading dimensions), P natural parameters per unit, D units.
Natural parameters are `eta_BPD`; sums over P are inner products <., .>; results `_BD` are per unit.
Messages are given in the same coordinates, so the product of two densities is the sum of their eta.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bll.config import FamilyName, LatentConfig


class Family(Protocol):
    """One exponential family. Implementations hold no parameters and no state."""

    num_parameters: int
    """P, natural parameters per unit."""

    def natural(self, raw_BPD: Tensor) -> Tensor:
        """Natural parameters of a proper density from any real numbers (a readout's output)."""
        ...

    def message(self, raw_BPD: Tensor) -> Tensor:
        """Natural parameters of a backward message from any real numbers; eta + m * message stays proper, m >= 0."""
        ...

    def log_partition(self, eta_BPD: Tensor) -> Tensor:
        """A(eta), per unit, shape (B, D), in nats."""
        ...

    def mean_parameters(self, eta_BPD: Tensor) -> Tensor:
        """mu(eta) = grad A(eta) = E[T(z)], shape (B, P, D)."""
        ...

    def mean(self, eta_BPD: Tensor) -> Tensor:
        """E[z], shape (B, D)."""
        ...

    def variance(self, eta_BPD: Tensor) -> Tensor:
        """Var[z], shape (B, D)."""
        ...


class Bernoulli:
    """z in {0, 1}; eta is the logit, T(z) = z, A = softplus(eta)."""

    num_parameters = 1
    limit = 15.0
    """Logits are clamped to +-limit, beyond which a float32 sigmoid has no gradient left to follow."""

    def natural(self, raw_BPD: Tensor) -> Tensor:
        return raw_BPD.clamp(-self.limit, self.limit)

    def message(self, raw_BPD: Tensor) -> Tensor:
        return self.natural(raw_BPD)

    def log_partition(self, eta_BPD: Tensor) -> Tensor:
        return F.softplus(eta_BPD).squeeze(-2)

    def mean_parameters(self, eta_BPD: Tensor) -> Tensor:
        return torch.sigmoid(eta_BPD)

    def mean(self, eta_BPD: Tensor) -> Tensor:
        return torch.sigmoid(eta_BPD).squeeze(-2)

    def variance(self, eta_BPD: Tensor) -> Tensor:
        mean_BD = self.mean(eta_BPD)
        return mean_BD * (1 - mean_BD)


class Gaussian:
    """Diagonal Gaussian with learned variance v; eta = (u/v, -1/(2v)), T(z) = (z, z^2).

    The first raw number is u/v itself. The precision 1/v is a softplus of the second, kept within the variance bounds
    by addition at one end and by a smooth minimum at the other, so that its gradient never dies.
    """

    num_parameters = 2

    def __init__(self, min_variance: float, max_variance: float) -> None:
        self.min_precision = 1 / max_variance
        self.max_precision = 1 / min_variance

    def natural(self, raw_BPD: Tensor) -> Tensor:
        eta1_BD, raw_BD = raw_BPD.unbind(-2)
        precision_BD = F.softplus(raw_BD + math.log(math.e - 1))  # 1 at raw = 0
        ceiling = self.max_precision - self.min_precision
        precision_BD = self.min_precision + ceiling * precision_BD / (ceiling + precision_BD)
        return torch.stack((eta1_BD, -precision_BD / 2), dim=-2)

    def message(self, raw_BPD: Tensor) -> Tensor:
        eta1_BD, raw_BD = raw_BPD.unbind(-2)
        return torch.stack((eta1_BD, -F.softplus(raw_BD) / 2), dim=-2)

    def log_partition(self, eta_BPD: Tensor) -> Tensor:
        eta1_BD, eta2_BD = eta_BPD.unbind(-2)
        precision_BD = -2 * eta2_BD
        return eta1_BD.square() / (2 * precision_BD) - precision_BD.log() / 2

    def mean_parameters(self, eta_BPD: Tensor) -> Tensor:
        mean_BD, variance_BD = self.mean(eta_BPD), self.variance(eta_BPD)
        return torch.stack((mean_BD, mean_BD.square() + variance_BD), dim=-2)

    def mean(self, eta_BPD: Tensor) -> Tensor:
        eta1_BD, eta2_BD = eta_BPD.unbind(-2)
        return eta1_BD / (-2 * eta2_BD)

    def variance(self, eta_BPD: Tensor) -> Tensor:
        return 1 / (-2 * eta_BPD[..., 1, :])


class UnitGaussian:
    """Gaussian with variance 1; eta = u, T(z) = z, A = u^2/2. Its variance says nothing about the sample."""

    num_parameters = 1

    def natural(self, raw_BPD: Tensor) -> Tensor:
        return raw_BPD

    def message(self, raw_BPD: Tensor) -> Tensor:
        return raw_BPD

    def log_partition(self, eta_BPD: Tensor) -> Tensor:
        return eta_BPD.squeeze(-2).square() / 2

    def mean_parameters(self, eta_BPD: Tensor) -> Tensor:
        return eta_BPD

    def mean(self, eta_BPD: Tensor) -> Tensor:
        return eta_BPD.squeeze(-2)

    def variance(self, eta_BPD: Tensor) -> Tensor:
        return torch.ones_like(eta_BPD.squeeze(-2))


def make_family(config: LatentConfig) -> Family:
    """The family that `config` names."""
    match config.family:
        case FamilyName.BERNOULLI:
            return Bernoulli()
        case FamilyName.GAUSSIAN:
            return Gaussian(config.min_variance, config.max_variance)
        case FamilyName.UNIT_GAUSSIAN:
            return UnitGaussian()


def product(alpha_BPD: Tensor, beta_BPD: Tensor, mixing: float = 1.0) -> Tensor:
    """Natural parameters of rho ∝ alpha * beta^m, shape as broadcast. Bernoulli: the logit a + m b."""
    return alpha_BPD + mixing * beta_BPD


def kl_divergence(family: Family, rho_BPD: Tensor, alpha_BPD: Tensor) -> Tensor:
    """KL(rho || alpha) per unit, shape (B, D), in nats: <r - a, mu(r)> - A(r) + A(a)."""
    inner_BD = ((rho_BPD - alpha_BPD) * family.mean_parameters(rho_BPD)).sum(-2)
    return inner_BD - family.log_partition(rho_BPD) + family.log_partition(alpha_BPD)
