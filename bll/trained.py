"""What trained networks share, whatever they predict: their plan, their data, their export, and how they are loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bll import checkpoint, data
from bll.blocks import Block, build_block
from bll.data import Dataset
from bll.errors import CheckpointError, DataError
from bll.lineage import Continuation
from bll.manifest import Manifest
from bll.plan import Plan

if TYPE_CHECKING:
    from bll.steps import Labelled, Step


class Trained(ABC):
    """A network at the end of its run, with its plan."""

    def __init__(self, plan: Plan, root: Path | None) -> None:
        """`root` is where data sets are looked for first."""
        self.plan = plan
        self.continuations: tuple[Continuation, ...] = ()
        """Blocks that went on with older weights when their worker was lost."""
        self._root = root

    @property
    @abstractmethod
    def output_names(self) -> Sequence[str]:
        """What `predict` answers with."""

    @property
    @abstractmethod
    def served(self) -> nn.Module:
        """The module that answers with `output_names`."""

    @property
    def steps(self) -> Sequence[Step]:
        """`served` block by block; none where targets are real-valued."""
        return ()

    @property
    def labelled(self) -> Labelled | None:
        """What tells the posteriors of labelled rows; None where `steps` are none."""
        return None

    @abstractmethod
    def predict(self, inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """The outputs by name for samples of shape (B, *input_shape).

        uint8 images are scaled to [0, 1], floats are taken as they are. Raises DataError for another shape or dtype.
        """

    @abstractmethod
    def scores(self) -> Mapping[str, Any]:
        """The fields of a manifest that tell how good the model is."""

    @cached_property
    def dataset(self) -> Dataset:
        """The model's own data set, read when first asked for. Raises DataError."""
        return data.load(self.plan.config.data, self.plan.config.seed, self._root)

    @property
    def splits(self) -> tuple[Literal["validation", "test"], ...]:
        """The splits that `evaluate` can score: `test` only if the data set sets test rows apart."""
        return ("validation", "test") if len(self.dataset.test) else ("validation",)

    def validation_inputs(self, rows: int) -> np.ndarray:
        """That many validation samples as the network takes them, over again if there are fewer."""
        inputs = self.dataset.validation.inputs
        return data.as_float(inputs[np.arange(rows) % len(inputs)])

    def export(self, directory: Path) -> Manifest:
        """Write the graphs and their manifest into `directory`. Raises ExportError if one answers otherwise."""
        from bll.export import export

        return export(self, directory)


def input_batches(inputs: np.ndarray, input_shape: tuple[int, ...], rows: int) -> list[Tensor]:
    """`inputs` as a network takes them, `rows` at a time. Raises DataError for another shape or dtype."""
    if inputs.shape[1:] != input_shape or len(inputs) == 0:
        expected = f"(rows, {', '.join(map(str, input_shape))})"
        raise DataError(f"inputs: shape must be {expected}, got {inputs.shape}")
    if inputs.dtype not in (np.uint8, np.float32):
        raise DataError(f"inputs: dtype must be float32 or uint8, got {inputs.dtype}")
    starts = range(0, len(inputs), rows)
    return [torch.from_numpy(data.as_float(inputs[start : start + rows])) for start in starts]


def lineage(run_dir: Path, config_digest: str) -> tuple[Continuation, ...]:
    """What the weights of the newest checkpoint in `run_dir` have come through. Raises CheckpointError."""
    return checkpoint.continuations(run_dir, _newest(run_dir, config_digest), config_digest)


def loaded_blocks(plan: Plan, run_dir: Path, config_digest: str) -> Iterator[tuple[Block, dict[str, Tensor]]]:
    """Each block of the newest checkpoint in `run_dir`, and all that the checkpoint holds of it.

    Raises CheckpointError if there is none that fits.
    """
    step = _newest(run_dir, config_digest)
    for index in range(plan.num_blocks):
        tensors = checkpoint.load_block(run_dir, step, index, config_digest)
        block = build_block(plan, index)
        try:
            block.load_state_dict(checkpoint.below("block.", tensors))
        except RuntimeError as error:
            raise CheckpointError(f"{run_dir}: step {step} does not fit block {index}: {error}") from error
        yield block, tensors


def _newest(run_dir: Path, config_digest: str) -> int:
    step = checkpoint.newest(run_dir, config_digest)
    if step is None:
        raise CheckpointError(f"{run_dir}: holds no checkpoint")
    return step
