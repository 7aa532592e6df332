"""What a module costs, told by running it on the meta device: no data, no weights, the same on every machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

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


def step_times_s(modules: Sequence[nn.Module], input_shape: tuple[int, ...], batch_size: int) -> list[float]:
    """Seconds that each of `modules` in a row takes for a training step of `batch_size` samples, forward and backward.

    Medians over random inputs, here and now: the only costs that differ from machine to machine, and from run to run.
    """
    times_s: list[float] = []
    hidden = torch.rand(batch_size, *input_shape)
    for module in modules:
        module.train()
        taken = []
        for _ in range(_TIMED_STEPS + 1):
            start = time.perf_counter()
            output = module(hidden.requires_grad_())
            output.mean().backward()
            taken.append(time.perf_counter() - start)
        times_s.append(statistics.median(taken[1:]))  # the first also sets up
        hidden = output.detach()
    return times_s


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
