"""What is known, and how well, when y is not: the prediction of every exit and the variances of every latent.

Shapes: B batch, C classes, N blocks (= exits), P natural parameters per unit, D units, Y the shape of one target: ()
of one class.
The same functions run in training reports, in `TrainedModel.predict` and, traced, inside the exported graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bll.losses import Objective
from bll.regression.objective import RegressionObjective
from bll.twins import ClassTable

_ROWS_AT_ONCE = 256


class MarginalPosterior(NamedTuple):
    """Posterior of z_k with the target marginalised: sum_y p_k(y|x) rho_k(z | x, y)."""

    variance_BD: Tensor
    """sum_y p_y Var_y[z] + sum_y p_y (E_y[z] - E[z])^2."""
    between_BD: Tensor
    """The second term alone: what comes from not knowing the class."""
    log_probs_BC: Tensor
    """log p_k(y|x)."""
    mean_BD: Tensor
    """sum_y p_y E_y[z]."""


class Mixture(NamedTuple):
    """What follows from the probabilities of several exits, or of the members of an ensemble."""

    probabilities: Tensor
    """Their mean, shape (B, C)."""
    output_variance: Tensor
    """1 - sum_y p_y^2 of the mean, shape (B,): the sum over the classes of their variances p_y (1 - p_y)."""
    entropy: Tensor
    """Entropy of the mean, in nats, shape (B,)."""
    exit_disagreement: Tensor
    """H[mean] - mean H, in nats, shape (B,)."""


class Latent(NamedTuple):
    """Every unit of z_k, in natural units, each of shape (B, D). `Prediction` has the variances' means over units."""

    forward_mean: Tensor
    """E[z] under alpha_k."""
    forward_variance: Tensor
    """Var[z] under alpha_k."""
    posterior_mean: Tensor
    """E[z] of the target-marginalised posterior."""
    posterior_variance: Tensor
    """Its variance."""
    posterior_variance_between: Tensor
    """The part of it that comes from not knowing the class."""


class LabelledPosterior(NamedTuple):
    """rho_k(z | x, y) at m = 1, whose class y is known."""

    mean: Tensor
    """E[z], shape (B, D)."""
    variance: Tensor
    """Var[z], shape (B, D)."""
    kl_nats: Tensor
    """KL(rho_k || alpha_k), what the class tells of z_k, shape (B,)."""


class Exits(NamedTuple):
    """What one exit says of a batch, or K in a row."""

    log_product: Tensor
    """sum_k log p_k(y|x), shape (B, *Y, C)."""
    exit_probabilities: Tensor
    """p_k(y|x), shape (B, K, *Y, C)."""
    posterior_variance: Tensor
    """Target-marginalised posterior variance of z_k, mean over its units and positions, shape (B, K)."""
    posterior_variance_between: Tensor
    """Its part that comes from not knowing the class, shape (B, K)."""
    forward_variance: Tensor
    """Variance of z_k under alpha_k, mean over its units and positions, shape (B, K)."""


class Prediction(NamedTuple):
    """Everything that the network says of a batch. Probabilities and variances, in natural units; entropies in nats."""

    probabilities: Tensor
    """The uniform mixture of the exits, shape (B, *Y, C): the training loss bounds its likelihood."""
    product_probabilities: Tensor
    """The normalised product of the exits, shape (B, *Y, C)."""
    exit_probabilities: Tensor
    """p_k(y|x), shape (B, N, *Y, C); the last is the task head."""
    posterior_variance: Tensor
    """Target-marginalised posterior variance of z_k, mean over its units and positions, shape (B, N)."""
    posterior_variance_between: Tensor
    """Its part that comes from not knowing the class, shape (B, N)."""
    forward_variance: Tensor
    """Variance of z_k under alpha_k, mean over its units and positions, shape (B, N)."""
    output_variance: Tensor
    """1 - sum_y p_y^2 of the mixture, shape (B, *Y)."""
    entropy: Tensor
    """Entropy of the mixture, shape (B, *Y)."""
    exit_disagreement: Tensor
    """H[mixture] - mean_k H[p_k], shape (B, *Y). The exits share a trunk: they are no independent ensemble."""


def marginal_posterior(objective: Objective, alpha_BPD: Tensor, table: ClassTable) -> MarginalPosterior:
    """The posterior of z_k without its target, at m = 1, under the exit's own p_k(y|x)."""
    family = objective.family
    log_probs_BC = objective.exit_log_probs(alpha_BPD, table)
    weights_BC1 = log_probs_BC.exp().unsqueeze(-1)
    rho_BCPD = family.posterior(alpha_BPD.unsqueeze(1), table.beta_CPD)
    mean_BCD = family.mean(rho_BCPD)
    within_BD = (weights_BC1 * family.variance(rho_BCPD)).sum(1)
    centre_B1D = (weights_BC1 * mean_BCD).sum(1, keepdim=True)
    between_BD = (weights_BC1 * (mean_BCD - centre_B1D).square()).sum(1)
    return MarginalPosterior(within_BD + between_BD, between_BD, log_probs_BC, centre_B1D.squeeze(1))


