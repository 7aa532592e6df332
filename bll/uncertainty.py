"""What is known, and how well, when y is not: the prediction of every exit and the variances of every latent.

Shapes: B batch, C classes, N blocks (= exits), P natural parameters per unit, D units.
The same functions run in training reports, in `TrainedModel.predict` and, traced, inside the exported graph.
"""

from __future__ import annotations

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


class Prediction(NamedTuple):
    """Everything that the network says of a batch. Probabilities and variances, in natural units; entropies in nats.

    Shapes are those of targets of one class; `of_samples` tells those of targets with positions.
    """

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


def predict(objective: Objective, alphas: list[Tensor], tables: list[ClassTable]) -> Prediction:
    """The prediction from each block's alpha_k, of shape (B, P, D), and class table."""
    posteriors = [marginal_posterior(objective, alpha, table) for alpha, table in zip(alphas, tables, strict=True)]
    log_exits_BNC = torch.stack([posterior.log_probs_BC for posterior in posteriors], dim=1)
    exits_BNC = log_exits_BNC.exp()
    mixed = mixture(exits_BNC)
    return Prediction(
        probabilities=mixed.probabilities,
        product_probabilities=torch.softmax(log_exits_BNC.sum(1), dim=-1),
        exit_probabilities=exits_BNC,
        posterior_variance=torch.stack([posterior.variance_BD.mean(-1) for posterior in posteriors], dim=1),
        posterior_variance_between=torch.stack([posterior.between_BD.mean(-1) for posterior in posteriors], dim=1),
        forward_variance=torch.stack([objective.family.variance(alpha).mean(-1) for alpha in alphas], dim=1),
        output_variance=mixed.output_variance,
        entropy=mixed.entropy,
        exit_disagreement=mixed.exit_disagreement,
    )


def mixture(exits_BNC: Tensor) -> Mixture:
    """The uniform mixture of N distributions a row."""
    mixture_BC = exits_BNC.mean(1)
    entropy_B = _entropy(mixture_BC)
    return Mixture(
        probabilities=mixture_BC,
        output_variance=1 - mixture_BC.square().sum(-1),
        entropy=entropy_B,
        exit_disagreement=entropy_B - _entropy(exits_BNC).mean(-1),
    )


def of_samples(prediction: Prediction, target_shape: tuple[int, ...]) -> Prediction:
    """`prediction`, whose rows are sites, by sample: what is said of the target has its shape, (B, *target_shape, ...)
    with the exits first; the variances of latents are means over the sites.
    """
    if not target_shape:
        return prediction
    fields = {name: values.unflatten(0, (-1, *target_shape)) for name, values in prediction._asdict().items()}
    for name in fields.keys() - _OF_TARGETS:
        fields[name] = fields[name].flatten(1, len(target_shape)).mean(1)
    fields["exit_probabilities"] = fields["exit_probabilities"].movedim(-2, 1)
    return Prediction(**fields)


_OF_TARGETS = {
    "probabilities",
    "product_probabilities",
    "exit_probabilities",
    "output_variance",
    "entropy",
    "exit_disagreement",
}
"""Fields of a prediction that are about its target; the others are about latents."""


def _entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p over the last dimension, with 0 log 0 = 0."""
    smallest = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp(min=smallest).log()).sum(-1)
