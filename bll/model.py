"""A trained network: forward blocks, their readouts, and the class tables that the backward twin has come to.

Shapes: B batch, P natural parameters per unit, D units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from bll import checkpoint, data
from bll.blocks import build_block
from bll.data import Dataset
from bll.errors import CheckpointError, DataError
from bll.events import Evaluation
from bll.exits import EvaluationMeter
from bll.losses import Objective
from bll.manifest import Manifest
from bll.plan import Plan
from bll.readouts import Readout
from bll.sending import Sender
from bll.twins import ClassTable
from bll.uncertainty import Prediction, predict

_BATCH = 512


class Network(nn.Module):
    """All forward blocks in a row, with an exit at each boundary. The backward network is folded into its tables."""

    def __init__(
        self,
        objective: Objective,
        senders: list[Sender],
        layers: list[nn.Sequential],
        readouts: list[Readout],
        tables: list[ClassTable],
    ) -> None:
        super().__init__()
        self.objective = objective
        self.senders = senders
        self.blocks = nn.ModuleList(layers)
        self.readouts = nn.ModuleList(readouts)
        for index, (beta_CPD, offset_C) in enumerate(tables):
            self.register_buffer(f"beta{index}", beta_CPD)
            self.register_buffer(f"offset{index}", offset_C)

    def tables(self) -> list[ClassTable]:
        """The class table of each boundary."""
        return [
            ClassTable(self.get_buffer(f"beta{index}"), self.get_buffer(f"offset{index}"))
            for index in range(len(self.blocks))
        ]

    def forward(self, inputs: Tensor) -> Prediction:
        """The prediction for plain samples, images in [0, 1]."""
        received, alphas = inputs, []
        for sender, layers, readout in zip(self.senders, self.blocks, self.readouts, strict=True):
            output = layers(received)
            alphas.append(readout(output))
            received = sender.message(output, alphas[-1])
        return predict(self.objective, alphas, self.tables())


class TrainedModel:
    """What `fit` returns."""

    def __init__(self, plan: Plan, network: Network, root: Path | None = None) -> None:
        self.plan = plan
        self.network = network.eval()
        self._root = root
        self._dataset: Dataset | None = None

    @classmethod
    def load(cls, plan: Plan, run_dir: Path, config_digest: str, root: Path | None = None) -> TrainedModel:
        """The network of the newest checkpoint in `run_dir`. Raises CheckpointError if there is none that fits."""
        step = checkpoint.newest(run_dir, config_digest)
        if step is None:
            raise CheckpointError(f"{run_dir}: holds no checkpoint")
        senders, layers, readouts, tables = [], [], [], []
        for index in range(plan.num_blocks):
            tensors = checkpoint.load_block(run_dir, step, index, config_digest)
            block = build_block(plan, index)
            try:
                block.load_state_dict(checkpoint.below("block.", tensors))
            except RuntimeError as error:
                raise CheckpointError(f"{run_dir}: step {step} does not fit block {index}: {error}") from error
            senders.append(Sender(block.readout.family, plan.config, index))
            layers.append(block.layers)
            readouts.append(block.readout)
            tables.append(ClassTable(tensors["table.beta_CPD"], tensors["table.offset_C"]))
        objective = Objective(readouts[0].family, plan.config.loss)
        return cls(plan, Network(objective, senders, layers, readouts, tables), root)

    @torch.no_grad()
    def predict(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of `bll.uncertainty.Prediction` by name, for samples of shape (B, *input_shape).

        uint8 images are scaled to [0, 1]; floats are taken as they are. Raises DataError for another shape or dtype.
        """
        if inputs.shape[1:] != self.plan.input_shape or len(inputs) == 0:
            expected = f"(rows, {', '.join(map(str, self.plan.input_shape))})"
            raise DataError(f"inputs: shape must be {expected}, got {inputs.shape}")
        if inputs.dtype not in (np.uint8, np.float32):
            raise DataError(f"inputs: dtype must be float32 or uint8, got {inputs.dtype}")
        parts = [
            self.network(torch.from_numpy(data.as_float(inputs[start : start + _BATCH])))
            for start in range(0, len(inputs), _BATCH)
        ]
        names = Prediction._fields
        return {name: torch.cat([getattr(part, name) for part in parts]).numpy() for name in names}

    def evaluate(self, split: Literal["validation", "test"]) -> Evaluation:
        """Scores of every prediction on a split of the model's own data set. Raises DataError if it has no rows."""
        rows = getattr(self._data(), split)
        if not len(rows.targets):
            raise DataError(f"split {split!r} of {self.plan.config.data.name!r} has no rows")
        meter = EvaluationMeter(split, self.plan.num_blocks, self.plan.num_classes)
        for start in range(0, len(rows.targets), _BATCH):
            exits_BNC = self.predict(rows.inputs[start : start + _BATCH])["exit_probabilities"]
            smallest = np.finfo(np.float32).tiny
            meter.add(np.log(np.maximum(exits_BNC, smallest)).swapaxes(0, 1), rows.targets[start : start + _BATCH])
        return meter.evaluation(self.plan.config.epochs - 1, self.plan.total_steps)

    @property
    def splits(self) -> tuple[Literal["validation", "test"], ...]:
        """The splits that `evaluate` can score: `test` only if the data set sets test rows apart."""
        return ("validation", "test") if len(self._data().test.targets) else ("validation",)

    def validation_inputs(self, rows: int) -> np.ndarray:
        """That many validation samples as the network takes them, over again if there are fewer."""
        inputs = self._data().validation.inputs
        return data.as_float(inputs[np.arange(rows) % len(inputs)])

    def export(self, directory: Path) -> Manifest:
        """Write `model.onnx` and its manifest into `directory`. Raises ExportError if the graph answers otherwise."""
        from bll.export import export

        return export(self, directory)

    def _data(self) -> Dataset:
        if self._dataset is None:
            self._dataset = data.load(self.plan.config.data, self.plan.config.seed, self._root)
        return self._dataset
