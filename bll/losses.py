"""What a block learns from, and the exit that follows from it. Targets are always normalised over the classes.

Shapes: B batch, C classes, P parameters per unit, D units, S samples of a latent.
alpha_k(z) has parameters `alpha_BPD`. The backward message of class y is
log beta_k(z; y) = <b_k(y), T(z)> + d_k(y): a class table (`beta_CPD`, `offset_C`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bll.choices import LossName, PosteriorName
from bll.config import LossConfig
from bll.families import Family
from bll.twins import ClassTable


class LocalLoss(NamedTuple):
    """The local loss of each row and the exit that came with it."""

    loss_B: Tensor
    """L_k(m), in nats."""
    log_probs_BC: Tensor
    """log p_k(y|x), the exit's prediction, whatever the mixing."""

    def correct(self, targets_B: Tensor) -> Tensor:
        """How many rows the exit gets right."""
        return (self.log_probs_BC.argmax(1) == targets_B).sum()

    def exit_nll(self, targets_B: Tensor) -> Tensor:
        """Mean negative log-likelihood of the exit, in nats, shape ()."""
        return F.nll_loss(self.log_probs_BC, targets_B)


class Objective:
    """A local loss L_k = KL(rho_k || alpha_k) - E_rho[log p_k(y | .)] and its exit p_k(y|x)."""

    def __init__(self, family: Family, config: LossConfig) -> None:
        self.family = family
        self.config = config

    def exit_log_probs(self, alpha_BPD: Tensor, table: ClassTable) -> Tensor:
        """log p_k(y|x), shape (B, C): a softmax over the classes' evidence, or of the expected message under alpha."""
        if self.config.name in (LossName.DISCRIMINATIVE, LossName.PROTOTYPE):
            return self._plug_in(alpha_BPD, table)
        return torch.log_softmax(evidence_logits(self.family, alpha_BPD, table), dim=-1)

    def loss(
        self,
        alpha_BPD: Tensor,
        table: ClassTable,
        targets_B: Tensor,
        mixing: float,
        generator: Generator | None = None,
    ) -> LocalLoss:
        """L_k(m) of each row, with gradients to alpha and table (method, section 4).

        `generator` draws the samples of rho_k, if the config wants them.
        """
        log_probs_BC = self.exit_log_probs(alpha_BPD, table)
        if self.config.name is LossName.PROTOTYPE:  # the head alone: the rest is the block's auxiliary
            return LocalLoss(-_of_targets(log_probs_BC, targets_B), log_probs_BC)
        if self.config.name is LossName.EVIDENCE and mixing == 1.0:
            # The exact posterior closes the bound: L_k(1) is the exit's negative log-likelihood, coupled or detached.
            return LocalLoss(-_of_targets(log_probs_BC, targets_B), log_probs_BC)
        family = self.family
        beta_BPD = table.beta_CPD[targets_B]
        rho_BPD = family.posterior(alpha_BPD, beta_BPD, mixing)
        if self.config.posterior is PosteriorName.DETACHED:
            rho_BPD = rho_BPD.detach()
        kl_B = family.kl(rho_BPD, alpha_BPD).sum(-1)
        match self.config.name:
            case LossName.EVIDENCE:
                normaliser_B = evidence_logits(family, alpha_BPD, table).logsumexp(-1)
                expected_B = family.expected_log_message(rho_BPD, beta_BPD).sum(-1) + table.offset_C[targets_B]
                return LocalLoss(kl_B - expected_B + normaliser_B, log_probs_BC)
            case LossName.DISCRIMINATIVE:
                if not self.config.samples:
                    return LocalLoss(kl_B - _of_targets(self._plug_in(rho_BPD, table), targets_B), log_probs_BC)
                drawn_SBC = self._sampled(rho_BPD, table, generator)
                targets_SB = targets_B.expand(len(drawn_SBC), -1)
                expected_B = drawn_SBC.gather(2, targets_SB.unsqueeze(2)).squeeze(2).mean(0)
                return LocalLoss(kl_B - expected_B, log_probs_BC)
            case LossName.DIVERGENCE:
                return LocalLoss(kl_B, log_probs_BC)
            case LossName.IN_BATCH | LossName.DECODER:
                raise AssertionError("losses of real-valued targets are in bll.regression")

    def _sampled(self, rho_BPD: Tensor, table: ClassTable, generator: Generator | None) -> Tensor:
        """log softmax_y(log beta(z; y)) at draws z from rho, shape (S, B, C)."""
        assert generator is not None, "samples need a generator"
        latent_SBD = self.family.sample(rho_BPD.expand(self.config.samples, *rho_BPD.shape), generator)
        logits_SBC = self.family.log_message(latent_SBD.unsqueeze(2), table.beta_CPD).sum(-1) + table.offset_C
        return torch.log_softmax(logits_SBC, dim=-1)

    def _plug_in(self, eta_BPD: Tensor, table: ClassTable) -> Tensor:
        """log softmax_y(E[log beta(z; y)] + d_y) under eta, shape (B, C)."""
        expected_BC = self.family.expected_log_message(eta_BPD.unsqueeze(1), table.beta_CPD).sum(-1)
        return torch.log_softmax(expected_BC + table.offset_C, dim=-1)


def evidence_logits(family: Family, alpha_BPD: Tensor, table: ClassTable) -> Tensor:
    """log of the evidence E_alpha[beta_k(z; y)], shape (B, C): A(a + b_y) - A(a) + d_y in exponential families."""
    # Differences unit by unit before the sum: both terms are large where A is, and their difference is small.
    return family.log_evidence(alpha_BPD.unsqueeze(1), table.beta_CPD).sum(-1) + table.offset_C


def _of_targets(values_BC: Tensor, targets_B: Tensor) -> Tensor:
    return values_BC.gather(1, targets_B.unsqueeze(1)).squeeze(1)
