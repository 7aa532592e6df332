"""`run_block`: the loop of one block. The only code that steps an optimizer, on every executor.

Shapes: B batch, C classes, P natural parameters per unit, D units, K exits so far.

Every block walks through the same schedule (train steps, evaluation batches, checkpoints), which follows from the
plan alone. Block k computes msg_k(t) with theta_k after exactly t updates, whatever the timing, so the result does
not depend on who runs the blocks (method, section 5). `bll.turns` lets the blocks of one worker take turns.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bll import checkpoint, data
from bll.blocks import build_block, make_objective
from bll.checkpoint import Part
from bll.choices import Augmentation
from bll.data import Dataset
from bll.devices import device_of
from bll.diagnostics import Examiner, Standing, Step
from bll.errors import CheckpointError
from bll.exits import EvaluationMeter
from bll.messages import Kind, Packet
from bll.mixing import Mixing
from bll.optimizers import BlockOptimizer
from bll.placement import Placement
from bll.plan import Plan
from bll.precision import Arithmetic
from bll.progress import ProgressMeter
from bll.readouts import flat_parameters
from bll.regression.objective import RegressionLoss, RegressionObjective
from bll.regression.scores import RegressionMeter, make_meter
from bll.schedule import ActionKind, schedule
from bll.seeding import derive
from bll.sending import Sender
from bll.transfers import make_lane, on_lane
from bll.twins import ClassTable
from bll.versions import OwnVersions, RightVersions
from bll.wiring import BlockSaved, Lines, Links


@dataclass(frozen=True)
class Takeover:
    """Where a worker comes in that takes the place of a lost one (`executor.recovery` `continue`)."""

    turns: int
    """Actions that the lost one had done since the launch, its start among them."""
    step: int
    """Steps that it had done."""
    parts: Mapping[int, Part]
    """The newest save of each block since the launch. A block without one begins as it did then."""


@dataclass(frozen=True)
class Run:
    """What every worker of a run must know."""

    plan: Plan
    config_digest: str
    run_dir: Path
    data_root: Path | None
    start_step: int
    """Steps done at the checkpoint to go on from; 0 = from the beginning."""
    placement: Placement
    """Who runs which blocks from there on. It changes nothing in the result."""
    takeover: Takeover | None = None
    """Of a worker that takes the place of a lost one while the others live on; None at the launch."""


class Unit(Protocol):
    """A part of the run that one worker must hold whole, with its place in the stream: one of `Plan.units`."""

    run: Run
    links: Links

    @property
    def index(self) -> int:
        """Its first block."""
        ...

    def start(self) -> None:
        """Send what the neighbours need before their first step."""
        ...

    def stop_before(self, step: int) -> bool:
        """Whether the run stops here; tells the next unit."""
        ...

    def train_step(self, step: int) -> None:
        """Take one training step."""
        ...

    def evaluate_batch(self, step: int, batch: int) -> None:
        """Add the exits to one validation batch on its way."""
        ...

    def save(self, step: int) -> None:
        """Write each block's part of the cut after `step` steps."""
        ...


def run_block(unit: Unit) -> Generator[None, None, int]:
    """Train a unit to the end of the plan or to a stop marker, yielding after each action; returns the steps done."""
    run = unit.run
    unit.start()
    yield
    done = max(0, run.takeover.turns - 1) if run.takeover else 0
    for action in islice(schedule(run.plan, run.start_step), done, None):
        match action.kind:
            case ActionKind.TRAIN:
                if unit.stop_before(action.step):
                    unit.save(action.step)
                    return action.step
                unit.train_step(action.step)
            case ActionKind.EVALUATE:
                unit.evaluate_batch(action.step, action.batch)
            case ActionKind.SAVE:
                unit.save(action.step)
        yield
    return run.plan.total_steps


