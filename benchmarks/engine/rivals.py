"""What a user would pick instead of block-local learning: backpropagation alone, data-parallel, and pipelined.

All train the modules that `rule: backprop` trains, from the same weights, on the same batches, with the same optimizer.
Shapes: B batch, C classes.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bll import data
from bll.blocks import Block, build_block, make_objective
from bll.choices import Augmentation
from bll.data import Dataset
from bll.losses import Objective
from bll.plan import Plan
from bll.seeding import derive

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class Trainer(Protocol):
    """One process's part in training one network."""

    @property
    def module(self) -> nn.Module:
        """What this process trains."""
        ...

    def step(self, number: int) -> None:
        """Take training step `number`, from 0."""
        ...


class Backprop:
    """The whole network in one process: the plain loop."""

    def __init__(self, plan: Plan, dataset: Dataset) -> None:
        self.module: nn.Module = network(plan, dataset)
        self._batches = Batches(plan, dataset)
        self._optimizer = make_optimizer(self.module, plan)

    def step(self, number: int) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        log_probs_BC = self.module(self._batches.inputs(number))
        torch.autograd.backward(nll(log_probs_BC, self._batches.targets(number)))
        self._optimizer.step()


class DataParallel:
    """A copy of the network in each process, which takes its share of each batch; gradients are averaged.

    Normalisations take the statistics of the process's own rows, as DistributedDataParallel leaves it by default.
    """

    def __init__(self, plan: Plan, dataset: Dataset) -> None:
        self.module: nn.Module = network(plan, dataset)
        # Running statistics stay each process's own: sending them at every step would cost this rival time.
        self._parallel = DistributedDataParallel(self.module, broadcast_buffers=False, gradient_as_bucket_view=True)
        self._batches = Batches(plan, dataset)
        self._optimizer = make_optimizer(self.module, plan)
        rows, rank, ranks = plan.config.batch_size, dist.get_rank(), dist.get_world_size()
        self._share = slice(rank * rows // ranks, (rank + 1) * rows // ranks)

    def step(self, number: int) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        log_probs_BC = self._parallel(self._batches.inputs(number, self._share))
        torch.autograd.backward(nll(log_probs_BC, self._batches.targets(number, self._share)))
        self._optimizer.step()


class Pipeline:
    """A stage of the network in each process, by torch.distributed.pipelining."""

    def __init__(self, plan: Plan, dataset: Dataset, cuts: tuple[int, ...], schedule: str, microbatches: int) -> None:
        """`cuts` are the first layers of each stage but the first."""
        rank, ranks = dist.get_rank(), dist.get_world_size()
        # The first child normalises; the last is the exit.
        starts, ends = (0, *(cut + 1 for cut in cuts)), (*(cut + 1 for cut in cuts), None)
        self.module: nn.Module = network(plan, dataset)[starts[rank] : ends[rank]]
        self._batches = Batches(plan, dataset)
        self._optimizer = make_optimizer(self.module, plan)
        self._is_first, self._is_last = rank == 0, rank == ranks - 1
        # Without input_args: from examples made under no_grad a stage on CPU would learn that nothing needs a gradient.
        stage = PipelineStage(self.module, rank, ranks, torch.device("cpu"))
        self._schedule = SCHEDULES[schedule](stage, microbatches, loss_fn=nll)

    def step(self, number: int) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        inputs = (self._batches.inputs(number),) if self._is_first else ()
        if self._is_last:
            self._schedule.step(*inputs, target=self._batches.targets(number), losses=[], return_outputs=False)
        else:
            self._schedule.step(*inputs, return_outputs=False)
        self._optimizer.step()


class Exit(nn.Module):
    """Readout and class table of the last block: from its output to log p(y|x)."""

    def __init__(self, block: Block, objective: Objective) -> None:
        super().__init__()
        self.readout = block.readout
        self.twin = block.twin
        self._objective = objective

    def forward(self, hidden: Tensor) -> Tensor:
        return self._objective.exit_log_probs(self.readout(hidden), self.twin(None))


class Batches:
    """The training batches of a run, as its blocks take them."""

    def __init__(self, plan: Plan, dataset: Dataset) -> None:
        self._plan = plan
        self._rows = dataset.train
        self._order = functools.lru_cache(1)(functools.partial(data.epoch_order, len(dataset.train), plan.config.seed))

    def inputs(self, step: int, share: slice = slice(None)) -> Tensor:
        """Those of a part of the batch, augmented."""
        config = self._plan.config
        inputs = torch.from_numpy(data.as_float(self._rows.inputs[self._of(step)[share]]))
        if config.data.augmentation is Augmentation.NONE:
            return inputs
        generator = torch.Generator().manual_seed(derive(config.seed, "augment", step))
        return data.augment(inputs, config.data.augmentation, generator)

    def targets(self, step: int, share: slice = slice(None)) -> Tensor:
        return torch.from_numpy(self._rows.targets[self._of(step)[share]])

    def _of(self, step: int) -> np.ndarray:
        epoch, batch = divmod(step, self._plan.steps_per_epoch)
        size = self._plan.config.batch_size
        return self._order(epoch)[batch * size : (batch + 1) * size]


def network(plan: Plan, dataset: Dataset) -> nn.Sequential:
    """Normalisation, layers and exit of a plan with `rule: backprop`, with its initial weights."""
    block = build_block(plan, 0, data.statistics(dataset.train))
    objective = make_objective(block, plan.config.loss)
    assert isinstance(objective, Objective), "targets are classes"
    return nn.Sequential(*block.layers, Exit(block, objective)).train()


def nll(log_probs_BC: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood, in nats, of targets of one class a row or of a class for each position."""
    return F.nll_loss(log_probs_BC, targets.flatten())


def make_optimizer(module: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """AdamW with the rates and the decay of a run's own; fused, the fastest form on CPU."""
    config = plan.config.optimizer
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        rate = config.backward_learning_rate if ".twin." in name else config.learning_rate
        decay = config.weight_decay if parameter.ndim > 1 and ".twin." not in name else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()], fused=True
    )


def make_trainer(kind: str, plan: Plan, dataset: Dataset, cuts: tuple[int, ...], microbatches: int) -> Trainer:
    """The rival named `kind`: `backprop`, `ddp`, `gpipe` or `1f1b`. All but the first want a process group."""
    match kind:
        case "backprop":
            return Backprop(plan, dataset)
        case "ddp":
            return DataParallel(plan, dataset)
        case _:
            return Pipeline(plan, dataset, cuts, kind, microbatches)
