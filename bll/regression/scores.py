"""Scores of real-valued predictions: each exit, and the uniform mixture of all.

Shapes: B batch, K exits, X values of one target.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bll import data
from bll.evaluation import rank_correlation
from bll.events import RegressionEvaluation, RegressionScores
from bll.exits import EvaluationMeter
from bll.plan import Plan
from bll.regression.decoders import normal_nll

INTERVAL = 0.9
"""Probability of the central interval whose coverage is scored."""

_RANKED_VALUES = 64
"""Values of a row that are ranked at most: all of 10,000 images take long to sort, and say no more."""


class RegressionMeter:
    """Scores a network's exits batch by batch over one split."""

    def __init__(self, split: str, num_exits: int) -> None:
        self.split = split
        self.rows = 0
        self.mixture = _Meter()
        self.exits = [_Meter() for _ in range(num_exits)]

    def add(self, exits_KB2Y: np.ndarray, targets_BY: np.ndarray) -> None:
        """Count one batch of each exit's mean and variance, and the true values as the data set stores them."""
        exits_KB2X = torch.from_numpy(exits_KB2Y).double().flatten(3)
        targets_BX = torch.from_numpy(data.as_float(targets_BY)).double().flatten(1)
        means_KBX, variances_KBX = exits_KB2X.unbind(2)
        # A row's density is a product over its values, so exits are mixed by their joint densities.
        nll_KB = torch.stack([normal_nll(exit_B2X, targets_BX).sum(1) for exit_B2X in exits_KB2X])
        below_KBX = torch.special.ndtr((targets_BX - means_KBX) / variances_KBX.sqrt())
        each = zip(self.exits, means_KBX, variances_KBX, nll_KB, below_KBX, strict=True)
        for meter, mean_BX, variance_BX, nll_B, below_BX in each:
            meter.add(targets_BX, mean_BX, variance_BX, nll_B, below_BX)
        self.mixture.add(
            targets_BX,
            means_KBX.mean(0),
            variances_KBX.mean(0) + means_KBX.var(0, correction=0),
            math.log(len(nll_KB)) - torch.logsumexp(-nll_KB, dim=0),
            below_KBX.mean(0),  # the distribution function of a mixture of single values is that of its parts, mixed
        )
        self.rows += len(targets_BX)

    def evaluation(self, epoch: int, step: int) -> RegressionEvaluation:
        """The scores of all that was added."""
        mixture, exits = self.mixture.scores(), tuple(meter.scores() for meter in self.exits)
        mean_nll = sum(scores.nll_nats for scores in exits) / len(exits)
        return RegressionEvaluation(
            split=self.split,
            epoch=epoch,
            step=step,
            rows=self.rows,
            mixture=mixture,
            exits=exits,
            mixture_gap_nats=mean_nll - mixture.nll_nats,
        )


def make_meter(split: str, plan: Plan) -> EvaluationMeter | RegressionMeter:
    """What scores the exits of the plan's network on one split."""
    if plan.is_regression:
        return RegressionMeter(split, plan.num_blocks)
    return EvaluationMeter(split, plan)


class _Meter:
    """Scores of one predictive distribution."""

    def __init__(self) -> None:
        self._rows = 0
        self._nll_nats = 0.0
        self._covered = 0.0
        self._squared_X: Tensor | float = 0.0
        self._ranked: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]] = []
        """Variance, squared error and place of the values that are ranked."""
        self._sample_variances: list[NDArray[np.float64]] = []
        self._sample_errors: list[NDArray[np.float64]] = []

    def add(self, targets_BX: Tensor, mean_BX: Tensor, variance_BX: Tensor, nll_B: Tensor, below_BX: Tensor) -> None:
        """Count rows; `below_BX` is the predicted probability of less than the true value."""
        squared_BX = (targets_BX - mean_BX).square()
        tail = (1 - INTERVAL) / 2
        self._nll_nats += float(nll_B.sum())
        self._covered += int(((below_BX >= tail) & (below_BX <= 1 - tail)).sum())
        self._squared_X = self._squared_X + squared_BX.sum(0)
        rows_B1 = torch.arange(self._rows, self._rows + len(targets_BX)).unsqueeze(1)
        places_X = torch.arange(targets_BX.shape[1])
        stride = -(-len(places_X) // _RANKED_VALUES)
        chosen_BX = (places_X - rows_B1) % stride == 0  # every place is chosen in one row of `stride`
        places_BX = places_X.expand_as(squared_BX)
        self._ranked.append(
            (variance_BX[chosen_BX].numpy(), squared_BX[chosen_BX].numpy(), places_BX[chosen_BX].numpy())
        )
        self._sample_variances.append(variance_BX.mean(1).numpy())
        self._sample_errors.append(squared_BX.mean(1).numpy())
        self._rows += len(targets_BX)

    def scores(self) -> RegressionScores:
        """Scores of the rows so far. Raises ValueError when there are none."""
        if not self._rows:
            raise ValueError("no rows to score")
        assert isinstance(self._squared_X, Tensor)
        error_X = self._squared_X.numpy() / self._rows
        variance, squared, place = (np.concatenate(parts) for parts in zip(*self._ranked, strict=True))
        values = self._rows * len(error_X)
        return RegressionScores(
            mse=float(error_X.mean()),
            nll_nats=self._nll_nats / values,
            coverage=self._covered / values,
            rank_correlation=rank_correlation(variance, squared),
            map_rank_correlation=rank_correlation(error_X[place], squared),
            sample_rank_correlation=rank_correlation(
                np.concatenate(self._sample_variances), np.concatenate(self._sample_errors)
            ),
        )
