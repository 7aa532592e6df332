"""What `fit` returns: a trained network that classifies, with its data, its scores and its calibration.

Shapes: B batch, P natural parameters per unit, D units.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bll.calibrated import Calibrated, CalibratedNetwork, exit_log_probs, fit_calibrated
from bll.calibration import Calibration, CalibrationScores, score_calibration
from bll.choices import TargetName
from bll.data import Split
from bll.errors import DataError
from bll.evaluation import confusion
from bll.events import Evaluation
from bll.exits import EvaluationMeter
from bll.losses import Objective
from bll.network import Network
from bll.plan import Plan
from bll.rules import Rules
from bll.sending import Sender
from bll.steps import Labelled, Step, run
from bll.trained import Trained, input_batches, lineage, loaded_blocks
from bll.twins import ClassTable
from bll.uncertainty import LabelledPosterior, Latent, Prediction, labelled, latent

_BATCH = 512
_BATCH_SITES = 8192
"""Fewer rows at a time where each has many positions: the posterior of every class at every one is held at once."""


class TrainedModel(Trained):
    """What `fit` returns."""

    def __init__(self, plan: Plan, network: Network, root: Path | None = None) -> None:
        super().__init__(plan, root)
        self.network = network.eval()

    @classmethod
    def load(cls, plan: Plan, run_dir: Path, config_digest: str, root: Path | None = None) -> TrainedModel:
        """The network of the newest checkpoint in `run_dir`. Raises CheckpointError if there is none that fits."""
        senders, layers, readouts, tables = [], [], [], []
        for index, (block, tensors) in enumerate(loaded_blocks(plan, run_dir, config_digest)):
            senders.append(Sender(block.readout.family, plan.config, index))
            layers.append(block.layers)
            readouts.append(block.readout)
            tables.append(ClassTable(tensors["table.beta_CPD"], tensors["table.offset_C"]))
        objective = Objective(readouts[0].family, plan.config.loss)
        model = cls(plan, Network(objective, senders, layers, readouts, tables, plan.target_shape), root)
        model.continuations = lineage(run_dir, config_digest)
        return model

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `predict` answers with: the fields of `Prediction`, and those of `Calibrated` where there are any."""
        return Prediction._fields + (Calibrated._fields if self.calibration else ())

    @property
    def calibration(self) -> Calibration | None:
        """What the validation rows have taught, in a pass over them when first asked; None but for one class a row."""
        return self._fitted[1]

    @property
    def served(self) -> nn.Module:
        """The module that answers with `output_names`: the network as calibrated, or as it is."""
        return self._fitted[0]

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """`served`, block by block."""
        calibrated = self.served if isinstance(self.served, CalibratedNetwork) else None
        return tuple(Step(self.network, index, calibrated).eval() for index in range(self.plan.num_blocks))

    @cached_property
    def labelled(self) -> Labelled:
        """What tells the posteriors of labelled rows, in an export."""
        return Labelled(self.network)

    @torch.no_grad()
    def predict(self, inputs: np.ndarray, blocks: int | None = None) -> dict[str, np.ndarray]:
        """The fields of `bll.uncertainty.Prediction` and, of targets of one class, `bll.calibrated.Calibrated` by name.

        `inputs` has shape (B, *input_shape); uint8 images are scaled to [0, 1], floats are taken as they are.
        With `blocks`, only so many are run, from the left, and their exits alone answer.
        Raises DataError for another shape or dtype, InvalidConfig for more blocks than there are, or none.
        """
        if blocks is None:
            return self._answers(self.served, self.output_names, inputs)
        rules = Rules()
        rules.whole("blocks", blocks, 1, self.plan.num_blocks)
        rules.done()
        parts = [run(self.steps[:blocks], batch) for batch in self._batches(inputs)]
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in self.output_names}

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """The mixture's probabilities as the network gives them, shape (B, C). Raises as `predict` does."""
        return self._answers(self.network, Prediction._fields, inputs)["probabilities"]

    def conformal_set(self, inputs: np.ndarray, coverage: float, exit_index: int | None = None) -> np.ndarray:
        """Which classes are in each sample's set, shape (B, C): it holds the true one with probability `coverage`.

        By the mixture, or by one exit. Sets are nested in the coverage. One may be empty: no class is likely enough.
        Raises InvalidConfig unless `coverage` is between 0.5 and 0.999, DataError if targets are not one class a row.
        """
        if self.calibration is None:
            raise DataError(f"{self.plan.config.data.name!r}: sets of classes need targets of one class a row")
        head = self.calibration.mixture if exit_index is None else self.calibration.exits[exit_index]
        threshold = head.threshold(coverage)
        if exit_index is None:
            return np.asarray(self.probabilities(inputs) >= threshold)
        exits_BNC = self._answers(self.network, Prediction._fields, inputs)["exit_probabilities"]
        return np.asarray(exits_BNC[:, exit_index] >= threshold)

    @torch.no_grad()
    def latents(self, inputs: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Means and variances of every unit: at each boundary the fields of `bll.uncertainty.Latent` by name.

        Targets with positions have a latent at each: shape (B, *target_shape, D).
        """
        alphas = self._alphas(inputs)
        found = zip(alphas, self.network.tables(), strict=True)
        return [self._arrays(latent(self.network.objective, alpha_BPD, table)) for alpha_BPD, table in found]

    @torch.no_grad()
    def score_labelled(self, inputs: np.ndarray, targets: np.ndarray) -> list[dict[str, np.ndarray]]:
        """The posterior of samples whose class is known: at each boundary the fields of
        `bll.uncertainty.LabelledPosterior` by name. Raises DataError for targets that are no classes.
        """
        classes = self.plan.num_classes
        expected = (len(inputs), *self.plan.target_shape)
        if targets.shape != expected or targets.dtype.kind not in "iu":
            rule = f"must be whole numbers of shape {list(expected)}, got {targets.dtype} {list(targets.shape)}"
            raise DataError(f"targets: {rule}")
        if not (targets.min(initial=0) >= 0 and targets.max(initial=0) < classes):
            raise DataError(f"targets: must be between 0 and {classes - 1}, got {targets.min()} to {targets.max()}")
        targets_B = torch.from_numpy(targets.astype(np.int64)).flatten()
        found = zip(self._alphas(inputs), self.network.tables(), strict=True)
        return [self._arrays(labelled(self.network.objective, alpha, table, targets_B)) for alpha, table in found]

    def evaluate(self, split: Literal["validation", "test"]) -> Evaluation:
        """Scores of every prediction on a split of the model's own data set. Raises DataError if it has no rows."""
        meter = EvaluationMeter(split, self.plan)
        smallest = np.finfo(np.float32).tiny
        for answers, targets in self._over(split):
            exits_NBC = (
                answers["exit_probabilities"].swapaxes(0, 1).reshape(len(meter.exits), -1, self.plan.num_classes)
            )
            meter.add(np.log(np.maximum(exits_NBC, smallest)), targets.reshape(-1))
        return meter.evaluation(self.plan.config.epochs - 1, self.plan.total_steps)

    def confusion(self, split: Literal["validation", "test"], exit_index: int | None = None) -> np.ndarray:
        """How often each class, by row, is predicted as each, by column, on a split: shape (C, C).

        By the mixture, or by one exit. `bll.evaluation.mean_iou` scores a segmentation by it. Raises DataError if the
        split has no rows.
        """
        counts_CC = np.zeros((self.plan.num_classes,) * 2, dtype=np.int64)
        for answers, targets in self._over(split):
            probabilities = answers["probabilities"]
            if exit_index is not None:
                probabilities = answers["exit_probabilities"][:, exit_index]
            counts_CC += confusion(probabilities.argmax(-1), targets, self.plan.num_classes)
        return counts_CC

    def evaluate_calibration(self, split: Literal["validation", "test"]) -> CalibrationScores | None:
        """Scores of the mixture at its temperature, and its sets' coverage; None where there is no calibration."""
        if self.calibration is None:
            return None
        rows: Split = getattr(self.dataset, split)
        return score_calibration(self.calibration, split, exit_log_probs(self.network, rows), rows.targets)

    def scores(self) -> dict[str, Any]:
        """The fields of a manifest that tell how good the model is."""
        return {
            "evaluations": tuple(self.evaluate(split) for split in self.splits),
            "calibration": self.calibration,
            "calibration_scores": self.evaluate_calibration("test") if "test" in self.splits else None,
        }

    @cached_property
    def _fitted(self) -> tuple[nn.Module, Calibration | None]:
        dataset, config = self.dataset, self.plan.config
        if config.data.target is not TargetName.LABELS or dataset.validation.targets.ndim != 1:
            return self.network, None
        return fit_calibrated(self.network, dataset, config.seed)

    def _over(self, split: str) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """What the network says of a split, with the targets, batch by batch. Raises DataError if it has no rows."""
        rows = getattr(self.dataset, split)
        if not len(rows):
            raise DataError(f"split {split!r} of {self.plan.config.data.name!r} has no rows")
        for start in range(0, len(rows), _BATCH):
            inputs = rows.inputs[start : start + _BATCH]
            yield self._answers(self.network, Prediction._fields, inputs), rows.targets[start : start + _BATCH]

    @torch.no_grad()
    def _answers(self, module: nn.Module, names: tuple[str, ...], inputs: np.ndarray) -> dict[str, np.ndarray]:
        parts = [module(batch) for batch in self._batches(inputs)]
        return {name: torch.cat(values).numpy() for name, values in zip(names, zip(*parts, strict=True), strict=True)}

    def _arrays(self, fields: Latent | LabelledPosterior) -> dict[str, np.ndarray]:
        """`fields`, whose rows are sites, by sample."""
        shape = (-1, *self.plan.target_shape)
        return {name: values.numpy().reshape(*shape, *values.shape[1:]) for name, values in fields._asdict().items()}

    def _alphas(self, inputs: np.ndarray) -> list[Tensor]:
        parts = [self.network.boundaries(batch)[1] for batch in self._batches(inputs)]
        return [torch.cat(alphas) for alphas in zip(*parts, strict=True)]

    def _batches(self, inputs: np.ndarray) -> list[Tensor]:
        """`inputs` as the network takes them. Raises DataError if it cannot."""
        batch = max(1, min(_BATCH, _BATCH_SITES // self.plan.num_sites))
        return input_batches(inputs, self.plan.input_shape, batch)