def latent(objective: Objective, alpha_BPD: Tensor, table: ClassTable) -> Latent:
    """Means and variances of one boundary's z_k, unit by unit."""
    family = objective.family
    posterior = marginal_posterior(objective, alpha_BPD, table)
    return Latent(
        forward_mean=family.mean(alpha_BPD),
        forward_variance=family.variance(alpha_BPD),
        posterior_mean=posterior.mean_BD,
        posterior_variance=posterior.variance_BD,
        posterior_variance_between=posterior.between_BD,
    )


def labelled(objective: Objective, alpha_BPD: Tensor, table: ClassTable, targets_B: Tensor) -> LabelledPosterior:
    """The posterior of one boundary's z_k with the targets known (method, section 7, point 4)."""
    family = objective.family
    rho_BPD = family.posterior(alpha_BPD, table.beta_CPD[targets_B])
    return LabelledPosterior(family.mean(rho_BPD), family.variance(rho_BPD), family.kl(rho_BPD, alpha_BPD).sum(-1))


def posterior_variance(
    objective: Objective | RegressionObjective, alpha_BPD: Tensor, table: ClassTable, rho_BPD: Tensor
) -> Tensor:
    """Var[z_k] as far as a prediction knows it, shape (B, D): with classes marginalised; of real-valued targets, which
    are the inputs, under the posterior `rho_BPD` itself."""
    if isinstance(objective, RegressionObjective):
        return objective.family.variance(rho_BPD)
    # Sites of sequences and images are many: the posteriors of all classes at once would outgrow the block's own step.
    parts = torch.split(alpha_BPD, _ROWS_AT_ONCE)
    return torch.cat([marginal_posterior(objective, part_BPD, table).variance_BD for part_BPD in parts])


def predict(
    objective: Objective, alphas: Sequence[Tensor], tables: Sequence[ClassTable], target_shape: tuple[int, ...] = ()
) -> Prediction:
    """The prediction from each block's alpha_k, of shape (B, P, D), and class table.

    Of targets with positions the rows of alpha_k are sites, as many for each sample as its target has positions.
    """
    found = zip(alphas, tables, strict=True)
    return prediction(joined([exit_of(objective, alpha, table, target_shape) for alpha, table in found]))


def exit_of(objective: Objective, alpha_BPD: Tensor, table: ClassTable, target_shape: tuple[int, ...] = ()) -> Exits:
    """What the exit of one block says, from its alpha_k and class table, as in `predict`."""
    posterior = marginal_posterior(objective, alpha_BPD, table)
    log_probs_BYC = by_sample(posterior.log_probs_BC, target_shape)
    variances = (posterior.variance_BD, posterior.between_BD, objective.family.variance(alpha_BPD))
    return Exits(log_probs_BYC, log_probs_BYC.exp().unsqueeze(1), *(_mean(each, target_shape) for each in variances))


def joined(parts: Sequence[Exits]) -> Exits:
    """What exits say together, in their order."""
    fields = [torch.cat(values, dim=1) for values in list(zip(*parts, strict=True))[1:]]
    return Exits(sum((part.log_product for part in parts[1:]), parts[0].log_product), *fields)


def prediction(exits: Exits) -> Prediction:
    """What follows from the exits of the first blocks, or of all."""
    mixed = mixture(exits.exit_probabilities)
    return Prediction(
        probabilities=mixed.probabilities,
        product_probabilities=torch.softmax(exits.log_product, dim=-1),
        exit_probabilities=exits.exit_probabilities,
        posterior_variance=exits.posterior_variance,
        posterior_variance_between=exits.posterior_variance_between,
        forward_variance=exits.forward_variance,
        output_variance=mixed.output_variance,
        entropy=mixed.entropy,
        exit_disagreement=mixed.exit_disagreement,
    )


def mixture(exits_BNYC: Tensor) -> Mixture:
    """The uniform mixture of N distributions a row."""
    mixture_BYC = exits_BNYC.mean(1)
    entropy_BY = _entropy(mixture_BYC)
    return Mixture(
        probabilities=mixture_BYC,
        output_variance=1 - mixture_BYC.square().sum(-1),
        entropy=entropy_BY,
        exit_disagreement=entropy_BY - _entropy(exits_BNYC).mean(1),
    )


def by_sample(values: Tensor, target_shape: tuple[int, ...]) -> Tensor:
    """`values`, whose rows are sites, with a row for each sample: shape (B, *Y, ...)."""
    return torch.unflatten(values, 0, (-1, *target_shape)) if target_shape else values


def _mean(variance_BD: Tensor, target_shape: tuple[int, ...]) -> Tensor:
    """Mean over the units and positions of each sample, shape (B, 1)."""
    mean = by_sample(variance_BD.mean(-1), target_shape)
    return mean.flatten(1).mean(1, keepdim=True) if target_shape else mean.unsqueeze(1)


def _entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p over the last dimension, with 0 log 0 = 0."""
    smallest = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp(min=smallest).log()).sum(-1)
