"""The exponential families. Shapes as in `base`."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bll.families.base import (
    ExponentialFamily,
    at_bounds,
    bounded,
    certain,
    laplace_noise,
    normal_noise,
    straight_through,
)


class Bernoulli(ExponentialFamily):
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

    def statistics(self, latent_BD: Tensor) -> Tensor:
        return latent_BD.unsqueeze(-2)

    def sample(self, eta_BPD: Tensor, generator: Generator) -> Tensor:
        mean_BD = self.mean(eta_BPD)
        uniform_BD = torch.rand(mean_BD.shape, generator=generator, dtype=mean_BD.dtype, device=mean_BD.device)
        return straight_through((uniform_BD < mean_BD).to(mean_BD.dtype), mean_BD)

    def saturated(self, eta_BPD: Tensor) -> Tensor:
        return certain(self.mean(eta_BPD))

    def mean(self, eta_BPD: Tensor) -> Tensor:
        return torch.sigmoid(eta_BPD).squeeze(-2)

    def variance(self, eta_BPD: Tensor) -> Tensor:
        mean_BD = self.mean(eta_BPD)
        return mean_BD * (1 - mean_BD)


class Categorical(ExponentialFamily):
    """Groups of G units, each group one-hot; eta are logits, T(z) = z, A = logsumexp over the group."""

    num_parameters = 1
    limit = 30.0
    """Logits lie at most this far below the largest of their group."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size

    def natural(self, raw_BPD: Tensor) -> Tensor:
        groups = self._groups(raw_BPD)
        # The gauge: a constant added to a group changes nothing, so the largest logit is set to 0.
        return (groups - groups.amax(-1, keepdim=True)).clamp(min=-self.limit).flatten(-2)

    def message(self, raw_BPD: Tensor) -> Tensor:
        groups = self._groups(raw_BPD)
        # Centred: what a message adds to every unit of a group says nothing, and must not leak into the evidence.
        return (groups - groups.mean(-1, keepdim=True)).clamp(-self.limit, self.limit).flatten(-2)

    def log_partition(self, eta_BPD: Tensor) -> Tensor:
        return self._groups(eta_BPD).logsumexp(-1).squeeze(-2)

    def mean_parameters(self, eta_BPD: Tensor) -> Tensor:
        return self._groups(eta_BPD).softmax(-1).flatten(-2)

    def expected_log_message(self, rho_BPD: Tensor, beta_BPD: Tensor) -> Tensor:
        return self._groups(beta_BPD * self.mean_parameters(rho_BPD)).sum(-1).squeeze(-2)

    def statistics(self, latent_BD: Tensor) -> Tensor:
        return latent_BD.unsqueeze(-2)

    def sample(self, eta_BPD: Tensor, generator: Generator) -> Tensor:
        """By the Gumbel-max trick, in each group."""
        logits = self._groups(eta_BPD.squeeze(-2))
        gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
        one_hot = F.one_hot((logits + gumbel).argmax(-1), self.group_size).to(logits.dtype)
        return straight_through(one_hot.flatten(-2), self.mean(eta_BPD))

    def saturated(self, eta_BPD: Tensor) -> Tensor:
        return certain(self.mean(eta_BPD))

    def mean(self, eta_BPD: Tensor) -> Tensor:
        return self.mean_parameters(eta_BPD).squeeze(-2)

    def variance(self, eta_BPD: Tensor) -> Tensor:
        mean_BD = self.mean(eta_BPD)
        return mean_BD * (1 - mean_BD)

    def _groups(self, values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:-1], -1, self.group_size)


