"""The mixing parameter m of rho_k = EF(a_k + m b_k), as a function of the epoch."""

from __future__ import annotations

import math

from bll.config import MixingConfig, MixingSchedule


def mixing_at(config: MixingConfig, epoch: int) -> float:
    """m in force during 0-based `epoch`: `start` at epoch 0, `end` from epoch `ramp_epochs` on."""
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
    return config.start + share * (config.end - config.start)
