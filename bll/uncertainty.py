"""What is known, and how well, when y is not: the prediction of every exit and the variances of every latent.

Shapes: B batch, C classes, N blocks (= exits), P natural parameters per unit, D units.
The same functions run in training reports, in `TrainedModel.predict` and, traced, inside the exported graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bll.losses import Objective
from bll.twins import ClassTable


class MarginalPosterior(NamedTuple):
    """Posterior of z_k with the target marginalised: sum_y p_k(y|x) rho_k(z | x, y)."""

    variance_BD: Tensor
    """sum_y p_y Var_y[z] + sum_y p_y (E_y[z] - E[z])^2."""
    between_BD: Tensor
    """The second term alone: what comes from not knowing the class."""
    log_probs_BC: Tensor
    """log p_k(y|x)."""


class Prediction(NamedTuple):
    """Everything that the network says of a batch. Probabilities and variances, in natural units; entropies in nats."""

    probabilities: Tensor
    """The uniform mixture of the exits, shape (B, C): the training loss bounds its likelihood."""
    product_probabilities: Tensor
    """The normalised product of the exits, shape (B, C)."""
    exit_probabilities: Tensor
    """p_k(y|x), shape (B, N, C); the last is the task head."""
    posterior_variance: Tensor
    """Target-marginalised posterior variance of z_k, mean over its units, shape (B, N)."""
    posterior_variance_between: Tensor
    """Its part that comes from not knowing the class, shape (B, N)."""
    forward_variance: Tensor
    """Variance of z_k under alpha_k, mean over its units, shape (B, N)."""
    output_variance: Tensor
    """1 - sum_y p_y^2 of the mixture, shape (B,)."""
    entropy: Tensor
    """Entropy of the mixture, shape (B,)."""
    exit_disagreement: Tensor
    """H[mixture] - mean_k H[p_k], shape (B,). The exits share a trunk: they are no independent ensemble."""


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
    return MarginalPosterior(within_BD + between_BD, between_BD, log_probs_BC)


def predict(objective: Objective, alphas: list[Tensor], tables: list[ClassTable]) -> Prediction:
    """The prediction from each block's alpha_k, of shape (B, P, D), and class table."""
    posteriors = [marginal_posterior(objective, alpha, table) for alpha, table in zip(alphas, tables, strict=True)]
    log_exits_BNC = torch.stack([posterior.log_probs_BC for posterior in posteriors], dim=1)
    exits_BNC = log_exits_BNC.exp()
    mixture_BC = exits_BNC.mean(1)
    entropy_B = _entropy(mixture_BC)
    return Prediction(
        probabilities=mixture_BC,
        product_probabilities=torch.softmax(log_exits_BNC.sum(1), dim=-1),
        exit_probabilities=exits_BNC,
        posterior_variance=torch.stack([posterior.variance_BD.mean(-1) for posterior in posteriors], dim=1),
        posterior_variance_between=torch.stack([posterior.between_BD.mean(-1) for posterior in posteriors], dim=1),
        forward_variance=torch.stack([objective.family.variance(alpha).mean(-1) for alpha in alphas], dim=1),
        output_variance=1 - mixture_BC.square().sum(-1),
        entropy=entropy_B,
        exit_disagreement=entropy_B - _entropy(exits_BNC).mean(-1),
    )


def _entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p over the last dimension, with 0 log 0 = 0."""
    smallest = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp(min=smallest).log()).sum(-1)
