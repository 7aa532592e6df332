"""Placement: whole units, consecutive, on as many workers as asked for."""

from __future__ import annotations

from typing import Any

import pytest

from bll.config import TrainingConfig
from bll.partition import resolve
from bll.placement import flops, num_workers, place, worker_name
from bll.plain import from_dict
from bll.plan import Plan


def plan_of(**values: Any) -> Plan:
    network = {"architecture": "mlp", "widths": [64, 8, 8, 8]}
    small = {"data": {"name": "digits"}, "network": network, "latent": {"units": 4}, "blocks": {"num_blocks": 4}}
    return resolve(from_dict(TrainingConfig, {**small, "batch_size": 32, **values}))


@pytest.mark.parametrize(
    ("values", "number"),
    [
        ({}, 4),
        ({"executor": {"num_workers": 3}}, 3),
        ({"executor": {"name": "sequential"}}, 1),
        ({"loss": {"span": 2}}, 1),
        ({"rule": "backprop"}, 1),
    ],
)
def test_a_plan_has_a_worker_for_each_unit_unless_it_asks_for_less(values: dict[str, Any], number: int) -> None:
    assert num_workers(plan_of(**values)) == number


def test_a_placement_puts_every_block_on_one_worker_in_order() -> None:
    plan = plan_of()
    assert place(plan, 4, [1, 2, 3, 4]).workers == plan.units
    assert place(plan, 1, [1, 2, 3, 4]).workers == (range(4),)
    assert place(plan, 2, [1, 1, 1, 1]).workers == (range(2), range(2, 4))
    assert place(plan, 2, [9, 1, 1, 1]).workers == (range(1), range(1, 4))
    assert place(plan, 3, [1, 1, 1, 9]).workers == (range(1), range(1, 3), range(3, 4))


def test_blocks_that_share_losses_stay_together() -> None:
    plan = plan_of(loss={"span": 2})
    assert place(plan, 1, flops(plan)).workers == (range(4),)


def test_costs_without_a_measurement_are_the_multiply_adds_of_units() -> None:
    plan, joint = plan_of(), plan_of(loss={"span": 2})
    assert flops(plan) == tuple(block.flops for block in plan.blocks)
    assert flops(joint) == (sum(block.flops for block in joint.blocks),)
    assert place(plan, 2, flops(plan)).workers[0] == range(1)  # 64 inputs to 64 units weigh more than the rest


def test_workers_that_are_pinned_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {3, 5, 6, 7})
    plan = plan_of(executor={"pin_cpus": True, "threads_per_block": 2, "num_workers": 2})
    assert place(plan, 2, flops(plan)).cpus == ((3, 5), (6, 7))
    assert place(plan, 3, flops(plan)).cpus == ((3, 5), (6, 7), (3, 5))
    assert place(plan_of(), 2, flops(plan)).cpus == ()


def test_a_worker_is_named_after_its_blocks() -> None:
    assert worker_name(range(2, 3)) == "block-2"
    assert worker_name(range(2, 5)) == "blocks-2-4"
