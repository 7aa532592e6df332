"""When everything happens in a pipeline of N workers, each on a core of its own, from the times of its parts.

Block-local learning: a worker receives message t, sends its own as soon as its layers have run, and learns while the
next worker is already at work; between two workers at most W messages wait. Pipelines of backpropagation (GPipe, Huang
et al. 2019; 1F1B, Narayanan et al. 2019, with a flush a step, as torch.distributed.pipelining runs it): m microbatches
go forward and come back, then the optimizer steps. Hand-over costs nothing in either. Times are in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class BlockStep(NamedTuple):
    """What one training step of one block takes."""

    send_s: float
    """From its message received to its own one sent."""
    learn_s: float
    """The rest: readout, loss, backward pass and optimizers."""


class StageStep(NamedTuple):
    """What one training step of one pipeline stage takes."""

    forward_s: float
    """Of one microbatch."""
    backward_s: float
    """Of one microbatch."""
    update_s: float


Op = tuple[str, int]
"""`forward` or `backward`, and the microbatch."""
Order = Callable[[int, int, int], list[Op]]
"""What a stage does in one step, by its number, the number of stages and that of microbatches."""


def block_local(steps: Sequence[Sequence[BlockStep]], slots: int) -> list[float]:
    """When each step ends at the last block, for `steps[t][k]` of step t and block k, over lines of `slots` slots."""
    num_blocks = len(steps[0])
    free_at = [0.0] * num_blocks
    received_at: list[list[float]] = []
    ended_at = []
    for number, blocks in enumerate(steps):
        arrived, received = 0.0, []
        for index, block in enumerate(blocks):
            started = max(free_at[index], arrived)
            received.append(started)
            sent = started + block.send_s
            if index + 1 < num_blocks and number >= slots:
                # A slot is free once the message that lay in it has been received.
                sent = max(sent, received_at[number - slots][index + 1])
            arrived = sent
            free_at[index] = sent + block.learn_s
        received_at.append(received)
        ended_at.append(free_at[-1])
    return ended_at


def gpipe(stage: int, num_stages: int, microbatches: int) -> list[Op]:
    """The order of one stage's work in one step: everything forward, then everything back."""
    return [(way, number) for way in ("forward", "backward") for number in range(microbatches)]


def one_forward_one_backward(stage: int, num_stages: int, microbatches: int) -> list[Op]:
    """The order of one stage's work in one step: once the stages after it are busy, one back for each one forward."""
    ahead = min(microbatches, num_stages - stage - 1)
    order: list[Op] = [("forward", number) for number in range(ahead)]
    for number in range(microbatches - ahead):
        order += [("forward", ahead + number), ("backward", number)]
    return order + [("backward", number) for number in range(microbatches - ahead, microbatches)]


def pipelined(steps: Sequence[Sequence[StageStep]], microbatches: int, order: Order) -> list[float]:
    """When each step ends at the first stage, which is the last to end, for `steps[t][k]` of step t and stage k."""
    num_stages = len(steps[0])
    free_at = [0.0] * num_stages
    ended_at = []
    for stages in steps:
        waiting = [order(stage, num_stages, microbatches)[::-1] for stage in range(num_stages)]
        done_at: dict[tuple[int, Op], float] = {}
        while any(waiting):
            for stage, queue in enumerate(waiting):
                while queue and (ready := _ready_at(done_at, stage, num_stages, queue[-1])) is not None:
                    op = queue.pop()
                    taken = stages[stage].forward_s if op[0] == "forward" else stages[stage].backward_s
                    free_at[stage] = done_at[stage, op] = max(free_at[stage], ready) + taken
        free_at = [free + stage.update_s for free, stage in zip(free_at, stages, strict=True)]
        ended_at.append(free_at[0])
    return ended_at


def period_s(ended_at: Sequence[float]) -> float:
    """Time from step to step, once the first half of the steps has filled the pipeline."""
    half = len(ended_at) // 2
    return (ended_at[-1] - ended_at[half]) / (len(ended_at) - 1 - half)


def _ready_at(done_at: dict[tuple[int, Op], float], stage: int, num_stages: int, op: Op) -> float | None:
    """When what `op` of `stage` needs is there; None if nobody has made it yet."""
    way, number = op
    if way == "forward":
        return done_at.get((stage - 1, op)) if stage else 0.0
    if stage + 1 < num_stages:
        return done_at.get((stage + 1, op))
    return done_at.get((stage, ("forward", number)))
