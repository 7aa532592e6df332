"""How a block fares: sums over steps that cost next to nothing, reported a few times an epoch.

Shapes: B batch (sites: rows, or the positions of their targets), C classes, P natural parameters per unit, D units.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from bll.diagnostics import agreement
from bll.errors import Diverged
from bll.events import BlockProgress
from bll.losses import LocalLoss, Objective
from bll.plan import Plan
from bll.regression.objective import RegressionLoss, RegressionObjective
from bll.twins import ClassTable
from bll.uncertainty import posterior_variance
from bll.wiring import Lines

REPORTS_PER_EPOCH = 10


class ProgressMeter:
    """Gathers the training statistics of one block between two reports."""

    def __init__(self, block: int, plan: Plan, lines: Lines) -> None:
        self.block = block
        self.plan = plan
        self.lines = lines
        self.interval = max(1, plan.steps_per_epoch // REPORTS_PER_EPOCH)
        self._clear()

    def add(self, local: LocalLoss | RegressionLoss, targets_B: Tensor) -> None:
        """Count one step. Nothing is read back from the device."""
        with torch.no_grad():
            self.loss += local.loss_B.mean()
            self.correct += local.correct(targets_B)
        self.steps += 1
        self.sites += len(targets_B)

    def restart_clock(self) -> None:
        """Leave what came before out of the throughput."""
        self.since = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to report after `step` steps: every tenth of an epoch, the last tenth to its very end."""
        in_epoch = step % self.plan.steps_per_epoch
        remaining = self.plan.steps_per_epoch - in_epoch
        return in_epoch == 0 or (in_epoch % self.interval == 0 and remaining >= self.interval)

    def report(
        self,
        step: int,
        objective: Objective | RegressionObjective,
        alpha_BPD: Tensor,
        table: ClassTable,
        targets_B: Tensor,
        mixing: float,
    ) -> BlockProgress:
        """The statistics since the last report, with those of the messages of the last step. Then starts afresh.

        Raises Diverged if the loss is not finite.
        """
        self.check_finite(step)
        with torch.no_grad():
            family = objective.family
            rho_BPD = family.posterior(alpha_BPD, table.beta_CPD[targets_B], mixing)
            kl_B = family.kl(rho_BPD, alpha_BPD).sum(-1)
            variance_BD = posterior_variance(objective, alpha_BPD, table, rho_BPD)
            agreement_B = agreement(alpha_BPD, table, targets_B)
        seconds = time.monotonic() - self.since
        result = BlockProgress(
            block=self.block,
            epoch=(step - 1) // self.plan.steps_per_epoch,
            step=step,
            loss_nats=float(self.loss) / self.steps,
            kl_nats=float(kl_B.mean()),
            accuracy=float(self.correct) / self.sites,
            posterior_variance=float(variance_BD.mean()),
            agreement=float(agreement_B.mean()),
            mixing=mixing,
            samples_per_s=self.sites / self.plan.num_sites / seconds,
            **self.lines.use()._asdict(),
        )
        self._clear()
        return result

    def check_finite(self, step: int) -> None:
        """Raises Diverged if a loss since the last report was not finite."""
        if not torch.isfinite(self.loss):
            raise Diverged(f"block {self.block}: the local loss is {float(self.loss)} at step {step}")

    def _clear(self) -> None:
        self.loss = torch.zeros(())
        self.correct = torch.zeros((), dtype=torch.float64)
        self.steps = self.sites = 0
        self.restart_clock()
