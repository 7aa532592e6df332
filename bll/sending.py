"""What a block sends on: its output, or, with readout `identity`, what the density alpha_k of its latent says.

One place for training, evaluation, prediction and the exported graph. Shapes: B batch, P natural parameters per unit,
D units; a message has the shape of the block's output, with P times as many channels (of vectors, features) if it is
`natural`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bll.choices import MessageName
from bll.config import LatentConfig, TrainingConfig
from bll.families import Family
from bll.precision import in_float32
from bll.seeding import derive

_EPSILON = 1e-6
"""Added to the mean square that a message is divided by the root of: a sample of zeros stays one."""


class Sender:
    """Makes the messages msg_k of one block."""

    def __init__(
        self, family: Family, config: TrainingConfig, block: int, generator: torch.Generator | None = None
    ) -> None:
        """`generator`: source of what training draws, on the block's device."""
        self.family = family
        self.config = config
        self.block = block
        self._generator = generator or torch.Generator()

    @property
    def reads_latent(self) -> bool:
        """Whether a message waits for alpha_k; else it is the block's output, and can leave before the readout."""
        return self.config.latent.message is not MessageName.OUTPUT

    def message(self, output: Tensor, alpha_BPD: Tensor) -> Tensor:
        """The message in evaluation: nothing in it is random, `sample` sends the mean."""
        match self.config.latent.message:
            case MessageName.OUTPUT:
                return self.of_output(output)
            case MessageName.MEAN | MessageName.SAMPLE:
                return self._scaled(self.family.mean(alpha_BPD).reshape(output.shape))
            case MessageName.NATURAL:
                shape = message_shape(tuple(output.shape[1:]), self.family, self.config.latent)
                return self._scaled(alpha_BPD.reshape(-1, *shape))

    def training_message(
        self, output: Tensor, alpha_BPD: Tensor, beta_BPD: Tensor, mixing: float, epoch: int, step: int
    ) -> Tensor:
        """The message of a training step; `beta_BPD` are the backward messages of the rows' own targets."""
        latent, seed = self.config.latent, self.config.seed
        if latent.message is MessageName.SAMPLE:
            self._generator.manual_seed(derive(seed, "message", self.block, step))
            return self._scaled(self.family.sample(alpha_BPD, self._generator).reshape(output.shape))
        probability = bootstrap_probability(latent, epoch)
        if not probability:
            return self.message(output, alpha_BPD)
        self._generator.manual_seed(derive(seed, "bootstrap", self.block, step))
        chosen_B1 = torch.rand(len(output), 1, generator=self._generator, device=output.device) < probability
        rho_BPD = self.family.posterior(alpha_BPD, beta_BPD, mixing)
        mean_BD = torch.where(chosen_B1, self.family.mean(rho_BPD), self.family.mean(alpha_BPD))
        return self._scaled(mean_BD.reshape(output.shape))

    def of_output(self, output: Tensor) -> Tensor:
        """The block's output as its message."""
        return self._scaled(output)

    def _scaled(self, message: Tensor) -> Tensor:
        if not self.config.blocks.normalize_messages:
            return message
        message = in_float32(message)
        mean_square = message.square().mean(tuple(range(1, message.ndim)), keepdim=True)
        return message / (mean_square + _EPSILON).sqrt()


def bootstrap_probability(latent: LatentConfig, epoch: int) -> float:
    """Probability that a sample's message is the posterior's mean in 0-based `epoch`: falls linearly, then 0."""
    return latent.bootstrap * max(0.0, 1 - epoch / latent.bootstrap_epochs)


def message_shape(output_shape: tuple[int, ...], family: Family, latent: LatentConfig) -> tuple[int, ...]:
    """Shape of one sample of the message of a block whose output has `output_shape`."""
    if latent.message is not MessageName.NATURAL:
        return output_shape
    return (family.num_parameters * output_shape[0], *output_shape[1:])