class Gaussian(ExponentialFamily):
    """Diagonal Gaussian with learned variance v; eta = (u/v, -1/(2v)), T(z) = (z, z^2).

    The first raw number is u/v itself; the second decides the precision 1/v.
    """

    num_parameters = 2

    def __init__(self, min_variance: float, max_variance: float) -> None:
        self.min_precision = 1 / max_variance
        self.max_precision = 1 / min_variance

    def natural(self, raw_BPD: Tensor) -> Tensor:
        eta1_BD, raw_BD = raw_BPD.unbind(-2)
        return torch.stack((eta1_BD, -bounded(raw_BD, self.min_precision, self.max_precision) / 2), dim=-2)

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

    def statistics(self, latent_BD: Tensor) -> Tensor:
        return torch.stack((latent_BD, latent_BD.square()), dim=-2)

    def sample(self, eta_BPD: Tensor, generator: Generator) -> Tensor:
        mean_BD = self.mean(eta_BPD)
        return mean_BD + self.variance(eta_BPD).sqrt() * normal_noise(mean_BD, generator)

    def entropy(self, eta_BPD: Tensor) -> Tensor:
        return super().entropy(eta_BPD) + math.log(2 * math.pi) / 2

    def saturated(self, eta_BPD: Tensor) -> Tensor:
        return at_bounds(-2 * eta_BPD[..., 1, :], self.min_precision, self.max_precision)

    def mean(self, eta_BPD: Tensor) -> Tensor:
        eta1_BD, eta2_BD = eta_BPD.unbind(-2)
        return eta1_BD / (-2 * eta2_BD)

    def variance(self, eta_BPD: Tensor) -> Tensor:
        return 1 / (-2 * eta_BPD[..., 1, :])


class UnitGaussian(ExponentialFamily):
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

    def statistics(self, latent_BD: Tensor) -> Tensor:
        return latent_BD.unsqueeze(-2)

    def sample(self, eta_BPD: Tensor, generator: Generator) -> Tensor:
        mean_BD = self.mean(eta_BPD)
        return mean_BD + normal_noise(mean_BD, generator)

    def entropy(self, eta_BPD: Tensor) -> Tensor:
        return torch.full_like(eta_BPD.squeeze(-2), math.log(2 * math.pi * math.e) / 2)

    def saturated(self, eta_BPD: Tensor) -> Tensor:
        return torch.zeros_like(eta_BPD.squeeze(-2), dtype=torch.bool)

    def mean(self, eta_BPD: Tensor) -> Tensor:
        return eta_BPD.squeeze(-2)

    def variance(self, eta_BPD: Tensor) -> Tensor:
        return torch.ones_like(eta_BPD.squeeze(-2))


class LaplaceScale(ExponentialFamily):
    """Laplace around 0 with learned scale s; eta = -1/s, T(z) = |z|, A = log 2s. Only its spread carries anything."""

    num_parameters = 1

    def __init__(self, min_variance: float, max_variance: float) -> None:
        self.min_rate, self.max_rate = (math.sqrt(2 / variance) for variance in (max_variance, min_variance))

    def natural(self, raw_BPD: Tensor) -> Tensor:
        return -bounded(raw_BPD, self.min_rate, self.max_rate)

    def message(self, raw_BPD: Tensor) -> Tensor:
        return -F.softplus(raw_BPD)

    def log_partition(self, eta_BPD: Tensor) -> Tensor:
        return math.log(2) - (-eta_BPD).log().squeeze(-2)

    def mean_parameters(self, eta_BPD: Tensor) -> Tensor:
        return -1 / eta_BPD

    def statistics(self, latent_BD: Tensor) -> Tensor:
        return latent_BD.abs().unsqueeze(-2)

    def sample(self, eta_BPD: Tensor, generator: Generator) -> Tensor:
        scale_BD = -1 / eta_BPD.squeeze(-2)
        return scale_BD * laplace_noise(scale_BD, generator)

    def saturated(self, eta_BPD: Tensor) -> Tensor:
        return at_bounds(eta_BPD.squeeze(-2).square(), self.min_rate**2, self.max_rate**2)

    def mean(self, eta_BPD: Tensor) -> Tensor:
        return torch.zeros_like(eta_BPD.squeeze(-2))

    def variance(self, eta_BPD: Tensor) -> Tensor:
        return 2 / eta_BPD.squeeze(-2).square()
