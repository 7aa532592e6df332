"""The evidence loss: what a block learns from, with targets normalised over the classes.

Shapes: B batch, C classes, P natural parameters per unit, D units.
alpha_k(z) has natural parameters `alpha_BPD`. The backward message of class y is
log beta_k(z; y) = <b_k(y), T(z)> + d_k(y): `beta_CPD` and `offset_C`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bll.families import Family, kl_divergence, product


class LocalLoss(NamedTuple):
    """The local loss of each row and the exit that came with it."""

    loss_B: Tensor
    """L_k(m), in nats."""
    log_probs_BC: Tensor
    """log p_k(y|x), the exit's prediction: always that of m = 1."""


def evidence_logits(family: Family, alpha_BPD: Tensor, beta_CPD: Tensor, offset_C: Tensor) -> Tensor:
    """log of the evidence E_alpha[beta_k(z; y)], shape (B, C): A(a + b_y) - A(a) + d_y, summed over units."""
    joint_BCD = family.log_partition(product(alpha_BPD.unsqueeze(1), beta_CPD))
    alone_B1D = family.log_partition(alpha_BPD).unsqueeze(1)
    # Differences unit by unit before the sum: both terms are large where A is, and their difference is small.
    return (joint_BCD - alone_B1D).sum(-1) + offset_C


def exit_log_probs(family: Family, alpha_BPD: Tensor, beta_CPD: Tensor, offset_C: Tensor) -> Tensor:
    """log p_k(y|x), shape (B, C): the evidence normalised over the classes."""
    return torch.log_softmax(evidence_logits(family, alpha_BPD, beta_CPD, offset_C), dim=-1)


def evidence_loss(
    family: Family, alpha_BPD: Tensor, beta_CPD: Tensor, offset_C: Tensor, targets_B: Tensor, mixing: float
) -> LocalLoss:
    """L_k(m) = KL(rho_m || alpha) - <b_y, mu(a + m b_y)> - d_y + logsumexp_y' logit_y'  (method, section 4).

    At m = 1 this is the exit's negative log-likelihood exactly, and is computed so.
    At other m it is larger by KL(rho_m || rho_1).
    """
    log_probs_BC = exit_log_probs(family, alpha_BPD, beta_CPD, offset_C)
    nll_B = -log_probs_BC.gather(1, targets_B.unsqueeze(1)).squeeze(1)
    beta_BPD = beta_CPD[targets_B]
    if mixing == 1.0:
        return LocalLoss(nll_B, log_probs_BC)
    rho_BPD, exact_BPD = product(alpha_BPD, beta_BPD, mixing), product(alpha_BPD, beta_BPD)
    return LocalLoss(nll_B + kl_divergence(family, rho_BPD, exact_BPD).sum(-1), log_probs_BC)
