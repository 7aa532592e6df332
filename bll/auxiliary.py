"""What a block learns from beside L_k: terms with small networks of their own, which training alone runs.

Each is local: it sees what the block received, what the block put out, and the targets of the batch.
Shapes: B batch.
"""

from __future__ import annotations

import math

from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bll.choices import LossName
from bll.config import LatentConfig, LossConfig
from bll.losses import LocalLoss
from bll.precision import in_float32
from bll.prototypes import Prototypes
from bll.regression.objective import RegressionLoss
from bll.similarity import SimilarityMatching


class Auxiliary(nn.Module):
    """The terms of `loss` that one block learns from beside L_k, and the weight of them all."""

    def __init__(
        self,
        received_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        num_classes: int,
        loss: LossConfig,
        latent: LatentConfig,
        block: int,
    ) -> None:
        super().__init__()
        self.config = loss
        self.weight = loss.block_weights[block] if loss.block_weights else 1.0
        self.similarity = SimilarityMatching(output_shape, num_classes) if loss.similarity else None
        self.decoder = None
        if loss.reconstruction or loss.name is LossName.PROTOTYPE:
            self.decoder = make_decoder(output_shape, received_shape)
        self.prototypes = None
        if loss.name is LossName.PROTOTYPE:
            self.prototypes = Prototypes(output_shape, num_classes, latent.readout_grid)

    def readers(self) -> list[nn.Module]:
        """The networks that the block's output goes through."""
        readers = [self.similarity and self.similarity.network, self.decoder]
        return [reader for reader in readers if reader is not None]

    def forward(
        self,
        local: LocalLoss | RegressionLoss,
        received: Tensor,
        output: Tensor,
        targets_B: Tensor,
        generator: Generator,
    ) -> Tensor:
        """What the block's step descends, a scalar in which L_k is the mean over the batch.

        `received` is what the block's output was computed from; no gradient goes there.
        """
        loss = local.loss_B.mean()
        if self.readers():
            received, output = in_float32(received), in_float32(output)
        if self.similarity:
            beta = self.config.similarity
            loss = (1 - beta) * loss + beta * self.similarity(output, targets_B)
        if self.prototypes and self.decoder:
            noisy = self.prototypes.noisy(output, generator)
            loss = loss + self.prototypes(output, targets_B) + F.mse_loss(self.decoder(noisy), received.detach())
        elif self.decoder:
            loss = loss + self.config.reconstruction * F.mse_loss(self.decoder(output), received.detach())
        return loss if self.weight == 1.0 else self.weight * loss


def make_decoder(output_shape: tuple[int, ...], received_shape: tuple[int, ...]) -> nn.Module:
    """A network from a block's output back to what it received: from image to image scaling up, where the sizes
    differ, and a 3x3 convolution; else a linear map."""
    if len(output_shape) == len(received_shape) == 3:
        (channels, *size), (received_channels, *received_size) = output_shape, received_shape
        convolution = nn.Conv2d(channels, received_channels, 3, padding=1)
        if size == received_size:
            return convolution
        return nn.Sequential(nn.Upsample((received_size[0], received_size[1])), convolution)
    linear = nn.Linear(math.prod(output_shape), math.prod(received_shape))
    return nn.Sequential(nn.Flatten(), linear, nn.Unflatten(1, received_shape))
