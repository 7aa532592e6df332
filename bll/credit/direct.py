"""Direct feedback alignment (Nokland 2016): each layer gets the exit's error through a fixed random matrix.

Shapes: B batch, C classes, U units of a layer's output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bll.credit.base import LayerwiseCredit, Trace


class DirectFeedback(LayerwiseCredit):
    """Gradients e B_l for the output of every layer but the last, which gets the true one through the readout.

    B_l is drawn from a normal distribution of variance 1/U: an error keeps its length on the way, as it does through
    layers that were initialised to that end. Within a layer, and for activations behind a map, it is backpropagation.
    """

    def __init__(self, layers: nn.Sequential, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(layers, input_shape)
        for index, shape in enumerate(self.shapes[:-1]):
            units = math.prod(shape)
            self.register_buffer(f"feedback{index}", torch.randn(num_classes, units) / math.sqrt(units))

    def feedback(self) -> list[Tensor]:
        """B_l of every layer but the last, of shape (C, U)."""
        return [self.get_buffer(f"feedback{index}") for index in range(len(self.shapes) - 1)]

    def assign(self, trace: Trace) -> None:
        error_BC = trace.error()
        direct = [
            (error_BC @ feedback_CU).reshape(-1, *shape)
            for feedback_CU, shape in zip(self.feedback(), self.shapes, strict=False)
        ]
        trace.backward([*direct, trace.top])
