"""Difference target propagation (Lee et al. 2015): layers learn to hit targets that learned inverses bring down.

Shapes: B batch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bll.credit.base import LayerwiseCredit, Trace
from bll.credit.shapes import linear_between

STEP = 1.0
"""Length of the step from the last layer's output to its target, per sample, in units of its gradient. The rule divides
it out again; on digits 0.1, 1 and 10 reach the same accuracy within 0.3 points."""
NOISE = 0.1
"""Standard deviation of the noise, relative to the root mean square of what it is added to. On digits 0.01, 0.1 and 0.5
reach the same accuracy within 1.1 points."""


class TargetPropagation(LayerwiseCredit):
    """t_L = h_L - STEP dL/dh_L, t_{l-1} = h_{l-1} + g_l(t_l) - g_l(h_l); layer l descends |h_l - t_l|^2 / (2 STEP).

    So the last layer's gradient is the true one, and the others' do not grow with STEP. The inverses g_l are linear
    maps, and learn to undo their layer on inputs with noise added.
    """

    def __init__(self, layers: nn.Sequential, input_shape: tuple[int, ...]) -> None:
        super().__init__(layers, input_shape)
        self.inverses = nn.ModuleList(linear_between(above, below) for below, above in pairwise(self.shapes))

    def assign(self, trace: Trace) -> None:
        outputs = [p.output.detach() for p in trace.passes]
        rows = len(trace.targets_B)
        # Targets are those of a sample, gradients those of the batch's mean.
        targets = self.targets(outputs, outputs[-1] - STEP * rows * trace.top)
        wanted = [(o - t) / (STEP * rows) for o, t in zip(outputs[:-1], targets[:-1], strict=True)]
        trace.backward([*wanted, trace.top])
        for inverse, below, layer in zip(self.inverses, outputs, trace.layers[1:], strict=False):
            torch.autograd.backward(self._reconstruction(inverse, layer, below))

    @torch.no_grad()
    def targets(self, outputs: list[Tensor], last: Tensor) -> list[Tensor]:
        """The target of every layer's output, given that of the last."""
        found = [last]
        for index in reversed(range(len(self.inverses))):
            inverse = self.inverses[index]
            found.append(outputs[index] + inverse(found[-1]) - inverse(outputs[index + 1]))
        return found[::-1]

    def _reconstruction(self, inverse: nn.Module, layer: nn.Module, below: Tensor) -> Tensor:
        """Mean squared error of x + noise, seen through the layer and its inverse."""
        draw = torch.randn(below.shape, generator=self.generator, device=below.device)
        noisy = below + NOISE * below.square().mean().sqrt() * draw
        # On copies of the buffers: running statistics are of the data, not of noise.
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        with torch.no_grad():
            above = functional_call(layer, buffers, (noisy,))
        return F.mse_loss(inverse(above), noisy)
