"""A trained network of real-valued targets: forward blocks, the decoders of their exits, and the target encoders.

Shapes: B batch, P natural parameters per unit, D units, Y the shape of one target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bll.blocks import Block
from bll.data import as_float
from bll.errors import DataError
from bll.events import RegressionEvaluation
from bll.families import Family
from bll.mixing import Mixing
from bll.plan import Plan
from bll.regression.calibration import (
    Errors,
    RegressionCalibration,
    RegressionCalibrationScores,
    calibrate_regression,
    score_intervals,
)
from bll.regression.objective import RegressionPrediction, predict
from bll.regression.scores import RegressionMeter
from bll.sending import Sender
from bll.trained import Trained, input_batches, lineage, loaded_blocks

_BATCH = 512


class RegressionNetwork(nn.Module):
    """All blocks in a row, with an exit at each boundary. The encoders stay: a sample is its own target."""

    def __init__(self, senders: Sequence[Sender], blocks: Sequence[Block], mixings: Sequence[float]) -> None:
        """`mixings`: m of each block's posterior rho_k."""
        super().__init__()
        self.senders = senders
        self.mixings = mixings
        self.blocks = nn.ModuleList(blocks)
        self.family: Family = blocks[0].readout.family

    def forward(self, inputs: Tensor) -> RegressionPrediction:
        """The prediction for plain samples, images in [0, 1]."""
        received, exits, alphas, rhos = inputs, [], [], []
        for sender, mixing, block in zip(self.senders, self.mixings, self.blocks, strict=True):
            assert isinstance(block, Block)
            assert block.decoder is not None
            output = block.layers(received)
            alpha_BPD = block.readout(output)
            exits.append(block.decoder(self.family.mean(alpha_BPD)))
            alphas.append(alpha_BPD)
            rho_BPD = self.family.posterior(alpha_BPD, block.twin(inputs).beta_CPD, mixing) if mixing else alpha_BPD
            rhos.append(rho_BPD)
            received = sender.message(output, alpha_BPD)
        return predict(self.family, exits, alphas, rhos)


class CalibratedRegressionNetwork(nn.Module):
    """A trained network and what its validation rows have taught."""

    def __init__(self, network: RegressionNetwork, variance_scale: float) -> None:
        super().__init__()
        self.network = network
        self.variance_scale = variance_scale

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The fields of the network's prediction for plain samples, then `calibrated_variance`."""
        prediction: RegressionPrediction = self.network(inputs)
        return (*prediction, self.variance_scale * prediction.output_variance)


