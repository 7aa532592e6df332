"""Synthetic gradients (Jaderberg et al. 2017), conditioned on labels: layers learn from forecasts of their gradients.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bll.credit.base import LayerwiseCredit, Trace
from bll.credit.shapes import feature_axis, linear_between, with_classes


class Synthesiser(nn.Module):
    """A sample's gradient dL/dh from (h, y), through one hidden layer of h's own shape. It starts as zero."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        source = list(shape)
        source[feature_axis(shape) - 1] += num_classes
        self.hidden = linear_between(tuple(source), shape)
        self.last = linear_between(shape, shape)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor, one_hot_BC: Tensor) -> Tensor:
        synthetic: Tensor = self.last(F.relu(self.hidden(with_classes(hidden, one_hot_BC))))
        return synthetic


class SyntheticGradients(LayerwiseCredit):
    """Every layer but the last, which gets the true gradient, learns from its synthesiser's.

    The synthesiser's target is the gradient that the layer above, from what it is itself given, sends to its input:
    only the last layer's is the true one, and the others' are bootstrapped from it.
    """

    needs_input_gradients = True

    def __init__(self, layers: nn.Sequential, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(layers, input_shape)
        self.num_classes = num_classes
        self.synthesisers = nn.ModuleList(Synthesiser(shape, num_classes) for shape in self.shapes[:-1])

    def assign(self, trace: Trace) -> None:
        one_hot_BC = F.one_hot(trace.targets_B, self.num_classes)
        rows = len(one_hot_BC)
        synthetic = [
            synthesiser(p.output.detach(), one_hot_BC)
            for synthesiser, p in zip(self.synthesisers, trace.passes, strict=False)
        ]
        trace.backward([*(sample.detach() / rows for sample in synthetic), trace.top])
        for sample, above in zip(synthetic, trace.passes[1:], strict=True):
            assert above.inputs.grad is not None
            torch.autograd.backward(F.mse_loss(sample, rows * above.inputs.grad))
