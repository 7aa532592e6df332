"""Many who watch one job through a real server, and one who does not read; the job runs a small program."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from bll_proto.v1 import training_pb2, training_pb2_grpc
from bll_server.app import Server
from bll_server.settings import Settings

# Tells of as many reports of two blocks as the job's id says, a checkpoint after each hundred, and then waits.
RUNNER = """
import json, pathlib, sys
from bll.events import BlockProgress, CheckpointSaved, RunEnded, to_json
count = int(pathlib.Path(sys.argv[1]).name.split("-")[1])
print(json.dumps({"event": "Started"}), flush=True)
for step in range(1, count // 2 + 1):
    for block in range(2):
        print(to_json(BlockProgress(block, 0, step, 1.2, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.0)))
    if step % 50 == 0:
        print(to_json(CheckpointSaved(step, 0)), flush=True)
sys.stdout.flush()
[print(to_json(RunEnded(step, False)), flush=True) or sys.exit() for line in sys.stdin if line == "stop\\n"]
"""
SPEC = training_pb2.JobSpec(
    data=training_pb2.DataSpec(name="digits"),
    network=training_pb2.NetworkSpec(architecture="mlp", widths=[8, 8]),
    blocks=training_pb2.BlocksSpec(num_blocks=2),
    latent=training_pb2.LatentSpec(units=4, readout_units=8),
    executor=training_pb2.ExecutorSpec(name=training_pb2.EXECUTOR_NAME_SEQUENTIAL),
)
# A client that takes no more than it is asked for, so that its server has to wait for it.
UNREAD = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))

Stub = training_pb2_grpc.TrainingServiceStub


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("server")
    settings = Settings(port=0, metrics_port=0, data_dir=folder, drain_s=5, cancel_grace_s=5, max_watchers=32)
    server = Server(settings, [sys.executable, "-c", RUNNER])
    yield server
    server.stop()


@pytest.fixture
def stub(server: Server) -> Iterator[Stub]:
    with grpc.insecure_channel(server.address) as channel:
        yield Stub(channel)


def watch(stub: Stub, name: str, after: int = 0) -> Any:
    return stub.WatchJob(training_pb2.WatchJobRequest(name=name, after_event=after), timeout=100)


def create(stub: Stub, job_id: str) -> str:
    request = training_pb2.CreateJobRequest(job=training_pb2.Job(spec=SPEC), job_id=job_id)
    return stub.CreateJob(request, timeout=90).job.name


def last_event(stub: Stub, name: str) -> int:
    return stub.GetJob(training_pb2.GetJobRequest(name=name), timeout=10).job.last_event


def states(events: list[training_pb2.JobEvent]) -> list[int]:
    return [event.state_change.state for event in events if event.HasField("state_change")]


def test_each_of_twenty_watchers_sees_every_event(stub: Stub) -> None:
    name = create(stub, "tells-20-times")
    with ThreadPoolExecutor(20) as pool:
        seen = [pool.submit(lambda: [response.event for response in watch(stub, name)]) for _ in range(20)]
        next(e for e in watch(stub, name) if e.event.state_change.state == training_pb2.JOB_STATE_RUNNING)
        stub.PauseJob(training_pb2.PauseJobRequest(name=name), timeout=10)
        next(e for e in watch(stub, name) if e.event.state_change.state == training_pb2.JOB_STATE_PAUSED)
        stub.CancelJob(training_pb2.CancelJobRequest(name=name), timeout=10)
        told = [response.event for response in watch(stub, name)]
        assert [event.number for event in told] == list(range(1, len(told) + 1))
        assert states(told)[-3:] == [
            training_pb2.JOB_STATE_PAUSING,
            training_pb2.JOB_STATE_PAUSED,
            training_pb2.JOB_STATE_CANCELLED,
        ]
        assert all(watcher.result(60) == told for watcher in seen)


def test_who_does_not_read_keeps_nobody_waiting_and_loses_nothing_but_reports(server: Server, stub: Stub) -> None:
    with grpc.insecure_channel(server.address, options=UNREAD) as channel:
        name = create(stub, "tells-3000-times")
        slow = watch(Stub(channel), name)
        taken = [next(slow).event]
        reached = threading.Event()

        def keep_up() -> list[int]:
            seen = []
            for response in watch(stub, name):
                seen += states([response.event])
                if response.event.number >= 3000:
                    reached.set()
            return seen

        with ThreadPoolExecutor(1) as pool:
            fast = pool.submit(keep_up)
            assert reached.wait(90)  # while the other has read one event
            stub.CancelJob(training_pb2.CancelJobRequest(name=name), timeout=10)
            told = [response.event for response in watch(stub, name)]
            assert fast.result(60) == states(told)
        assert [event.number for event in told] == list(range(1, len(told) + 1))
        taken += [response.event for response in slow]
    rest = [event for event in told if not event.HasField("block_progress")]
    newest = {event.block_progress.block: event for event in told if event.HasField("block_progress")}
    numbers = [event.number for event in taken]
    assert numbers == sorted(set(numbers))
    assert all(event in taken for event in (*rest, *newest.values()))
    assert len(taken) < len(told) - 1000
    assert states(taken)[-1] == training_pb2.JOB_STATE_CANCELLED
