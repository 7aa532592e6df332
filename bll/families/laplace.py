"""The Laplace family with learned location: no exponential family, for it has a kink at its location.

Parameters of a density are (u, 1/s); those of a message, log beta(z) = -l |z - u|, are (u, l). Adding them, as natural
parameters are added, would be wrong. The product of two such functions is a three-piece exponential, whose integral
and moments are known (method, section 2); the posterior is its projection on mean and variance.

Shapes: B batch (any leading dimensions), P = 2 parameters per unit, D units, which are also the factors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bll.families.base import Family, at_bounds, bounded, laplace_noise


class Laplace(Family):
    """Laplace with learned location u and scale s."""

    num_parameters = 2

    def __init__(self, min_variance: float, max_variance: float) -> None:
        self.min_rate, self.max_rate = (math.sqrt(2 / variance) for variance in (max_variance, min_variance))

    def natural(self, raw_BPD: Tensor) -> Tensor:
        location_BD, raw_BD = raw_BPD.unbind(-2)
        return torch.stack((location_BD, bounded(raw_BD, self.min_rate, self.max_rate)), dim=-2)

    def message(self, raw_BPD: Tensor) -> Tensor:
        location_BD, raw_BD = raw_BPD.unbind(-2)
        return torch.stack((location_BD, F.softplus(raw_BD)), dim=-2)

    def log_evidence(self, alpha_BPD: Tensor, beta_BPD: Tensor) -> Tensor:
        log_normaliser_BD = _moments(alpha_BPD, beta_BPD, 1.0).log_normaliser
        return (log_normaliser_BD + (alpha_BPD[..., 1, :] / 2).log()).to(alpha_BPD.dtype)

    def posterior(self, alpha_BPD: Tensor, beta_BPD: Tensor, mixing: float = 1.0) -> Tensor:
        moments = _moments(alpha_BPD, beta_BPD, mixing)
        return torch.stack((moments.mean, (2 / moments.variance).sqrt()), dim=-2).to(alpha_BPD.dtype)

    def kl(self, rho_BPD: Tensor, alpha_BPD: Tensor) -> Tensor:
        """log(s2/s1) + D/s2 + (s1/s2) exp(-D/s1) - 1, D = |u1 - u2|."""
        rate1_BD, rate2_BD = rho_BPD[..., 1, :], alpha_BPD[..., 1, :]
        return rate1_BD.log() - rate2_BD.log() - 1 - self.expected_log_message(rho_BPD, alpha_BPD)

    def expected_log_message(self, rho_BPD: Tensor, beta_BPD: Tensor) -> Tensor:
        """-l (D + s exp(-D/s)), for E|z - u2| = D + s exp(-D/s)."""
        location1_BD, rate1_BD = rho_BPD.unbind(-2)
        location2_BD, rate2_BD = beta_BPD.unbind(-2)
        distance_BD = (location1_BD - location2_BD).abs()
        return -rate2_BD * (distance_BD + torch.exp(-distance_BD * rate1_BD) / rate1_BD)

    def log_message(self, latent_BD: Tensor, beta_BPD: Tensor) -> Tensor:
        location_BD, rate_BD = beta_BPD.unbind(-2)
        return -rate_BD * (latent_BD - location_BD).abs()

    def sample(self, eta_BPD: Tensor, generator: Generator) -> Tensor:
        location_BD, rate_BD = eta_BPD.unbind(-2)
        return location_BD + laplace_noise(location_BD, generator) / rate_BD

    def entropy(self, eta_BPD: Tensor) -> Tensor:
        """1 + log 2s."""
        return 1 + math.log(2) - eta_BPD[..., 1, :].log()

    def saturated(self, eta_BPD: Tensor) -> Tensor:
        return at_bounds(eta_BPD[..., 1, :].square(), self.min_rate**2, self.max_rate**2)

    def mean(self, eta_BPD: Tensor) -> Tensor:
        return eta_BPD[..., 0, :]

    def variance(self, eta_BPD: Tensor) -> Tensor:
        return 2 / eta_BPD[..., 1, :].square()


class _Moments(NamedTuple):
    """Of exp(-l1 |z - u1|) exp(-m l2 |z - u2|), in float64."""

    log_normaliser: Tensor
    mean: Tensor
    variance: Tensor


def _moments(alpha_BPD: Tensor, beta_BPD: Tensor, mixing: float) -> _Moments:
    # In float32 the differences below lose everything: a rate difference of 5e-4 gave a variance of 524 for 0.667.
    location1, rate1 = alpha_BPD.double().unbind(-2)
    location2, rate2 = beta_BPD.double().unbind(-2)
    rate2 = mixing * rate2
    # Measured from the narrower of the two, towards the wider: then no exponential below grows.
    first_is_narrow = rate1 >= rate2
    narrow, wide = torch.maximum(rate1, rate2), torch.minimum(rate1, rate2)
    towards = torch.where(first_is_narrow, location2 - location1, location1 - location2)
    origin = torch.where(first_is_narrow, location1, location2)
    distance = towards.abs()
    both, difference = narrow + wide, narrow - wide
    decay = torch.exp(-difference * distance)
    between = _unit_moments(difference * distance)
    # Pieces: beyond the origin, between the two, beyond the other; all over the common factor exp(-wide * distance).
    mass = 1 / both + distance * between[0] + decay / both
    first = -1 / both**2 + distance**2 * between[1] + decay * (distance / both + 1 / both**2)
    second = (
        2 / both**3 + distance**3 * between[2] + decay * (distance**2 / both + 2 * distance / both**2 + 2 / both**3)
    )
    offset = first / mass
    return _Moments(
        log_normaliser=mass.log() - wide * distance,
        mean=origin + towards.sign() * offset,
        variance=second / mass - offset**2,
    )


def _unit_moments(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The integrals of x^n exp(-t x) over [0, 1] for n = 0, 1, 2 and t >= 0; by their series where t is small."""
    small = t < 0.1
    safe = torch.where(small, torch.ones_like(t), t)  # so that the branch not taken has a finite gradient
    decay = torch.exp(-safe)
    closed = (
        (1 - decay) / safe,
        (1 - decay * (1 + safe)) / safe**2,
        (2 - decay * (2 + 2 * safe + safe**2)) / safe**3,
    )
    tiny = torch.where(small, t, torch.zeros_like(t))
    series = [torch.zeros_like(t) for _ in closed]
    term = torch.ones_like(t)
    for j in range(9):  # 0.1^9 / 9! is below float64's last bit
        series = [total + term / (j + n + 1) for n, total in enumerate(series)]
        term = -term * tiny / (j + 1)
    first, second, third = (torch.where(small, s, c) for s, c in zip(series, closed, strict=True))
    return first, second, third
