"""What a plan takes of a server, and what the server says of it."""

from __future__ import annotations

from typing import Any

import pytest

from bll.config import TrainingConfig
from bll.placement import crowding, num_workers
from bll.plain import from_dict
from bll.plan import BlockPlan, Plan
from bll_server.errors import InvalidRequest
from bll_server.jobs.capacity import Capacity, Demand, admitted, demand, fitted, obstacle


def plan_of(num_blocks: int = 4, warnings: tuple[str, ...] = (), **executor: Any) -> Plan:
    values = {"blocks": {"num_blocks": num_blocks}, "executor": {"name": "processes", **executor}}
    return Plan(
        config=from_dict(TrainingConfig, values),
        blocks=(BlockPlan(0, ("dense",), 10, 20, (4,), 16),) * num_blocks,
        input_shape=(4,),
        class_names=("a", "b"),
        steps_per_epoch=10,
        dataset_digest="0" * 64,
        warnings=warnings,
    )


@pytest.mark.parametrize(
    ("executor", "threads"),
    [
        ({}, 4),
        ({"num_workers": 3}, 3),
        ({"num_workers": 2, "threads_per_block": 2}, 4),
        ({"name": "sequential"}, 1),
        ({"name": "sequential", "threads_per_block": 3}, 3),
        ({"name": "threads"}, 4),
        ({"name": "ray"}, 4),
        ({"name": "ray", "address": "head:6379"}, 0),
    ],
)
def test_a_job_takes_the_threads_of_all_its_workers_at_once(executor: dict[str, Any], threads: int) -> None:
    assert demand(plan_of(**executor), "", Capacity(threads=8)).threads == threads


def test_a_job_takes_one_share_of_each_device_that_its_blocks_name() -> None:
    devices = ["cuda:0", "cuda:0", "cpu", "cuda:1"]
    assert demand(plan_of(devices=devices), "", Capacity(threads=8)).devices == {"cuda:0", "cuda:1"}
    on_cluster = plan_of(name="ray", address="head:6379", devices=["cuda:0"])
    assert demand(on_cluster, "", Capacity(threads=8)) == Demand(0, address="head:6379")


@pytest.mark.parametrize(("threads", "per_block", "workers"), [(8, 1, 4), (3, 1, 3), (1, 1, 1), (5, 2, 2), (2, 2, 1)])
def test_an_open_number_of_workers_is_what_there_are_threads_for(threads: int, per_block: int, workers: int) -> None:
    plan, capacity = plan_of(threads_per_block=per_block), Capacity(threads=threads)
    assert demand(plan, "", capacity).threads == workers * per_block <= threads
    given = fitted(plan, "", capacity)
    assert num_workers(given) == workers
    assert given.config.executor.decisive() == plan.config.executor.decisive()


def test_an_owner_may_have_fewer_threads_than_the_server_has() -> None:
    capacity = Capacity(threads=8, owner_threads=2)
    assert demand(plan_of(), "ann", capacity).threads == 2
    assert demand(plan_of(), "", capacity).threads == 4
    assert obstacle(Demand(3), "ann", capacity) == "needs 3 threads, and a job may have 2 here"
    assert obstacle(Demand(3), "", capacity) == ""


@pytest.mark.parametrize(
    ("executor", "field", "words"),
    [
        ({"num_workers": 3}, "num_workers", "must be at most 2: a job may have 2 threads here, .* got 3"),
        ({"num_workers": 2, "threads_per_block": 2}, "num_workers", "must be at most 1: .* each worker has 2, got 2"),
        ({"threads_per_block": 3}, "threads_per_block", "must be at most the 2 threads .* got 3"),
        ({"name": "sequential", "threads_per_block": 3}, "threads_per_block", "must be at most the 2 threads"),
        (
            {"name": "ray", "address": "elsewhere:6379"},
            "address",
            r"must be one of the Ray clusters of this server \(head:6379\), or empty, got 'elsewhere:6379'",
        ),
    ],
)
def test_what_can_never_run_is_refused_by_field_with_the_numbers(
    executor: dict[str, Any], field: str, words: str
) -> None:
    capacity = Capacity(threads=2, ray_addresses=frozenset({"head:6379"}))
    with pytest.raises(InvalidRequest, match=rf"^job\.spec\.executor\.{field}: {words}"):
        admitted(plan_of(**executor), "", capacity)


def test_a_server_without_clusters_takes_no_address() -> None:
    with pytest.raises(InvalidRequest, match=r"executor\.address: .* of this server \(none\), or empty"):
        admitted(plan_of(name="ray", address="head:6379"), "", Capacity(threads=2))


def test_a_listed_cluster_may_have_more_workers_than_the_server_has_threads() -> None:
    plan = plan_of(name="ray", address="head:6379", num_workers=4)
    assert admitted(plan, "", Capacity(threads=1, ray_addresses=frozenset({"head:6379"}))) == plan


def test_warnings_tell_of_the_workers_that_the_server_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bll_server.jobs.capacity.usable_cores", lambda: 2)
    plan = plan_of(warnings=("small", crowding(plan_of(), 4, 2)))
    shared = "executor: 2 workers share the 4 blocks, since a job may have 2 threads here"
    assert admitted(plan, "", Capacity(threads=2)).warnings == ("small", shared)
    assert admitted(plan, "", Capacity(threads=8)).warnings == plan.warnings
    three = admitted(plan, "", Capacity(threads=3)).warnings
    assert three[1:] == (
        "executor: 3 workers share the 4 blocks, since a job may have 3 threads here",
        crowding(plan, 3, 2),
    )
