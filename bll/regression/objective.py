"""What a block learns from where targets are real-valued, and what the network then says of a sample.

Shapes: B batch, P parameters per unit, D units, N blocks (= exits), Y the shape of one target. A batch's own targets
take the place that classes have elsewhere: each has a backward message, so a table (`bll.twins.ClassTable`) has a row
for each row of the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from bll.choices import LossName
from bll.config import LossConfig
from bll.families import Family
from bll.losses import Objective
from bll.regression.decoders import Decoder, decoder_nll
from bll.twins import ClassTable


class RegressionLoss(NamedTuple):
    """The local loss of each row, and how well its exit explains the targets."""

    loss_B: Tensor
    """L_k(m), in nats; of `in_batch` with the decoder's negative log-likelihood, which is trained beside it."""
    explained_B: Tensor
    """1 - mean squared error of the exit p_k(y|x), in units of the training targets' variance."""

    exit_nll_B: Tensor
    """-log p_k(y|x), in nats."""

    def correct(self, targets_B: Tensor) -> Tensor:
        """Sum of the shares explained; `targets_B` is not read."""
        return self.explained_B.sum()

    def exit_nll(self, targets_B: Tensor) -> Tensor:
        """Mean negative log-likelihood of the exit, in nats, shape (); `targets_B` is not read."""
        return self.exit_nll_B.mean()


class RegressionObjective:
    """L_k = KL(rho_k || alpha_k) - E_rho[log p_k(y|z_k)] with a local decoder p_k, or the evidence among a batch's
    targets (method, section 4). The exit is the decoder's answer to the mean of alpha_k."""

    def __init__(self, family: Family, config: LossConfig, decoder: Decoder) -> None:
        self.family = family
        self.config = config
        self.decoder = decoder

    def exit(self, alpha_BPD: Tensor) -> Tensor:
        """Mean and variance of p_k(y|x), shape (B, 2, *Y)."""
        exit_B2Y: Tensor = self.decoder(self.family.mean(alpha_BPD))
        return exit_B2Y

    def loss(
        self,
        alpha_BPD: Tensor,
        table: ClassTable,
        targets_BY: Tensor,
        mixing: float,
        generator: Generator | None = None,
    ) -> RegressionLoss:
        """L_k(m) of each row, with gradients to alpha, table and decoder.

        `generator` draws the samples of rho_k, if the config wants them.
        """
        if self.config.name is LossName.IN_BATCH:
            nll_B, explained_B = self._scored(self.exit(alpha_BPD.detach()), targets_BY)
            return RegressionLoss(self._in_batch(alpha_BPD, table, mixing) + nll_B, explained_B, nll_B)
        if not mixing and not self.config.samples:
            nll_B, explained_B = self._scored(self.exit(alpha_BPD), targets_BY)
            return RegressionLoss(nll_B, explained_B, nll_B)
        rho_BPD = self.family.posterior(alpha_BPD, table.beta_CPD, mixing) if mixing else alpha_BPD
        loss_B = self._expected_nll(rho_BPD, targets_BY, generator)
        if mixing:
            loss_B = self.family.kl(rho_BPD, alpha_BPD).sum(-1) + loss_B
        with torch.no_grad():  # what is trained is rho_k's decoding, what is predicted alpha_k's
            nll_B, explained_B = self._scored(self.exit(alpha_BPD), targets_BY)
        return RegressionLoss(loss_B, explained_B, nll_B)

    def _scored(self, exit_B2Y: Tensor, targets_BY: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each row, and the share of variance explained."""
        error_BX = ((exit_B2Y[:, 0].detach() - targets_BY) / self.decoder.scale).flatten(1)
        return decoder_nll(exit_B2Y, targets_BY), 1 - error_BX.square().mean(1)

    def _expected_nll(self, rho_BPD: Tensor, targets_BY: Tensor, generator: Generator | None) -> Tensor:
        """-E_rho[log p_k(y|z)] of each row, by samples, or at the mean instead."""
        if not self.config.samples:
            return decoder_nll(self.exit(rho_BPD), targets_BY)
        assert generator is not None, "samples need a generator"
        nlls_B = [
            decoder_nll(self.decoder(self.family.sample(rho_BPD, generator)), targets_BY)
            for _ in range(self.config.samples)
        ]
        return torch.stack(nlls_B).mean(0)

    def _in_batch(self, alpha_BPD: Tensor, table: ClassTable, mixing: float) -> Tensor:
        """The loss `evidence` with the batch's targets for classes, each row's own the true one."""
        evidence = Objective(self.family, replace(self.config, name=LossName.EVIDENCE))
        own_B = torch.arange(len(alpha_BPD), device=alpha_BPD.device)
        return evidence.loss(alpha_BPD, table, own_B, mixing).loss_B


class RegressionPrediction(NamedTuple):
    """Everything that the network says of a batch, in the targets' own units."""

    mean: Tensor
    """Of the uniform mixture of the exits, shape (B, *Y)."""
    output_variance: Tensor
    """Of the mixture: the exits' mean variance and the variance of their means, shape (B, *Y)."""
    exit_means: Tensor
    """Shape (B, N, *Y); the last exit is the task head."""
    exit_variances: Tensor
    """Shape (B, N, *Y)."""
    forward_variance: Tensor
    """Variance of z_k under alpha_k, mean over its units, shape (B, N)."""
    posterior_variance: Tensor
    """Variance of z_k under rho_k, mean over its units, at the mixing of the last epoch, shape (B, N): the target is
    the input, hence known."""


def predict(family: Family, exits: list[Tensor], alphas: list[Tensor], rhos: list[Tensor]) -> RegressionPrediction:
    """The prediction from each block's exit, of shape (B, 2, *Y), alpha_k and rho_k."""
    means_BNY, variances_BNY = torch.stack(exits, dim=1).unbind(2)
    return RegressionPrediction(
        mean=means_BNY.mean(1),
        # Of the law of total variance, the uniform mixture's (method, section 7).
        output_variance=variances_BNY.mean(1) + means_BNY.var(1, correction=0),
        exit_means=means_BNY,
        exit_variances=variances_BNY,
        forward_variance=torch.stack([family.variance(alpha).mean(-1) for alpha in alphas], dim=1),
        posterior_variance=torch.stack([family.variance(rho).mean(-1) for rho in rhos], dim=1),
    )
