"""A job while it runs: live on a terminal, in lines elsewhere, in JSON lines for programs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bll_client import (
    Alarm,
    BlockContinued,
    BlockDiagnostics,
    BlockProgress,
    BlocksPlaced,
    BlockWaiting,
    CheckpointDamaged,
    CheckpointSaved,
    Client,
    ClientError,
    Evaluation,
    Job,
    JobEvent,
    JobState,
    PlacedWorker,
    RolledBack,
    StateChange,
)
from bll_client.cli.exits import ExitCode
from bll_client.cli.output import Format, console, plain, print_json, scores, show_state, span


def follow(client: Client, job: Job, after_event: int, output: Format, again: str) -> ExitCode:
    """Show the events of `job` until it is over; its outcome.

    Ctrl-C leaves the job alone and prints `again`, the command that goes on from here.
    """
    last = after_event
    try:
        with _view(job, output, lambda: client.get_job(job.name)) as view:
            for event in client.watch_job(job.name, after_event):
                view.show(event)
                last = event.number
        finished = client.get_job(job.name)
    except KeyboardInterrupt:
        print(f"\nDetached: {job.name} goes on. To watch it again: {again} --after {last}", file=sys.stderr)
        return ExitCode.DETACHED
    view.end(finished)
    return ExitCode.OK if finished.state is JobState.SUCCEEDED else ExitCode.JOB_FAILED


class LineView:
    """A line for each event but diagnostics."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to restore here; what is drawn on a terminal ends."""

    def show(self, event: JobEvent) -> None:
        if text := line(event):
            print(f"{event.time.astimezone():%H:%M:%S} {text}", flush=True)

    def end(self, job: Job) -> None:
        """Show the job in its final state."""
        print()
        show_state(job)


class JsonView(LineView):
    """A JSON document on each line: the events, then the job. `kind` tells them apart."""

    def show(self, event: JobEvent) -> None:
        kind = type(event.event).__name__ if event.event else None
        content = plain(event.event) if event.event else {}
        print_json({"kind": kind, "number": event.number, "time": event.time, **content}, indent=None)

    def end(self, job: Job) -> None:
        print_json({"kind": "Job", **plain(job)}, indent=None)


_SHOWN_WARNINGS = 4
"""The newest, under the bars."""
_LOOK_S = 2.0
"""Time between two looks at the job's progress."""


class LiveView(LineView):
    """A head with the job's state, and a bar with figures for each block, redrawn as events come."""

    def __init__(self, job: Job, look: Callable[[], Job]) -> None:
        """`look` asks the server for the job as it is now, whose progress no event tells."""
        self._look = look
        self._looked_at = -math.inf
        self._progress = job.progress
        self._name = job.name
        self._state = job.state
        self._validation = job.validation
        self._waiting: dict[tuple[int, int], BlockWaiting] = {}
        self._warnings: list[str] = []
        steps_per_epoch = job.plan.steps_per_epoch if job.plan else 0
        # Zero where the server has no plan to tell: no bar can be drawn to scale then.
        self._total_steps = steps_per_epoch * int(job.resolved_spec.get("epochs", 0))
        self._blocks: dict[int, BlockProgress | None] = dict.fromkeys(range(len(job.plan.blocks) if job.plan else 0))
        self._live = Live(get_renderable=self._draw, console=console(), refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, event: JobEvent) -> None:
        match event.event:
            case StateChange(state=state):
                self._state = state
                self._waiting.clear()
            case BlockProgress(block=block):
                self._blocks[block] = event.event
                self._look_again()
            case Evaluation(split="validation"):
                self._validation = event.event
            case Alarm() | CheckpointDamaged() | BlockContinued():
                self._warnings.append(line(event))
            case RolledBack():
                self._warnings.append(line(event))
                self._waiting.clear()
            case BlockWaiting(block=block, neighbour=neighbour, ended=True):
                self._waiting.pop((block, neighbour), None)
            case BlockWaiting(block=block, neighbour=neighbour):
                self._waiting[block, neighbour] = event.event

    def _draw(self) -> RenderableType:
        warnings = self._warnings[-_SHOWN_WARNINGS:]
        warnings += [_wait(waiting) for waiting in self._waiting.values()]
        return Group(self._head(), self._table(), *(Text(warning, style="yellow") for warning in warnings))

    def _head(self) -> Text:
        parts = [f"{self._name} {self._state}"]
        if self._progress and self._progress.remaining and not self._state.is_final:
            parts.append(f"{span(self._progress.remaining)} to go")
        if self._validation is not None:
            parts.append(f"validation {scores(self._validation)}")
        return Text(" · ".join(parts), style="bold")

    def _look_again(self) -> None:
        if time.monotonic() - self._looked_at >= _LOOK_S:
            with suppress(ClientError):  # the stream of events will tell of it
                self._progress = self._look().progress
            self._looked_at = time.monotonic()

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("block")
        table.add_column("", width=24)
        for column in ("step", "loss", "accuracy", "variance", "samples/s", "waited", "blocked", "inbox"):
            table.add_column(column, justify="right", no_wrap=True)
        for k, block in sorted(self._blocks.items()):
            step = block.step if block else 0
            bar = ProgressBar(total=self._total_steps or None, completed=step, width=24)
            table.add_row(str(k), bar, f"{step}/{self._total_steps or '?'}", *(_figures(block) if block else ()))
        return table


