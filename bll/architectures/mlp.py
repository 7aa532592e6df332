"""Multi-layer perceptron on flattened samples."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

from torch import nn

from bll.architectures.layers import Architecture, KeyedDropout, Layer
from bll.config import NetworkConfig


def _layers(config: NetworkConfig, input_shape: tuple[int, ...]) -> list[Layer]:
    """One dense layer per entry of `config.widths`: linear, batch normalisation, ReLU, dropout."""
    units = [math.prod(input_shape), *config.widths]
    return [Layer(f"dense {i}->{o}", partial(_dense, i, o, config.dropout)) for i, o in pairwise(units)]


MLP = Architecture(_layers, widths=(256, 256, 256, 256))


def _dense(inputs: int, outputs: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, outputs, bias=False),
        nn.BatchNorm1d(outputs),
        nn.ReLU(),
        KeyedDropout(dropout),
    )
