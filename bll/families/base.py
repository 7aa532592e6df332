"""Families of densities over a latent's units, and what the method asks of them.

Shapes: B batch (or classes: any leading dimensions), P parameters per unit, D units, F factors (units, or groups of
units that are one variable). Parameters are `eta_BPD`; results `_BF` are per factor, `_BD` per unit.
A backward message is log beta(z) = <b, T(z)> up to a constant, given in the same coordinates: for exponential
families h(z) exp(<eta, T(z)> - A(eta)) the product of density and message is the sum of their parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

SATURATED_MEAN = 1e-3
"""A probability this near to 0 or 1 is saturated: what is left of its variance, 0.001, is a 250th of the largest."""
SATURATED_VARIANCE = 1.1
"""A learned variance within this factor of its floor or ceiling is saturated. Both bounds are asymptotes."""


class Family(ABC):
    """One family. Implementations hold no parameters and no state."""

    num_parameters: int
    """P, parameters per unit."""

    @abstractmethod
    def natural(self, raw_BPD: Tensor) -> Tensor:
        """Parameters of a proper density from any real numbers (a readout's output)."""

    @abstractmethod
    def message(self, raw_BPD: Tensor) -> Tensor:
        """Parameters of a backward message from any real numbers: its product with a density is proper, any m >= 0."""

    @abstractmethod
    def log_evidence(self, alpha_BPD: Tensor, beta_BPD: Tensor) -> Tensor:
        """log E_alpha[beta(z)], shape (B, F), in nats."""

    @abstractmethod
    def posterior(self, alpha_BPD: Tensor, beta_BPD: Tensor, mixing: float = 1.0) -> Tensor:
        """Parameters of rho ∝ alpha * beta^m, or of its projection on the family, shape as broadcast."""

    @abstractmethod
    def kl(self, rho_BPD: Tensor, alpha_BPD: Tensor) -> Tensor:
        """KL(rho || alpha), shape (B, F), in nats."""

    @abstractmethod
    def expected_log_message(self, rho_BPD: Tensor, beta_BPD: Tensor) -> Tensor:
        """E_rho[log beta(z)] up to the message's constant, shape (B, F), in nats."""

    @abstractmethod
    def log_message(self, latent_BD: Tensor, beta_BPD: Tensor) -> Tensor:
        """log beta(z) at z = `latent_BD` up to the message's constant, shape (B, D), in nats."""

    @abstractmethod
    def sample(self, eta_BPD: Tensor, generator: Generator) -> Tensor:
        """A draw of z from each density, shape (B, D), with a gradient to `eta_BPD`.

        Exact (reparametrised) for continuous units. Discrete ones are straight-through: the value is an exact draw,
        so that a loss keeps its expectation, and the gradient is that of the mean. A relaxed Gumbel draw would bias
        the value itself, and bring a temperature to choose.
        """

    @abstractmethod
    def entropy(self, eta_BPD: Tensor) -> Tensor:
        """H[z], shape (B, F), in nats; differential where z is continuous."""

    @abstractmethod
    def saturated(self, eta_BPD: Tensor) -> Tensor:
        """Whether each unit's density has come to the bounds of its parameters, shape (B, D), of bools."""

    @abstractmethod
    def mean(self, eta_BPD: Tensor) -> Tensor:
        """E[z], shape (B, D)."""

    @abstractmethod
    def variance(self, eta_BPD: Tensor) -> Tensor:
        """Var[z], shape (B, D)."""


class ExponentialFamily(Family):
    """h(z) exp(<eta, T(z)> - A(eta)): everything follows from A and its gradient."""

    @abstractmethod
    def log_partition(self, eta_BPD: Tensor) -> Tensor:
        """A(eta), shape (B, F), in nats."""

    @abstractmethod
    def mean_parameters(self, eta_BPD: Tensor) -> Tensor:
        """mu(eta) = grad A(eta) = E[T(z)], shape (B, P, D)."""

    @abstractmethod
    def statistics(self, latent_BD: Tensor) -> Tensor:
        """T(z), shape (B, P, D)."""

    def log_evidence(self, alpha_BPD: Tensor, beta_BPD: Tensor) -> Tensor:
        return self.log_partition(alpha_BPD + beta_BPD) - self.log_partition(alpha_BPD)

    def posterior(self, alpha_BPD: Tensor, beta_BPD: Tensor, mixing: float = 1.0) -> Tensor:
        return alpha_BPD + mixing * beta_BPD

    def kl(self, rho_BPD: Tensor, alpha_BPD: Tensor) -> Tensor:
        """<r - a, mu(r)> - A(r) + A(a)."""
        inner_BF = self.expected_log_message(rho_BPD, rho_BPD - alpha_BPD)
        return inner_BF - self.log_partition(rho_BPD) + self.log_partition(alpha_BPD)

    def expected_log_message(self, rho_BPD: Tensor, beta_BPD: Tensor) -> Tensor:
        return (beta_BPD * self.mean_parameters(rho_BPD)).sum(-2)

    def log_message(self, latent_BD: Tensor, beta_BPD: Tensor) -> Tensor:
        return (beta_BPD * self.statistics(latent_BD)).sum(-2)

    def entropy(self, eta_BPD: Tensor) -> Tensor:
        """A(eta) - <eta, mu(eta)>, where h is 1."""
        return self.log_partition(eta_BPD) - self.expected_log_message(eta_BPD, eta_BPD)


def certain(mean_BD: Tensor) -> Tensor:
    """Whether each probability is saturated."""
    return (mean_BD - 0.5).abs() > 0.5 - SATURATED_MEAN


def at_bounds(precision: Tensor, low: float, high: float) -> Tensor:
    """Whether each precision, kept between two asymptotes, gives a saturated variance."""
    return (precision <= low * SATURATED_VARIANCE) | (precision >= high / SATURATED_VARIANCE)


def bounded(raw: Tensor, low: float, high: float) -> Tensor:
    """A number between `low` and `high`, near 1 at raw = 0.

    A softplus, kept above `low` by addition and below `high` by a smooth minimum, so that its gradient never dies.
    """
    value = F.softplus(raw + math.log(math.e - 1))
    span = high - low
    return low + span * value / (span + value)


def straight_through(draw: Tensor, mean: Tensor) -> Tensor:
    """The value of `draw`, with the gradient of `mean`."""
    return draw + (mean - mean.detach())


def normal_noise(like: Tensor, generator: Generator) -> Tensor:
    """Draws from the normal distribution around 0 of variance 1."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def laplace_noise(like: Tensor, generator: Generator) -> Tensor:
    """Draws from the Laplace distribution around 0 of scale 1: the difference of two exponential ones."""
    first, second = (torch.empty_like(like).exponential_(generator=generator) for _ in range(2))
    return first - second
