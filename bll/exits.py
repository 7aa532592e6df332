"""Scores of all predictions that come from the exits: each exit, their mixture, their product.

Shapes: B batch, C classes, K exits.
"""

from __future__ import annotations

import numpy as np

from bll.evaluation import ScoreMeter
from bll.events import Evaluation
from bll.plan import Plan


class EvaluationMeter:
    """Scores a network's exits batch by batch over one split."""

    def __init__(self, split: str, plan: Plan) -> None:
        self.split = split
        self.num_sites = plan.num_sites
        self.rows = 0
        self.mixture, self.product, *self.exits = (ScoreMeter(plan.num_classes) for _ in range(2 + plan.num_blocks))

    def add(self, log_probs_KBC: np.ndarray, targets_B: np.ndarray) -> None:
        """Count one batch of log p_k(y|x) and true classes; of targets with positions, B counts every position."""
        log_exits_KBC = log_probs_KBC.astype(np.float64)
        for meter, log_probs_BC in zip(self.exits, log_exits_KBC, strict=True):
            meter.add(log_probs_BC, targets_B)
        self.mixture.add(log_mixture(log_exits_KBC), targets_B)
        product_BC = log_exits_KBC.sum(0)
        self.product.add(product_BC - _logsumexp(product_BC, axis=1, keepdims=True), targets_B)
        self.rows += len(targets_B) // self.num_sites

    def evaluation(self, epoch: int, step: int) -> Evaluation:
        """The scores of all that was added; the mixture gap is that of the paper's bound (method, section 3)."""
        mixture, exits = self.mixture.scores(), tuple(meter.scores() for meter in self.exits)
        mean_nll = sum(scores.nll_nats for scores in exits) / len(exits)
        return Evaluation(
            split=self.split,
            epoch=epoch,
            step=step,
            rows=self.rows,
            mixture=mixture,
            product=self.product.scores(),
            exits=exits,
            mixture_gap_nats=mean_nll - mixture.nll_nats,
        )


def log_mixture(log_exits_KBC: np.ndarray) -> np.ndarray:
    """log of the exits' uniform mixture, shape (B, C), from log p_k(y|x)."""
    mixture_BC: np.ndarray = _logsumexp(log_exits_KBC, axis=0) - np.log(len(log_exits_KBC))
    return mixture_BC


def _logsumexp(values: np.ndarray, axis: int, *, keepdims: bool = False) -> np.ndarray:
    largest = values.max(axis=axis, keepdims=True)
    result: np.ndarray = np.log(np.exp(values - largest).sum(axis=axis, keepdims=True)) + largest
    if not keepdims:
        result = result.squeeze(axis)
    return result
