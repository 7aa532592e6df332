"""How a block fares: sums over steps that cost next to nothing, reported a few times an epoch.

Shapes: B batch (sites: rows, or the positions of their targets), C classes, P natural parameters per unit, D units.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from bll.diagnostics import Step, agreement, read
from bll.errors import Diverged
from bll.events import BlockProgress
from bll.losses import LocalLoss, Objective
from bll.plan import Plan
from bll.regression.objective import RegressionLoss, RegressionObjective
from bll.uncertainty import posterior_variance
from bll.wiring import Lines

REPORTS_PER_EPOCH = 10


class ProgressMeter:
    """Gathers the training statistics of one block between two reports."""

    def __init__(self, block: int, plan: Plan, lines: Lines, device: torch.device) -> None:
        """`device`: the block's, where its sums are kept until a report is due."""
        self.block = block
        self.device = device
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

    def report(self, taken: Step, objective: Objective | RegressionObjective, staleness_steps: int) -> BlockProgress:
        """The statistics since the last report, with those of the messages of the last step, `taken`. Then starts
        afresh. Waits for the device, as `add` does not.

        Raises Diverged if the loss is not finite.
        """
        step, alpha_BPD, table, targets_B = taken.number, taken.alpha_BPD, taken.table, taken.targets_B
        with torch.no_grad():
            family = objective.family
            rho_BPD = family.posterior(alpha_BPD, table.beta_CPD[targets_B], taken.mixing)
            kl_B = family.kl(rho_BPD, alpha_BPD).sum(-1)
            variance_BD = posterior_variance(objective, alpha_BPD, table, rho_BPD)
            agreement_B = agreement(alpha_BPD, table, targets_B)
            figures = (self.loss, self.correct, kl_B.mean(), variance_BD.mean(), agreement_B.mean())
            loss, correct, kl, variance, agreed = read(figures)
        self._require_finite(loss, step)
        seconds = time.monotonic() - self.since
        result = BlockProgress(
            block=self.block,
            epoch=(step - 1) // self.plan.steps_per_epoch,
            step=step,
            loss_nats=loss / self.steps,
            kl_nats=kl,
            accuracy=correct / self.sites,
            posterior_variance=variance,
            agreement=agreed,
            mixing=taken.mixing,
            samples_per_s=self.sites / self.plan.num_sites / seconds,
            **self.lines.use()._asdict(),
            staleness_steps=staleness_steps,
        )
        self._clear()
        return result

    def check_finite(self, step: int) -> None:
        """Raises Diverged if a loss since the last report was not finite. Waits for the device."""
        self._require_finite(float(self.loss), step)

    def _require_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise Diverged(f"block {self.block}: the local loss is {loss} at step {step}")

    def _clear(self) -> None:
        self.loss = torch.zeros((), device=self.device)
        self.correct = torch.zeros((), dtype=torch.float64, device=self.device)
        self.steps = self.sites = 0
        self.restart_clock()
