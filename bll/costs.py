"""What a module costs, told by running it on the meta device: no data, no weights, the same on every machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

_TIMED_STEPS = 5


@dataclass(frozen=True)
class Cost:
    """Of one sample on its way through a module."""

    output_shape: tuple[int, ...]
    parameters: int
    """Trainable ones."""
    flops: int
    """Multiply-adds of the forward pass, times two."""
    activation_bytes: int
    """The output, and what is kept for the backward pass of what the module computes; its input is not counted."""


def measure(module: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Costs of `module`, which is on the meta device, for samples of `input_shape`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = module.eval()(torch.empty(1, *input_shape, device="meta"))
    return Cost(
        output_shape=tuple(output.shape[1:]),
        parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        flops=counter.get_total_flops(),
        activation_bytes=_activation_bytes(module, input_shape),
    )


class StepTimes(NamedTuple):
    """Seconds of a training step, forward and backward, here and now."""

    layers_s: list[float]
    readouts_s: list[float]
    """Of the readout of each layer's output; infinite where there can be none."""


def step_times(
    layers: Sequence[nn.Module],
    readouts: Sequence[nn.Module | None],
    input_shape: tuple[int, ...],
    batch_size: int,
) -> StepTimes:
    """How long layers in a row, and a readout of each one's output, take for `batch_size` samples.

    Medians over random inputs: the only costs that differ from machine to machine, and from run to run. Draws from
    torch's global generator.
    """
    times = StepTimes([], [])
    hidden = torch.rand(batch_size, *input_shape)  # without a gradient, as samples are
    for layer, readout in zip(layers, readouts, strict=True):
        output, taken_s = _timed(layer, hidden)
        times.layers_s.append(taken_s)
        hidden = output.detach().requires_grad_()
        times.readouts_s.append(_timed(readout, hidden)[1] if readout else math.inf)
    return times


def _timed(module: nn.Module, inputs: Tensor) -> tuple[Tensor, float]:
    """The output of `module` in training, and the median of the times that it took."""
    module.train()
    taken_s = []
    for _ in range(_TIMED_STEPS + 1):
        module.zero_grad()
        start = time.perf_counter()
        output: Tensor = module(inputs)
        if output.requires_grad:  # a first layer may have nothing to train
            torch.autograd.backward(output.mean())
        taken_s.append(time.perf_counter() - start)
    return output, statistics.median(taken_s[1:])  # the first also sets up


def _activation_bytes(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """By the difference between two batches: weights and statistics, which are saved as well, do not grow with it.

    Neither batch is a single sample, which batch normalisation refuses to train on.
    """
    module.train()
    return (_kept_bytes(module, (4, *input_shape)) - _kept_bytes(module, (2, *input_shape))) // 2


def _kept_bytes(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes of every storage kept after a forward pass, each once, however many operations saved it."""
    kept: list[Tensor] = []  # holds them, so that no storage takes another's address

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    inputs = torch.empty(shape, device="meta", requires_grad=True).clone()  # a leaf could not be changed in place
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        kept.append(module(inputs))
    storages = {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in kept)}
    storages.pop(inputs.untyped_storage()._cdata, None)
    return sum(storages.values())
