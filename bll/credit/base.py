"""Credit assignment within a block: backpropagation, and the base of rules that cut the graph at every layer.

Shapes: B batch, C classes. Hidden activations have any shape (B, ...).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Credit(nn.Module):
    """Backpropagation through the block. Parameters of a subclass are trained with the backward twin's."""

    generator: torch.Generator | None = None
    """Source of a subclass's random draws in training, seeded anew at each step."""

    def forward(self, layers: nn.Sequential, inputs: Tensor) -> Tensor:
        """The output of `layers` in training, and the graph that `backward` needs."""
        output: Tensor = layers(inputs)
        return output

    def backward(self, loss: Tensor, log_probs_BC: Tensor, targets_B: Tensor) -> None:
        """Leave its gradient in every parameter of the block, from the batch's mean loss at the exit.

        `log_probs_BC` is the exit's prediction log p(y|x) for the inputs of the last `forward`.
        """
        torch.autograd.backward(loss)


class Pass(NamedTuple):
    """What went into one layer and what came out; the graph between them ends at both."""

    inputs: Tensor
    output: Tensor


class Trace(NamedTuple):
    """One batch on its way through the layers, and what the exit said."""

    layers: list[nn.Sequential]
    passes: list[Pass]
    top: Tensor
    """Gradient of the batch's mean loss with respect to the last layer's output: the true one."""
    log_probs_BC: Tensor
    targets_B: Tensor

    def error(self) -> Tensor:
        """Gradient of the batch's mean loss with respect to the exit's logits, shape (B, C): (p - one-hot) / B."""
        probs_BC = self.log_probs_BC.exp()
        return (probs_BC - F.one_hot(self.targets_B, probs_BC.shape[1])) / len(probs_BC)

    def backward(self, gradients: Sequence[Tensor]) -> None:
        """Backpropagate within each layer, from the gradient that it is given for its output."""
        # A layer whose weights are frozen has no graph and learns nothing.
        pairs = [(p.output, g) for p, g in zip(self.passes, gradients, strict=True) if p.output.requires_grad]
        if pairs:
            torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


class LayerwiseCredit(Credit, ABC):
    """The base of rules that give each layer an error of its own: no gradient passes from layer to layer.

    A layer here begins at each child of the block's that holds a weight matrix: an activation or a normalisation that
    is a child by itself, as in a network of the user's own, belongs to the layer before it.
    """

    needs_input_gradients = False
    """Whether each layer's gradient with respect to its input is wanted too."""

    def __init__(self, layers: nn.Sequential, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        begins = [i for i, child in enumerate(layers) if any(p.ndim > 1 for p in child.parameters())]
        self._bounds = (0, *begins[1:], len(layers))
        self.shapes = _output_shapes(self._split(layers), input_shape)
        """Shape of each layer's output for one sample."""
        self._trace: tuple[list[nn.Sequential], list[Pass], Tensor] | None = None

    def forward(self, layers: nn.Sequential, inputs: Tensor) -> Tensor:
        split, passes = self._split(layers), []
        for layer in split:
            inputs = inputs.detach().requires_grad_(self.needs_input_gradients)
            passes.append(Pass(inputs, layer(inputs)))
            inputs = passes[-1].output
        exit_inputs = inputs.detach().requires_grad_()
        self._trace = split, passes, exit_inputs
        return exit_inputs

    def backward(self, loss: Tensor, log_probs_BC: Tensor, targets_B: Tensor) -> None:
        assert self._trace is not None, "forward comes before backward"
        (split, passes, exit_inputs), self._trace = self._trace, None
        torch.autograd.backward(loss)
        assert exit_inputs.grad is not None, "the loss does not depend on the layers"
        self.assign(Trace(split, passes, exit_inputs.grad, log_probs_BC.detach(), targets_B))

    @abstractmethod
    def assign(self, trace: Trace) -> None:
        """Leave a gradient in every parameter of the layers, and in this module's own."""

    def _split(self, layers: nn.Sequential) -> list[nn.Sequential]:
        children = list(layers)
        return [nn.Sequential(*children[start:end]) for start, end in pairwise(self._bounds)]


def _output_shapes(layers: Sequence[nn.Module], input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shape of each layer's output for one sample, by running one. Leaves the layers as new ones are: in training."""
    shapes = []
    hidden = torch.zeros(1, *input_shape)
    with torch.no_grad():
        for layer in layers:
            hidden = layer.eval()(hidden)
            layer.train()
            shapes.append(tuple(hidden.shape[1:]))
    return shapes