def _view(job: Job, output: Format, look: Callable[[], Job]) -> LineView:
    if output is Format.JSON:
        return JsonView()
    return LiveView(job, look) if console().is_terminal else LineView()


def _figures(block: BlockProgress) -> tuple[str, ...]:
    return (
        f"{block.loss_nats:.4f}",
        f"{block.accuracy:.4f}",
        f"{block.posterior_variance:.4f}",
        f"{block.samples_per_s:.0f}",
        f"{block.wait.total_seconds():.1f} s",
        f"{block.send_wait.total_seconds():.1f} s",
        f"{block.inbox_fill:.0%}",
    )


def _warning(alarm: Alarm) -> str:
    where = "network" if alarm.block is None else f"block {alarm.block}"
    return f"alarm {alarm.signature}, {where} epoch {alarm.epoch}: {alarm.cause}; remedy: {alarm.remedy}"


def _wait(waiting: BlockWaiting) -> str:
    verb = "waited" if waiting.ended else "has waited"
    what = f"room in the line to block {waiting.neighbour}" if waiting.for_room else f"block {waiting.neighbour}"
    return f"block {waiting.block} {verb} {waiting.wait.total_seconds():.0f} s for {what}"


def _placed(worker: PlacedWorker) -> str:
    """What a worker runs, in words."""
    blocks = ("block " if len(worker.blocks) == 1 else "blocks ") + ", ".join(map(str, worker.blocks))
    where = f" on cores {', '.join(map(str, worker.cpus))}" if worker.cpus else ""
    return f"{blocks} ({worker.share:.0%} of a step){where}"


def line(event: JobEvent) -> str:
    """One event in words; empty for diagnostics, two dozen numbers that are for programs."""
    match event.event:
        case StateChange(state, reason):
            return f"job {state}" + (f": {reason}" if reason else "")
        case BlockProgress() as block:
            loss, accuracy, variance, rate, waited, blocked, inbox = _figures(block)
            return (
                f"block {block.block} epoch {block.epoch} step {block.step}: loss {loss}, accuracy {accuracy}, "
                f"variance {variance}, {rate} samples/s, waited {waited}, blocked {blocked}, inbox {inbox} full"
            )
        case Evaluation() as evaluation:
            return f"{evaluation.split} epoch {evaluation.epoch} step {evaluation.step}: {scores(evaluation)}"
        case BlockDiagnostics():
            return ""
        case BlocksPlaced(workers=workers):
            return "workers: " + " | ".join(_placed(worker) for worker in workers)
        case BlockWaiting() as waiting:
            return _wait(waiting)
        case Alarm() as alarm:
            return _warning(alarm)
        case CheckpointSaved(step):
            return f"checkpoint after step {step}"
        case CheckpointDamaged(step, fallback_step, cause):
            return f"checkpoint after step {step} is damaged, going on from step {fallback_step}: {cause}"
        case BlockContinued(block, step, from_step, cause):
            return f"block {block} goes on at step {step} with the weights of step {from_step}: {cause}"
        case RolledBack(step, block, cause):
            return f"rolled back to step {step}: block {block}, {cause}"
        case None:
            return f"event {event.number} is of a kind that this client does not know"
