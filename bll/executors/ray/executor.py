"""An actor a worker, all in one placement group; messages through Ray's object store.

Who watches whom: Ray tells the driver of an actor's death, its silence shows by its heartbeat, and the driver ends the
others; Ray ends the actors of a driver that is gone. Neighbours do not watch each other.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from bll.devices import device_of
from bll.errors import BllError, ClusterError, WorkerLost
from bll.executors.processes import ENVIRONMENT
from bll.executors.ray.actor import CONCURRENCY_GROUPS, BlockActor
from bll.executors.ray.channel import RayChannel
from bll.executors.ray.cluster import Bundle, Cluster
from bll.executors.ray.pulse import Pulse
from bll.placement import worker_name
from bll.plan import Plan
from bll.wiring import BlockEnded, WorkerEvent, wire
from bll.worker import Run

_POLL_S = 0.2
"""How long a request to stop may lie."""
_START_S = 120.0
"""How long an actor may take to import torch and answer."""
_END_S = 10.0
"""How long a killed actor may take to be gone."""


class RayExecutor:
    """Runs each worker in an actor."""

    def __init__(self) -> None:
        self._stop = self._cancelled = False
        self._workers: tuple[range, ...] = ()
        self._cluster: Cluster | None = None
        self._actors: list[Any] = []
        self._places: list[str] = []
        """Process and node of each actor, in words."""

    def launch(self, run: Run) -> None:
        """As `Executor.launch`. Raises ClusterError, and WorkerLost, too."""
        self._stop = self._cancelled = False
        self._workers, self._places = run.placement.workers, []
        executor = run.plan.config.executor
        bundles = [_bundle(run.plan, blocks) for blocks in self._workers]
        self._cluster = Cluster(executor.address, bundles, _store_bytes(run.plan, self._workers))
        try:
            group = self._cluster.reserve(bundles)
            # Nodes have working folders of their own.
            root = run.data_root.absolute() if run.data_root else None
            run = replace(run, run_dir=run.run_dir.absolute(), data_root=root)
            self._actors = [_actor(run, position, bundle, group) for position, bundle in enumerate(bundles)]
            self._meet(run.run_dir)
            self._pulse = Pulse(self._actors, executor.heartbeat_seconds)
        except BaseException:
            self._end()
            raise

    def events(self) -> Generator[WorkerEvent, None, None]:
        try:
            streams = self._streams()
            running = dict(enumerate(streams))
            stop_sent = False
            while running and not self._cancelled:
                if self._stop and not stop_sent:
                    self._actors[0].stop.remote()
                    stop_sent = True
                ready, _ = ray.wait(list(running.values()), timeout=_POLL_S)
                for position in [position for position, stream in running.items() if stream in ready]:
                    try:
                        event = _next(running[position])
                    except RayError as error:
                        yield from self._last_words(streams)
                        raise self._loss(position, f"died: {_reason(error)}") from error
                    if isinstance(event, BlockEnded):
                        del running[position]
                    yield event
                if (silent := self._pulse.silent(running)) is not None:
                    yield from self._last_words(streams)
                    raise self._loss(silent, f"gave no sign of life for {self._pulse.limit_s:g} seconds")
        finally:
            self._end()

    def stop(self) -> None:
        self._stop = True

    def cancel(self) -> None:
        self._cancelled = True

    def _streams(self) -> list[Any]:
        """The events of each actor, which starts to train."""
        beside = [None, *self._actors, None]
        return [actor.events.remote(beside[at], beside[at + 2]) for at, actor in enumerate(self._actors)]

    def _last_words(self, streams: list[Any]) -> Generator[WorkerEvent, None, None]:
        """End the actors, and pass on what they had told. Raises an error that was among it."""
        self._kill()
        for stream in streams:
            with suppress(RayError, StopIteration):
                while True:
                    yield _next(stream)

    def _loss(self, position: int, how: str) -> WorkerLost:
        blocks = self._workers[position]
        whose = "its actor" if len(blocks) == 1 else f"the actor of {worker_name(blocks)}"
        place = f" ({self._places[position]})" if position < len(self._places) else ""
        return WorkerLost(blocks[0], f"{whose}{place} {how}")

    def _meet(self, run_dir: Path) -> None:
        """Wait until every actor is there and shares `run_dir`. Raises ClusterError or WorkerLost."""
        run_dir.mkdir(parents=True, exist_ok=True)
        question = run_dir / f".meet-{uuid.uuid4().hex}"
        question.write_text(question.name)
        try:
            answers = [actor.meet.remote(question) for actor in self._actors]
            for position, answer in enumerate(answers):
                self._places.append(self._met(position, answer, question))
        finally:
            for file in run_dir.glob(f"{question.name}*"):
                file.unlink(missing_ok=True)

    def _met(self, position: int, answer: Any, question: Path) -> str:
        name = worker_name(self._workers[position])
        try:
            pid, node = ray.get(answer, timeout=_START_S)
            question.with_name(f"{question.name}-{position}").read_text()
        except GetTimeoutError as error:
            raise ClusterError(f"{name} has not started within {_START_S:g} s") from error
        except OSError as error:  # the actor's too: Ray raises what is both its own error and the cause's
            rule = f"every node must have the run's folder {question.parent}, shared under this path"
            raise ClusterError(f"{rule}; {name} and the driver do not see each other's files: {error}") from error
        except RayError as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:  # as it would another time
                raise ClusterError(f"{name} cannot be made on its node: {_reason(error)}") from error
            raise self._loss(position, f"died: {_reason(error)}") from error
        return f"pid {pid} on {node}"

    def _kill(self) -> None:
        """End the actors, and wait until Ray has seen it."""
        for actor in self._actors:
            with suppress(RayError):
                ray.kill(actor)
        for actor in self._actors:
            with suppress(RayError):  # raised once it is dead
                ray.get(actor.beat.remote(), timeout=_END_S)

    def _end(self) -> None:
        self._kill()
        self._actors = []
        if self._cluster:
            self._cluster.close()


def _next(stream: Any) -> WorkerEvent:
    """The next event of an actor, waiting for it. Raises what training raised, and RayError if the actor is gone."""
    try:
        event: WorkerEvent = ray.get(next(stream))
    except RayTaskError as error:  # its text has the actor's trace
        if isinstance(error.cause, BllError):
            raise error.cause from error
        raise
    return event


def _bundle(plan: Plan, blocks: range) -> Bundle:
    """What the worker of `blocks` reserves; its blocks take turns."""
    bundle: Bundle = {"CPU": plan.config.executor.threads_per_block}
    if any(device_of(plan.config.executor, block).type == "cuda" for block in blocks):
        bundle["GPU"] = 1
    return bundle


def _store_bytes(plan: Plan, workers: tuple[range, ...]) -> int:
    """What may be in the object store: every line full, and a packet more that is read at one end, and written at the
    other."""
    sizes: list[int] = []

    def channel(slots: int, size_bytes: int) -> RayChannel:
        sizes.append((slots + 2) * size_bytes)
        return RayChannel(slots)

    wire(plan, workers, channel, lambda _event: None, lambda: False)
    return sum(sizes)


def _actor(run: Run, position: int, bundle: Bundle, group: PlacementGroup) -> Any:
    kind = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(BlockActor)  # type: ignore[call-overload]
    return kind.options(
        num_cpus=bundle["CPU"],
        num_gpus=bundle.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=position),
        runtime_env={"env_vars": ENVIRONMENT},
    ).remote(run, position)


def _reason(error: RayError) -> str:
    """The sentence of Ray's long text that says what happened."""
    text = str(error)
    if detail := re.search(r"Worker exit detail: (.*?)\. Some common causes", text, re.DOTALL):
        return detail[1]
    return text.strip().splitlines()[-1]
