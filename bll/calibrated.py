"""A network with what its data teaches it after training: calibrated probabilities, and a score of unlike inputs.

For targets of one class a row. Shapes: B batch, C classes, K exits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bll import data
from bll.calibration import Calibration, calibrate
from bll.data import Dataset, Split
from bll.network import Network
from bll.ood import MAX_ROWS, OodScore, fit_ood_score

_BATCH = 512


class Calibrated(NamedTuple):
    """What a calibrated network says beside its prediction."""

    calibrated_probabilities: Tensor
    """The mixture at its temperature, shape (B, C)."""
    ood_score: Tensor
    """1 less the fraction of training rows at least as unlike the others as the sample, 0 to 1, shape (B,)."""


class CalibratedNetwork(nn.Module):
    """A trained network and what was fitted to its answers."""

    def __init__(self, network: Network, calibration: Calibration, ood: OodScore) -> None:
        super().__init__()
        self.network = network
        self.temperatures = [head.temperature for head in calibration.depths]
        """Of the mixture of the first exits, by how many they are."""
        self.ood = ood

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The fields of the network's prediction for plain samples, then those of `Calibrated`."""
        outputs, alphas = self.network.boundaries(inputs)
        prediction = self.network.prediction(alphas)
        tempered_BC = tempered(prediction.probabilities, self.temperatures[-1])
        return (*prediction, *Calibrated(tempered_BC, self.ood(outputs)))


def tempered(probabilities_BC: Tensor, temperature: float) -> Tensor:
    """softmax(log p / T), shape (B, C)."""
    smallest = torch.finfo(probabilities_BC.dtype).tiny
    return torch.softmax(probabilities_BC.clamp(min=smallest).log() / temperature, dim=-1)


@torch.no_grad()
def fit_calibrated(network: Network, dataset: Dataset, seed: int) -> tuple[CalibratedNetwork, Calibration]:
    """`network` calibrated on the validation rows, and on at most MAX_ROWS training rows: one pass over each.

    The result depends on the network, the data and the seed alone.
    """
    calibration = calibrate(exit_log_probs(network, dataset.validation), dataset.validation.targets)
    train = Split(dataset.train.inputs[:MAX_ROWS], dataset.train.targets[:MAX_ROWS])
    ood = fit_ood_score(lambda inputs: network.boundaries(inputs)[0], _batches(train), train.targets, seed)
    return CalibratedNetwork(network, calibration, ood).eval(), calibration


@torch.no_grad()
def exit_log_probs(network: Network, rows: Split) -> np.ndarray:
    """log p_k(y|x) of every row of a split, shape (K, B, C)."""
    exits_BKC = torch.cat([network(inputs).exit_probabilities for inputs in _batches(rows)])
    smallest = torch.finfo(exits_BKC.dtype).tiny
    log_probs_KBC: np.ndarray = exits_BKC.clamp(min=smallest).log().transpose(0, 1).numpy()
    return log_probs_KBC


def _batches(rows: Split) -> Iterator[Tensor]:
    for start in range(0, len(rows), _BATCH):
        yield torch.from_numpy(data.as_float(rows.inputs[start : start + _BATCH]))
