"""What every architecture is made of: a named layer, and a dropout whose masks are keyed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One layer of a forward network, not built yet."""

    name: str
    """In words, for plans and reports."""
    build: Callable[[], nn.Module]
    """Makes the module, drawing its weights from torch's global generator."""


class KeyedDropout(nn.Module):
    """Dropout whose masks come from a generator of its own block, seeded anew at each step.

    `nn.Dropout` draws from the global generator, which two blocks in two threads would share in no fixed order.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generator: torch.Generator | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return hidden
        draw = torch.rand(hidden.shape, generator=self.generator, device=hidden.device)
        return hidden * (draw >= self.probability) / (1 - self.probability)
