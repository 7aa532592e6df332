"""The outcome of resolving a config: what will be trained, block by block. Torch is not imported here."""

import math
from dataclasses import dataclass

from bll.choices import LossName, ReadoutName, TargetName
from bll.config import TrainingConfig


@dataclass(frozen=True)
class BlockPlan:
    """One block, as it will be built."""

    first_layer: int
    """Index of its first layer."""
    layers: tuple[str, ...]
    """Its layers, in words, in order."""
    parameters: int
    """Trainable parameters: layers, readout, backward twin, and what the rule learns to bring errors to layers with."""
    flops: int
    """Multiply-adds of one sample's forward pass through layers and readout, times two."""
    output_shape: tuple[int, ...]
    """Shape of one sample of its output, and so of the message that it sends on (but of a `natural` one that has two
    parameters a unit)."""
    activation_bytes: int
    """What a training step keeps of one sample until its backward pass: the message received, and what its layers
    and readout save."""

    @property
    def parameter_bytes(self) -> int:
        """Of the parameters, their gradients, and the two moments that the optimizer keeps, in float32."""
        return 16 * self.parameters

    def training_bytes(self, rows: int) -> int:
        """What training takes with `rows` samples a batch, its loss not counted."""
        return self.parameter_bytes + rows * self.activation_bytes


@dataclass(frozen=True)
class Plan:
    """A resolved run: a config with nothing left open, and what follows from it."""

    config: TrainingConfig
    """`network.widths`, `blocks.cuts`, `data.train_rows`, `data.validation_rows`, `executor.checkpoint_steps` and
    `executor.devices` are explicit."""
    blocks: tuple[BlockPlan, ...]
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    """Empty where targets are real-valued."""
    steps_per_epoch: int
    dataset_digest: str
    """SHA-256 of the data set's content, in hex."""
    warnings: tuple[str, ...] = ()
    target_shape: tuple[int, ...] = ()
    """Shape of one sample's target: () = one class, (T,) = a class for each position, (H, W) = one for each pixel."""

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def units(self) -> tuple[range, ...]:
        """The blocks of each part that one worker must hold whole: one, or all where local losses reach over
        boundaries."""
        if self.config.loss.span > 1:
            return (range(self.num_blocks),)
        return tuple(range(index, index + 1) for index in range(self.num_blocks))

    def training_bytes(self, block: int) -> int:
        """What training block `block` takes, about: `BlockPlan.training_bytes`, and what its loss keeps, a float32 of
        every unit for every class (for loss `in_batch` every other row's target) and sample drawn."""
        config, rows = self.config, self.config.batch_size
        units = config.latent.units
        if config.latent.readout is ReadoutName.IDENTITY:
            units = math.prod(self.blocks[block].output_shape)
        answers = rows if config.loss.name is LossName.IN_BATCH else self.num_sites * self.num_classes
        loss_bytes = 4 * rows * answers * units * max(1, config.loss.samples)
        return self.blocks[block].training_bytes(rows) + loss_bytes

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_sites(self) -> int:
        """Classes to predict of each sample: 1, or the positions of its target."""
        return math.prod(self.target_shape)

    @property
    def is_regression(self) -> bool:
        """Whether targets are real-valued: the inputs themselves."""
        return self.config.data.target is TargetName.INPUTS

    @property
    def exit_values(self) -> int:
        """Numbers that an exit says of one sample: log-probabilities, or a mean and a variance of each value."""
        return 2 * math.prod(self.input_shape) if self.is_regression else self.num_sites * self.num_classes

    @property
    def validation_batches(self) -> int:
        """Batches of an evaluation; the last may be smaller."""
        return -(-self.config.data.validation_rows // self.config.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs
