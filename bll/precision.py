"""What a block computes in: float32, or bfloat16 where it loses least.

With `bfloat16` layers and readouts run under autocast: maps and convolutions round what they multiply, and sum in
float32; weights, gradients, moments and running statistics stay float32. Natural parameters, backward messages, losses
and everything that is reported are float32. Messages travel in bfloat16: half the bytes, and the next block's first
map would round them so in any case. What flows left are weights and tables, and stays float32. A trained model
predicts, and is exported, in float32 from the same weights.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from bll.choices import PrecisionName


def message_dtype(precision: PrecisionName) -> torch.dtype:
    """What messages to the right travel in."""
    return torch.bfloat16 if precision is PrecisionName.BFLOAT16 else torch.float32


def in_float32(tensor: Tensor) -> Tensor:
    """`tensor`, widened if it is bfloat16."""
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


class Arithmetic:
    """The precision of one block on its device."""

    def __init__(self, precision: PrecisionName, device: torch.device) -> None:
        self.is_reduced = precision is PrecisionName.BFLOAT16
        self.device = device

    def reduced(self) -> AbstractContextManager[object]:
        """A context for layers and readouts; not for losses."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.is_reduced else nullcontext()

    def message(self, message: Tensor) -> Tensor:
        """`message` as it travels."""
        return message.to(torch.bfloat16) if self.is_reduced else message
