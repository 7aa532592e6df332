"""A trained network of real-valued targets: forward blocks, the decoders of their exits, and the target encoders.

Shapes: B batch, P natural parameters per unit, D units, Y the shape of one target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bll.blocks import Block
from bll.errors import DataError
from bll.events import RegressionEvaluation
from bll.families import Family
from bll.mixing import Mixing
from bll.plan import Plan
from bll.regression import RegressionPrediction, predict
from bll.regression_scores import RegressionMeter
from bll.sending import Sender
from bll.trained import Trained, input_batches, loaded_blocks

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


class RegressionModel(Trained):
    """What `fit_regression` returns."""

    output_names = RegressionPrediction._fields
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
        return cls(plan, RegressionNetwork(senders, blocks, mixings), root)

    @property
    def served(self) -> RegressionNetwork:
        """The module that answers with `output_names`."""
        return self.network

    @torch.no_grad()
    def predict(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of `bll.regression.RegressionPrediction` by name.

        `inputs` has shape (B, *input_shape); uint8 images are scaled to [0, 1], floats are taken as they are.
        Raises DataError for another shape or dtype.
        """
        parts = [self.network(batch) for batch in input_batches(inputs, self.plan.input_shape, _BATCH)]
        names = self.output_names
        return {name: torch.cat(values).numpy() for name, values in zip(names, zip(*parts, strict=True), strict=True)}

    def evaluate(self, split: Literal["validation", "test"]) -> RegressionEvaluation:
        """Scores of every prediction on a split of the model's own data set. Raises DataError if it has no rows."""
        inputs = getattr(self.dataset, split).inputs
        if not len(inputs):
            raise DataError(f"split {split!r} of {self.plan.config.data.name!r} has no rows")
        meter = RegressionMeter(split, self.plan.num_blocks)
        for start in range(0, len(inputs), _BATCH):
            targets = inputs[start : start + _BATCH]
            prediction = self.predict(targets)
            exits_BN2Y = np.stack((prediction["exit_means"], prediction["exit_variances"]), axis=2)
            meter.add(exits_BN2Y.swapaxes(0, 1), targets)
        return meter.evaluation(self.plan.config.epochs - 1, self.plan.total_steps)

    def scores(self) -> dict[str, Any]:
        """The fields of a manifest that tell how good the model is."""
        return {"evaluations": (), "regression_evaluations": tuple(self.evaluate(split) for split in self.splits)}
