"""What executor `ray` does besides the contract of all executors."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from bll.config import TrainingConfig
from bll.errors import BlockFailed, ClusterError, InvalidConfig
from bll.events import BlockProgress, Event, RolledBack
from bll.executors.ray import RayExecutor, cluster
from bll.partition import resolve
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import Training

pytestmark = pytest.mark.timeout(300)


def plan_of(values: dict[str, Any] | None = None, **executor: Any) -> Plan:
    base = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [16, 16]},
        "blocks": {"num_blocks": 2},
        "batch_size": 128,
        "epochs": 10_000,
        **(values or {}),
    }
    return resolve(from_dict(TrainingConfig, {**base, "executor": {"name": "ray", **executor}}))


def wait_for_training(events: Iterator[Event]) -> None:
    """Until a block has told of a step."""
    next(event for event in events if isinstance(event, BlockProgress))


def pids(training: Training) -> list[int]:
    """Process numbers of the actors."""
    executor = training._supervisor._executor
    assert isinstance(executor, RayExecutor)
    return [int(place.split()[1]) for place in executor._places]


def assert_ended(pidfds: list[int]) -> None:
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 30)[0], "an actor outlived its run"
        os.close(pidfd)


def assert_nothing_is_reserved() -> None:
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}


def test_closing_the_events_ends_the_actors_and_gives_back_their_room(ray_here: str, tmp_path: Path) -> None:
    training = Training(plan_of(), tmp_path)
    threads_before = threading.active_count()
    events = training.events()
    wait_for_training(events)
    actors = [os.pidfd_open(pid) for pid in pids(training)]
    assert len(actors) == 2
    events.close()  # type: ignore[attr-defined]
    assert_ended(actors)
    assert_nothing_is_reserved()
    assert threading.active_count() == threads_before
    assert [path.name for path in tmp_path.iterdir()] in ([], ["checkpoints"])


def test_a_killed_actor_is_named_and_the_run_goes_on(ray_here: str, tmp_path: Path) -> None:
    training = Training(plan_of(max_restarts=1), tmp_path)
    events = training.events()
    wait_for_training(events)
    first = pids(training)
    actors = [os.pidfd_open(pid) for pid in first]
    os.kill(first[1], signal.SIGKILL)
    back = next(event for event in events if isinstance(event, RolledBack))
    assert back.block == 1
    assert re.search(r"its actor \(pid \d+ on \S+\) died: Worker unexpectedly exits", back.cause)
    assert_ended(actors)
    wait_for_training(events)
    assert not set(first) & set(pids(training))
    training.cancel()
    list(events)
    assert_nothing_is_reserved()


def test_an_actor_that_hangs_is_named_and_ended(ray_here: str, tmp_path: Path) -> None:
    training = Training(plan_of(max_restarts=0, heartbeat_seconds=5), tmp_path)
    events = training.events()
    wait_for_training(events)
    actors = [os.pidfd_open(pid) for pid in pids(training)]
    os.kill(pids(training)[0], signal.SIGSTOP)
    with pytest.raises(BlockFailed, match=r"block 0: its actor \(pid .*\) gave no sign of life for 5 seconds"):
        list(events)
    assert_ended(actors)
    assert_nothing_is_reserved()


def test_what_a_block_raises_ends_the_run_and_names_it(ray_here: str, clocked: Path, tmp_path: Path) -> None:
    network = {"architecture": "clocked", "widths": [16, 16]}
    events = Training(plan_of({"network": network}), tmp_path).events()
    wait_for_training(events)
    try:
        (clocked / "fail").touch()
        with pytest.raises(BlockFailed, match=r"block [01]: ArithmeticError\('as asked'\)") as caught:
            list(events)
    finally:
        (clocked / "fail").unlink()
    assert "in forward" in str(caught.value.__cause__)  # the actor's trace
    assert_nothing_is_reserved()


def test_a_process_apart_trains_on_the_cluster_at_an_address(ray_here: str, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, bll\n"
        "spec = {'data': {'name': 'digits'}, 'network': {'architecture': 'mlp', 'widths': [8]}, 'epochs': 1,\n"
        "        'blocks': {'num_blocks': 1}, 'executor': {'name': 'ray', 'address': sys.argv[1]}}\n"
        "from bll.plain import from_dict\n"
        "bll.fit(from_dict(bll.TrainingConfig, spec), run_dir=pathlib.Path(sys.argv[2]))\n"
    )
    subprocess.run([sys.executable, "-c", code, ray_here, str(tmp_path)], check=True, timeout=250)
    assert list(tmp_path.glob("checkpoints/*/manifest.json"))
    assert ray.is_initialized()
    assert_nothing_is_reserved()


def test_an_address_is_refused_in_a_process_that_is_connected(ray_here: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"executor\.address must be empty in a process that is connected"):
        list(Training(plan_of(address=ray_here), tmp_path).events())


def test_an_address_at_which_nobody_answers_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(cluster, "ANSWER_S", 1.0)
        with pytest.raises(ClusterError, match=rf"no Ray cluster answers at '127\.0\.0\.1:{port}': no answer within 1"):
            cluster.Cluster(f"127.0.0.1:{port}", [], 0)
    with pytest.raises(ClusterError, match=rf"no Ray cluster answers at '127\.0\.0\.1:{port}': .*refused"):
        cluster.Cluster(f"127.0.0.1:{port}", [], 0)


def test_folders_of_killed_runs_are_removed_and_those_in_use_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("bll-ray-used", "bll-ray-left", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    with (tmp_path / "bll-ray-used" / "lock").open() as used:
        fcntl.flock(used, fcntl.LOCK_EX)
        cluster._remove_left_folders()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bll-ray-used", "other"]


def test_a_run_without_room_is_refused_and_leaves_nothing(
    ray_here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ROOM_S", {"here": 0.5})
    message = r"no room within 0\.5 s for 2 workers that need 200 CPUs and 2 GPUs in all; Ray has 8 CPUs and 0 GPUs"
    with pytest.raises(ClusterError, match=message):
        list(Training(plan_of(threads_per_block=100, devices=["cuda"]), tmp_path).events())
    assert_nothing_is_reserved()


def test_a_run_folder_that_is_not_shared_is_refused(
    ray_here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node that has another folder under this path: the driver's file is not there."""
    monkeypatch.setattr(Path, "write_text", lambda *_: 0)
    with pytest.raises(ClusterError, match=rf"every node must have the run's folder {tmp_path}, shared .*block-0"):
        list(Training(plan_of(), tmp_path).events())
    assert_nothing_is_reserved()


def test_devices_are_for_the_cluster_to_choose() -> None:
    for devices, expected in ((["cuda"], ("cuda:0",)), (["cpu", "cuda"], ("cpu", "cuda:0")), (["cpu"], ("cpu",))):
        assert plan_of(devices=devices).config.executor.devices == expected
    for wrong in ("auto", "cuda:1"):
        with pytest.raises(InvalidConfig, match=rf"executor\.devices\[1\]: must be 'cpu' or 'cuda' .* got '{wrong}'"):
            plan_of(devices=["cpu", wrong])