class RegressionModel(Trained):
    """What `fit_regression` returns."""

    output_names = (*RegressionPrediction._fields, "calibrated_variance")
    """What `predict` answers with."""

    def __init__(self, plan: Plan, network: RegressionNetwork, root: Path | None = None) -> None:
        super().__init__(plan, root)
        self.network = network.eval()

    @classmethod
    def load(cls, plan: Plan, run_dir: Path, config_digest: str, root: Path | None = None) -> RegressionModel:
        """The network of the newest checkpoint in `run_dir`. Raises CheckpointError if there is none that fits."""
        senders, blocks, mixings = [], [], []
        for index, (block, tensors) in enumerate(loaded_blocks(plan, run_dir, config_digest)):
            mixing = Mixing(plan.config.mixing)
            mixing.restore(tensors["mixing"])
            senders.append(Sender(block.readout.family, plan.config, index))
            blocks.append(block)
            mixings.append(mixing.at(plan.config.epochs - 1))
        model = cls(plan, RegressionNetwork(senders, blocks, mixings), root)
        model.continuations = lineage(run_dir, config_digest)
        return model

    @cached_property
    def calibration(self) -> RegressionCalibration:
        """What the validation rows have taught, in a pass over them when first asked."""
        return calibrate_regression(self._errors("validation"))

    @cached_property
    def served(self) -> CalibratedRegressionNetwork:
        """The module that answers with `output_names`."""
        return CalibratedRegressionNetwork(self.network, self.calibration.mixture.variance_scale).eval()

    def predict(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of `bll.regression.objective.RegressionPrediction` by name, and `calibrated_variance`: the output
        variance, shape (B, *Y), scaled to be that of the errors on validation rows.

        `inputs` has shape (B, *input_shape); uint8 images are scaled to [0, 1], floats are taken as they are.
        Raises DataError for another shape or dtype.
        """
        return self._answers(self.served, self.output_names, inputs)

    def interval(
        self, inputs: np.ndarray, coverage: float, exit_index: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends, of shape (B, *Y), of intervals that hold a fraction `coverage` of all true values.

        By the mixture, or by one exit. The fraction is that over all values of new rows, on average: rows of the kind
        that validation rows are. One row's, or one pixel's, may be less. Intervals are nested in the coverage;
        infinite ones where validation rows are too few for it.
        Raises InvalidConfig unless `coverage` is between 0.5 and 0.999, and as `predict` does.
        """
        head = self.calibration.mixture if exit_index is None else self.calibration.exits[exit_index]
        half_width = head.half_width(coverage)
        answers = self._answers(self.network, RegressionPrediction._fields, inputs)
        mean, variance = answers["mean"], answers["output_variance"]
        if exit_index is not None:
            mean, variance = answers["exit_means"][:, exit_index], answers["exit_variances"][:, exit_index]
        margin = half_width * np.sqrt(variance)
        return mean - margin, mean + margin

    def evaluate(self, split: Literal["validation", "test"]) -> RegressionEvaluation:
        """Scores of every prediction on a split of the model's own data set. Raises DataError if it has no rows."""
        meter = RegressionMeter(split, self.plan.num_blocks)
        for prediction, targets in self._over(split):
            exits_BN2Y = np.stack((prediction["exit_means"], prediction["exit_variances"]), axis=2)
            meter.add(exits_BN2Y.swapaxes(0, 1), targets)
        return meter.evaluation(self.plan.config.epochs - 1, self.plan.total_steps)

    def evaluate_calibration(self, split: Literal["validation", "test"]) -> RegressionCalibrationScores:
        """Coverage and width of the mixture's intervals, before and after. Raises DataError if it has no rows."""
        return score_intervals(self.calibration, split, self._errors(split))

    def scores(self) -> dict[str, Any]:
        """The fields of a manifest that tell how good the model is."""
        return {
            "evaluations": (),
            "regression_evaluations": tuple(self.evaluate(split) for split in self.splits),
            "regression_calibration": self.calibration,
            "regression_calibration_scores": self.evaluate_calibration("test") if "test" in self.splits else None,
        }

    def _errors(self, split: str) -> Iterator[Errors]:
        """Errors and predicted deviations of the mixture and each exit on a split, batch by batch."""
        for prediction, targets in self._over(split):
            mean_B1Y, variance_B1Y = prediction["mean"][:, None], prediction["output_variance"][:, None]
            means_BHY = np.concatenate((mean_B1Y, prediction["exit_means"]), axis=1)
            variances_BHY = np.concatenate((variance_B1Y, prediction["exit_variances"]), axis=1)
            errors_BHY = np.abs(as_float(targets)[:, None] - means_BHY)
            shape = (*errors_BHY.shape[:2], -1)
            yield Errors(errors_BHY.reshape(shape), np.sqrt(variances_BHY).reshape(shape))

    def _over(self, split: str) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """What the network says of a split, with the targets, batch by batch. Raises DataError if it has no rows."""
        inputs = getattr(self.dataset, split).inputs
        if not len(inputs):
            raise DataError(f"split {split!r} of {self.plan.config.data.name!r} has no rows")
        for start in range(0, len(inputs), _BATCH):
            targets = inputs[start : start + _BATCH]
            yield self._answers(self.network, RegressionPrediction._fields, targets), targets

    @torch.no_grad()
    def _answers(self, module: nn.Module, names: tuple[str, ...], inputs: np.ndarray) -> dict[str, np.ndarray]:
        parts = [module(batch) for batch in input_batches(inputs, self.plan.input_shape, _BATCH)]
        return {name: torch.cat(values).numpy() for name, values in zip(names, zip(*parts, strict=True), strict=True)}
