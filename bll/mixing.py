"""The mixing parameter m of rho_k ∝ alpha_k beta_k^m, over the epochs of one block."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bll.choices import MixingSchedule
from bll.config import MixingConfig


class Mixing:
    """m of one block: by the epoch alone, or, with schedule `auto`, by how its messages agree."""

    def __init__(self, config: MixingConfig) -> None:
        self.config = config
        self._growths = 0
        """Epochs in which the agreement has grown."""
        self._before = -math.inf
        """Mean agreement of the epoch before."""
        self._seen: list[float] = []

    def at(self, epoch: int) -> float:
        """m in force during 0-based `epoch`: `start` at first, `end` after `ramp_epochs` (of growth, if `auto`)."""
        config = self.config
        done = min(epoch / config.ramp_epochs, 1.0)
        match config.schedule:
            case MixingSchedule.CONSTANT:
                return config.start
            case MixingSchedule.LINEAR:
                share = done
            case MixingSchedule.COSINE:
                share = (1 - math.cos(math.pi * done)) / 2
            case MixingSchedule.STEP:
                share = 1.0 if done >= 1.0 else 0.0
            case MixingSchedule.AUTO:
                share = min(self._growths / config.ramp_epochs, 1.0)
        return config.start + share * (config.end - config.start)

    def observe(self, agreement: float) -> None:
        """Take in the agreement of forward and backward message at one report."""
        self._seen.append(agreement)

    def end_epoch(self) -> None:
        """Compare this epoch's agreement with that of the epoch before."""
        mean = sum(self._seen) / len(self._seen)
        self._growths += mean > self._before and self._before > -math.inf
        self._before, self._seen = mean, []

    def state(self) -> Tensor:
        """What a checkpoint keeps."""
        return torch.tensor([self._growths, self._before, *self._seen], dtype=torch.float64)

    def restore(self, state: Tensor) -> None:
        """Take over what `state` gave."""
        growths, self._before, *self._seen = state.tolist()
        self._growths = int(growths)
