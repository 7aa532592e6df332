"""What every architecture is made of: named layers, and a dropout whose masks are keyed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bll.config import NetworkConfig


@dataclass(frozen=True)
class Layer:
    """One layer of a forward network, not built yet."""

    name: str
    """In words, for plans and reports."""
    build: Callable[[], nn.Module]
    """Makes the module, drawing its weights from torch's global generator."""


@dataclass(frozen=True)
class Architecture:
    """A kind of forward network, which a config names and sizes."""

    layers: Callable[[NetworkConfig, tuple[int, ...]], list[Layer]]
    """The layers for a config whose widths are explicit and samples of a shape; raises InvalidConfig."""
    widths: tuple[int, ...]
    """What `NetworkConfig.widths` means when it is empty."""
    stem_strides: tuple[int, ...] = (1,)
    """The stem strides that it can be built with."""
    has_heads: bool = False
    """Whether its layers attend, with `NetworkConfig.heads`."""


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