class BlockUnit:
    """One block with its optimizers, its data and its place in the stream."""

    def __init__(self, run: Run, index: int, dataset: Dataset, links: Links, *, keeps_graph: bool = False) -> None:
        """`keeps_graph`: gradients of the next block's loss shall come back through the messages."""
        self.run = run
        self.plan = run.plan
        self.config = run.plan.config
        self.index = index
        self.links = links
        self.lines = Lines(index, links)
        self.keeps_graph = keeps_graph
        self.is_first = index == 0
        device = device_of(self.config.executor, index)
        self.lane = make_lane(device, own_stream=not keeps_graph)
        self.arithmetic = Arithmetic(self.config.executor.precision, device)
        needs_statistics = (self.is_first or self.plan.is_regression) and not run.start_step
        with self.lane.current():
            self.block = build_block(run.plan, index, data.statistics(dataset.train) if needs_statistics else None)
            self.block.place(device, self.lane.generator())
            self.progress = ProgressMeter(index, self.plan, self.lines, device)
        self.objective = make_objective(self.block, self.config.loss)
        self.sender = Sender(self.block.readout.family, self.config, index, self.lane.generator())
        self.draws = self.lane.generator()
        self.mixing = Mixing(self.config.mixing)
        self.optimizer = BlockOptimizer(self.block, self.config.optimizer, run.plan.total_steps)
        self.dataset = dataset
        self.train_targets = torch.from_numpy(dataset.train.targets)
        self.validation_targets = torch.from_numpy(dataset.validation.targets)
        self.order_epoch, self.order = -1, np.empty(0, dtype=np.int64)
        self.next_packet: Packet | None = None
        self.examiner = Examiner(index, self.plan, self.block, self.objective)
        self.right = RightVersions(run.plan.config, self.lines.backward_in, self.lane)
        makers = {"table": self._table, "first_layer": self._first_layer}
        self.versions = OwnVersions(run.plan.config, self.lines.backward_out, makers, self.lane)
        self.evaluation: EvaluationMeter | RegressionMeter | None = None
        self.unscored: deque[tuple[Callable[[], Tensor], np.ndarray]] = deque()
        """Exits on their way to the host, and the targets of their rows."""
        part = run.takeover.parts.get(index) if run.takeover else None
        self.saved_step = part.step if part else run.start_step
        if self.saved_step:
            self._restore(part)

    # One training step ------------------------------------------------------------------------------------------

    @on_lane
    def train_step(self, step: int) -> None:
        """Receive msg_{k-1}(t), send msg_k(t), then learn from the local loss L_k and the terms beside it."""
        taken = self.forward_step(step)
        if isinstance(taken.local, RegressionLoss):
            torch.autograd.backward(taken.loss)
        else:
            self.block.credit.backward(taken.loss, taken.local.log_probs_BC, taken.targets_B)
        self.update(taken)

    @on_lane
    def forward_step(self, step: int) -> Step:
        """Everything before the gradient: msg_{k-1}(t) received, msg_k(t) sent, L_k computed. Nothing of it is read
        back from the device."""
        epoch, config = step // self.plan.steps_per_epoch, self.config
        rows = self._rows(epoch, step % self.plan.steps_per_epoch)
        # From here on, B counts sites: rows, or their positions.
        targets_B = self.lane.arrive(self.train_targets[rows].flatten())
        received = self._training_inputs(step, rows) if self.is_first else self._take(Kind.TRAIN, step)[0]
        right = self.right.at(step)
        targets, told = targets_B, right.table
        if self.plan.is_regression:
            # Each target of the batch is a class of its own: its table has a row for each row.
            targets = told = received if self.is_first else self._training_inputs(step, rows)
            targets_B = torch.arange(len(rows), device=self.lane.device)
        block, sender = self.block, self.sender
        block.train()
        block.follow(right)
        block.seed_dropout(derive(config.seed, "dropout", self.index, step))
        with self.arithmetic.reduced():
            output = block.credit(block.layers, received)
        if not sender.reads_latent:
            self._send(epoch, step, sender.of_output(output))
        with self.arithmetic.reduced():
            alpha_BPD = block.readout(output)
        table = block.twin(told)
        mixing = self.mixing.at(epoch)
        if sender.reads_latent and self.lines.outbox:
            with torch.set_grad_enabled(self.keeps_graph):
                beta_BPD = table.beta_CPD[targets_B].detach()
                message = sender.training_message(output, alpha_BPD, beta_BPD, mixing, epoch, step)
            self._send(epoch, step, message)
        self.draws.manual_seed(derive(config.seed, "loss", self.index, step))
        local = self.objective.loss(alpha_BPD, table, targets, mixing, self.draws)
        self.progress.add(local, targets_B)
        loss = block.objective(local, received, output, targets_B, self.draws)
        return Step(step + 1, output, alpha_BPD, table, targets_B, local, mixing, loss)

    @on_lane
    def update(self, taken: Step) -> None:
        """Step the optimizers on the gradients that there are, and send the new version left."""
        step = taken.number - 1
        if self.progress.is_due(taken.number):
            self._report(taken)
        if self.examiner.is_due(taken.number):
            with self.examiner.around_step(taken, self._standing(step), self.links.emit):
                self.optimizer.step(step)
        else:
            self.optimizer.step(step)
        if taken.number % self.plan.steps_per_epoch == 0:
            self.mixing.end_epoch()
        self.versions.send(taken.number)
        self.lane.flush()

    def _send(self, epoch: int, step: int, message: Tensor) -> None:
        """Before any backward pass: the next block need not wait for it."""
        if self.lines.outbox:
            message = self.arithmetic.message(message if self.keeps_graph else message.detach())
            self.lane.send(self.lines.outbox, Packet(Kind.TRAIN, epoch, step, (message,)))

    def _report(self, taken: Step) -> None:
        """After the backward pass, whose memory is free by then: the variances of all classes take as much again."""
        report = self.progress.report(taken, self.objective, self.right.staleness(taken.number - 1))
        self.mixing.observe(report.agreement)
        self.links.emit(report)

    def _standing(self, step: int) -> Standing:
        return Standing(
            staleness_steps=self.right.staleness(step),
            queue_depth=self.links.inbox.depth() if self.links.inbox else 0,
        )

    def _training_inputs(self, step: int, rows: Tensor) -> Tensor:
        inputs = torch.from_numpy(data.as_float(self.dataset.train.inputs[rows.numpy()]))
        if self.config.data.augmentation is not Augmentation.NONE:
            # On the host: the samples are the same on every device.
            generator = torch.Generator().manual_seed(derive(self.config.seed, "augment", step))
            inputs = data.augment(inputs, self.config.data.augmentation, generator)
        return self.lane.arrive(inputs)

    def _rows(self, epoch: int, batch: int) -> Tensor:
        """Rows of one training batch: every worker draws the same, from the seed."""
        if self.order_epoch != epoch:
            self.order_epoch = epoch
            self.order = data.epoch_order(len(self.train_targets), self.config.seed, epoch)
        size = self.config.batch_size
        return torch.from_numpy(self.order[batch * size : (batch + 1) * size])

    # Evaluation -------------------------------------------------------------------------------------------------

    @on_lane
    @torch.no_grad()
    def evaluate_batch(self, step: int, batch: int) -> None:
        """Add this block's exit to one validation batch on its way; the last block keeps the score."""
        size = self.config.batch_size
        span = slice(batch * size, (batch + 1) * size)
        exits: list[Tensor] = []
        if self.is_first:
            hidden = self.lane.arrive(torch.from_numpy(data.as_float(self.dataset.validation.inputs[span])))
        else:
            hidden, *exits = self._take(Kind.EVALUATE, batch)
        self.block.eval()
        with self.arithmetic.reduced():
            output = self.block.layers(hidden)
            alpha_BPD = self.block.readout(output)
        exit_BX = self._exit(alpha_BPD, step)
        exits_KBX = torch.cat((*exits, exit_BX.unsqueeze(0)))
        self.progress.restart_clock()
        epoch = step // self.plan.steps_per_epoch - 1
        if self.lines.outbox:
            message = self.arithmetic.message(self.sender.message(output, alpha_BPD))
            self.lane.send(self.lines.outbox, Packet(Kind.EVALUATE, epoch, batch, (message, exits_KBX)))
            self.lane.flush()
            return
        of_classes = self.validation_targets[span].flatten().numpy()
        targets = self.dataset.validation.inputs[span] if self.plan.is_regression else of_classes
        if batch == 0:
            self.evaluation = make_meter("validation", self.plan)
        if self.evaluation is None:  # this worker has come in among the batches: a score of the others would be none
            return
        self.unscored.append((self.lane.depart(exits_KBX), targets))
        is_last = batch == self.plan.validation_batches - 1
        while len(self.unscored) > (not is_last):  # those before this batch; the last at once
            scored_KBX, their_targets = self.unscored.popleft()
            self.evaluation.add(scored_KBX().numpy(), their_targets)
        if is_last:
            self.links.emit(self.evaluation.evaluation(epoch, step))

    def _exit(self, alpha_BPD: Tensor, step: int) -> Tensor:
        """What this block's exit says of each row: log-probabilities, or mean and variance."""
        if isinstance(self.objective, RegressionObjective):
            return self.objective.exit(alpha_BPD)
        return self.objective.exit_log_probs(alpha_BPD, self.block.twin(self.right.at(step).table))

    # The stream -------------------------------------------------------------------------------------------------

    @on_lane
    def start(self) -> None:
        """Send what the left neighbour needs before its first step, or stand where a lost worker stood."""
        if self.run.takeover and self.run.takeover.turns:
            self.versions.come_in(self.run.takeover.step)
        else:
            self.versions.start(self.run.start_step)
        self.lane.flush()

    def stop_before(self, step: int) -> bool:
        """Whether the run stops here: on request at the first block, by the marker that it sends at the others."""
        if self.is_first:
            stop = self.links.stop_requested()
        else:
            self.next_packet = self._receive()
            stop = self.next_packet.kind is Kind.STOP
        if stop and self.lines.outbox:
            self.lane.send(self.lines.outbox, Packet(Kind.STOP, step // self.plan.steps_per_epoch, step, ()))
        return stop

    def _receive(self) -> Packet:
        assert self.lines.inbox is not None
        return self.lines.inbox.receive()

    def _take(self, kind: Kind, step: int) -> tuple[Tensor, ...]:
        """The tensors of the next packet, which the schedule says is `kind` number `step`."""
        packet, self.next_packet = self.next_packet or self._receive(), None
        if (packet.kind, packet.step) != (kind, step):
            raise RuntimeError(f"expected {kind.name} {step} from the left, got {packet.kind.name} {packet.step}")
        return self.lane.receive(packet).tensors

    def _table(self, number: int) -> Tensor:
        """This block's class table after `number` updates, for its left neighbour."""
        table: ClassTable = self.block.twin(self.right.at(number).table)
        return table.beta_CPD.clone()

    def _first_layer(self, _: int) -> Tensor:
        """Its first layer as it now is, for the same."""
        return flat_parameters(self.block.layers[0])

    # Checkpoints ------------------------------------------------------------------------------------------------

    @on_lane
    def save(self, step: int) -> None:
        """Write this block's part of the cut after `step` steps, unless it is there already."""
        if step == self.saved_step:
            return
        self.progress.check_finite(step)
        started = time.monotonic()
        tensors = {f"block.{name}": tensor for name, tensor in self.block.state_dict().items()}
        if not self.plan.is_regression:
            with torch.no_grad():
                table = self.block.twin(self.right.at(step).table)
            tensors |= {f"table.{name}": tensor.clone() for name, tensor in table._asdict().items()}
        tensors |= self.optimizer.state() | {"mixing": self.mixing.state()} | self.versions.state()
        digest = checkpoint.save_block(self.run.run_dir, step, self.index, tensors)
        self.saved_step = step
        self.links.emit(BlockSaved(self.index, step, digest, time.monotonic() - started))

    @on_lane
    def _restore(self, part: Part | None) -> None:
        """Begin from `part`, or from the checkpoint that the run goes on from."""
        step, run = self.saved_step, self.run
        if part:
            tensors = checkpoint.load_part(run.run_dir, self.index, part)
        else:
            tensors = checkpoint.load_block(run.run_dir, step, self.index, run.config_digest)
        try:
            self.block.load_state_dict(checkpoint.below("block.", tensors))
            self.optimizer.restore(tensors)
            self.mixing.restore(tensors["mixing"])
            self.versions.restore(tensors)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"checkpoint of step {step} does not fit block {self.index}: {error}") from error
