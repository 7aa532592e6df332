"""The two optimizers of a block: one for its forward part theta_k, one for its backward part phi_k."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bll.blocks import Block
from bll.choices import LearningRateSchedule, OptimizerName
from bll.config import OptimizerConfig


class BlockOptimizer:
    """Steps theta_k and phi_k, each at its own learning rate."""

    def __init__(self, block: Block, config: OptimizerConfig, total_steps: int) -> None:
        self.config = config
        self.total_steps = total_steps
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in block.forward_parameters():
            (decayed if parameter.ndim > 1 else plain).append(parameter)
        self.forward = _make(config, config.learning_rate, decayed, plain)
        backward = block.backward_parameters()
        matrices = [p for name, p in backward.items() if name.endswith("weight") and p.ndim > 1]
        others = [p for p in backward.values() if all(p is not m for m in matrices)]
        self.backward = _make(config, config.backward_learning_rate, matrices, others)

    def step(self, step: int) -> None:
        """Apply and clear the gradients of 0-based step `step`."""
        scale = learning_rate_scale(self.config, step, self.total_steps)
        rates = (self.config.learning_rate, self.config.backward_learning_rate)
        for optimizer, rate in zip((self.forward, self.backward), rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts as named tensors, for a checkpoint."""
        return {
            f"{name}.{index}.{key}": value
            for name, optimizer in (("theta", self.forward), ("phi", self.backward))
            for index, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave. Raises KeyError or RuntimeError if it does not fit."""
        for name, optimizer in (("theta", self.forward), ("phi", self.backward)):
            state: dict[int, dict[str, Tensor]] = {}
            for path, tensor in tensors.items():
                if path.startswith(f"{name}."):
                    _, index, key = path.split(".")
                    state.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def learning_rate_scale(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Factor on the learning rate at 0-based `step`: linear warm-up, then constant or half a cosine down to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule is LearningRateSchedule.CONSTANT:
        return 1.0
    span = max(1, total_steps - config.warmup_steps)
    return (1 + math.cos(math.pi * (step - config.warmup_steps) / span)) / 2


def _make(
    config: OptimizerConfig, rate: float, decayed: list[nn.Parameter], plain: list[nn.Parameter]
) -> torch.optim.Optimizer:
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    # Without a parameter, as the twin of m = 0 is, one empty group remains.
    groups = [group for group in groups if group["params"]] or groups[:1]
    # Fused: one pass over each parameter, on CPU as on CUDA.
    if config.name is OptimizerName.ADAMW:
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=True)
