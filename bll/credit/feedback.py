"""Linear maps that send errors back through another weight than their own.

`feedback_alignment` (Lillicrap et al. 2016): a fixed random one. `sign_symmetry` (Liao, Leibo and Poggio 2016; Xiao
et al. 2019): the signs of their own. The gradient of the weight itself, given the error at the map's output, is the
true one; so is the gradient of everything that is no linear map.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from bll.choices import Rule
from bll.errors import InvalidConfig, Violation

_MAPS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class FeedbackMap(nn.Module, ABC):
    """A linear map or convolution whose input gets its gradient through `feedback()`; in evaluation, the plain one."""

    def __init__(self, plain: nn.Linear | _ConvNd) -> None:
        super().__init__()
        self.plain = plain

    @abstractmethod
    def feedback(self) -> Tensor:
        """The weight that errors go back through; of the shape of the map's own, and without a graph."""

    def forward(self, inputs: Tensor) -> Tensor:
        plain = self.plain
        output: Tensor
        if not self.training:
            output = plain(inputs)
        elif isinstance(plain, nn.Linear):
            output = _Dense.apply(inputs, plain.weight, plain.bias, self.feedback())  # type: ignore[no-untyped-call]
        else:
            inputs, geometry = _geometry(plain, inputs)
            operands = (inputs, plain.weight, plain.bias, self.feedback(), geometry)
            output = _Convolution.apply(*operands)  # type: ignore[no-untyped-call]
        return output


class RandomFeedback(FeedbackMap):
    """Errors go back through a fixed random weight, as large as the map's own was at first."""

    weight: Tensor

    def __init__(self, plain: nn.Linear | _ConvNd) -> None:
        super().__init__(plain)
        own = plain.weight.detach()
        size = own.square().mean().sqrt()
        # A map that starts at zero would never pass anything back.
        size = torch.where(size > 0, size, math.prod(own.shape[1:]) ** -0.5)
        self.register_buffer("weight", torch.randn_like(own) * size)

    def feedback(self) -> Tensor:
        return self.weight


class SignFeedback(FeedbackMap):
    """Errors go back through sign(W) times the mean of |W|, the nearest multiple of sign(W) to W."""

    def feedback(self) -> Tensor:
        own = self.plain.weight.detach()
        return own.sign() * own.abs().mean()


def replace_maps(layers: nn.Module, kind: type[FeedbackMap], rule: Rule) -> None:
    """Wrap every linear and convolutional map below `layers` in a `kind`.

    Raises InvalidConfig if a weight matrix belongs to anything else: its errors would go back through the weight
    itself, and the rule would not be what it says.
    """
    for name, child in layers.named_children():
        if type(child) in _MAPS:
            setattr(layers, name, kind(child))  # type: ignore[arg-type]
            continue
        matrices = [p for p in child.parameters(recurse=False) if p.ndim > 1]
        if matrices and not isinstance(child, nn.Embedding):  # an embedding's inputs are indices, without a gradient
            maps = ", ".join(f"nn.{kind.__name__}" for kind in _MAPS)
            rule_text = f"under rule {rule.value!r} only {maps} may hold a weight matrix, got {type(child).__name__}"
            raise InvalidConfig([Violation("network", rule_text)])
        replace_maps(child, kind, rule)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, feedback)
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, feedback = ctx.saved_tensors
        (gradient,) = gradients
        rows = gradient.flatten(0, -2)
        to_inputs = gradient @ feedback if ctx.needs_input_grad[0] else None
        to_weight = rows.T @ inputs.flatten(0, -2) if ctx.needs_input_grad[1] else None
        to_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return to_inputs, to_weight, to_bias, None


class _Geometry(NamedTuple):
    """A convolution less its weights, in the order of `torch.convolution`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor, geometry: _Geometry
    ) -> Tensor:
        ctx.save_for_backward(inputs, feedback)
        ctx.geometry = geometry
        return torch.convolution(inputs, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, feedback = ctx.saved_tensors
        (gradient,) = gradients
        outputs = [gradient.shape[1]]  # of the bias
        # What the weight gets depends on inputs and gradient alone, so `feedback` may stand in its place.
        found = torch.ops.aten.convolution_backward(
            gradient, inputs, feedback, outputs, *ctx.geometry, list(ctx.needs_input_grad[:3])
        )
        return *found, None, None


def _geometry(plain: _ConvNd, inputs: Tensor) -> tuple[Tensor, _Geometry]:
    """The convolution's geometry, and its inputs padded beforehand if it pads by other than a number of zeros."""
    padding = plain.padding
    if isinstance(padding, str) or plain.padding_mode != "zeros":
        mode = "constant" if plain.padding_mode == "zeros" else plain.padding_mode
        inputs = F.pad(inputs, plain._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(plain.stride)
    return inputs, _Geometry(
        plain.stride, padding, plain.dilation, plain.transposed, plain.output_padding, plain.groups
    )
