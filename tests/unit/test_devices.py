"""Which devices a config may name, what they come to, and what of them decides a result."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bll.config import TrainingConfig
from bll.devices import device_of, resolved_devices
from bll.errors import CheckpointError, InvalidConfig
from bll.execution import ExecutorConfig
from bll.partition import resolve
from bll.plain import from_dict
from bll.training import Training

RULE = "must be cpu, cuda, cuda and a number (cuda:1), or auto"
NO_DEVICES = ("gpu", "CUDA", "cuda:", "cuda:-1", "cuda:01", "cuda:100", "cpu:0", "meta", "cuda\n", "", 0, None)


def config(**values: Any) -> TrainingConfig:
    network = {"architecture": "mlp", "widths": [8, 8]}
    base = {"data": {"name": "digits"}, "network": network, "blocks": {"num_blocks": 2}, "batch_size": 512, "epochs": 1}
    return from_dict(TrainingConfig, {**base, **values})


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("cpu", "executor.devices: must list 1 to 257 entries, got 'cpu'"),
        ([], "executor.devices: must list 1 to 257 entries, got 0"),
        (["cpu"] * 258, "executor.devices: must list 1 to 257 entries, got 258"),
        *(([name], f"executor.devices[0]: {RULE}, got {name!r}") for name in NO_DEVICES),
        (["cpu", "cuda:x"], f"executor.devices[1]: {RULE}, got 'cuda:x'"),
    ],
)
def test_what_is_no_device_is_refused_by_name(devices: Any, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config(executor={"devices": devices})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"executor": {"devices": ["cpu"] * 3}},
            "executor.devices: must have 1 or blocks.num_blocks = 2 entries, got ['cpu', 'cpu', 'cpu']",
        ),
        (
            {"executor": {"devices": ["cpu"] * 2}, "rule": "backprop"},
            "executor.devices: must have 1 or blocks.num_blocks = 1 entries, got ['cpu', 'cpu']",
        ),
        (
            {"executor": {"devices": ["cpu", "cuda"]}, "loss": {"span": 2}},
            "executor.devices: must be one for all blocks with loss.span 2, whose blocks share a graph, got ['cpu', ",
        ),
        (
            {"executor": {"devices": ["cuda:1"]}},
            "executor.devices[0]: must be a device of this machine (cpu, cuda:0), got 'cuda:1'",
        ),
        (
            {"executor": {"devices": ["auto", "cuda:9"]}},
            "executor.devices[1]: must be a device of this machine (cpu, cuda:0), got 'cuda:9'",
        ),
        (
            {"executor": {"devices": ["cuda"]}, "blocks": {"num_blocks": 2, "balance": "measured_time"}},
            "must be another than 'measured_time', which measures the CPU, for devices ['cuda:0'], got 'measured_time'",
        ),
        (
            {"executor": {"precision": "bfloat16"}, "rule": "feedback_alignment"},
            "must be 'float32' for rule 'feedback_alignment', which makes its gradients by itself, got 'bfloat16'",
        ),
    ],
)
def test_what_a_run_cannot_have_is_refused_with_what_there_is(
    values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InvalidConfig) as caught:
        resolve(config(**values))
    assert message in str(caught.value)


def test_cuda_is_not_asked_for_where_all_compute_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> int:
        raise AssertionError("CUDA was asked")

    monkeypatch.setattr("torch.cuda.device_count", asked)
    assert resolve(config()).config.executor.devices == ("cpu",)
    with pytest.raises(AssertionError, match="CUDA was asked"):
        resolve(config(executor={"devices": ["auto"]}))


def test_what_the_forkserver_loads_asks_nothing_of_cuda() -> None:
    """A process that has started CUDA cannot be forked."""
    code = """
import torch
def asked(*_): raise SystemExit("CUDA was asked")
for name in ("_lazy_init", "init", "is_available", "device_count", "current_device"):
    setattr(torch.cuda, name, asked)
import bll.executors.processes
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_auto_is_the_cpu_where_there_is_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert resolved_devices(("auto",), 3) == ("cpu",)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("auto",), ("cuda:0", "cuda:0", "cuda:1", "cuda:1")),
        (("cuda",), ("cuda:0",)),
        (("cuda:1",), ("cuda:1",)),
        (("cpu", "cuda", "auto", "auto"), ("cpu", "cuda:0", "cuda:1", "cuda:1")),
        (("cpu", "cpu", "cpu", "cpu"), ("cpu",)),
    ],
)
def test_resolved_devices_have_numbers_and_stay_as_they_are_when_resolved_again(
    names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert resolved_devices(names, 4) == expected
    assert resolved_devices(expected, 4) == expected
    assert [str(device_of(ExecutorConfig(devices=expected), block)) for block in range(4)] == [
        expected[block if len(expected) > 1 else 0] for block in range(4)
    ]


@pytest.mark.usefixtures("two_gpus")
def test_blocks_that_share_a_graph_share_a_device() -> None:
    plan = resolve(config(executor={"devices": ["auto"]}, loss={"span": 2}))
    assert plan.config.executor.devices == ("cuda:0",)


@given(st.integers(1, 40), st.integers(1, 8))
def test_auto_gives_every_device_as_many_blocks_in_a_row_within_one(blocks: int, devices: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.device_count", lambda: devices)
        names = resolved_devices(("auto",), blocks)
    numbers = [int(name.partition(":")[2]) for name in (names * blocks)[:blocks]]
    assert numbers == sorted(numbers)
    counts = [numbers.count(number) for number in range(devices)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("devices", "decisive"),
    [
        (("cuda:1",), ("cuda",)),
        (("cuda:0", "cuda:1"), ("cuda",)),
        (("cpu", "cuda:1"), ("cpu", "cuda")),
        (("cpu",), ("cpu",)),
    ],
)
def test_of_a_device_its_kind_decides_and_not_its_number(devices: tuple[str, ...], decisive: tuple[str, ...]) -> None:
    assert ExecutorConfig(messages_in_flight=7, devices=devices).decisive() == ExecutorConfig(devices=decisive)


@pytest.mark.parametrize("change", [{"devices": ("cuda:0",)}, {"precision": "bfloat16"}, {"threads_per_block": 2}])
def test_a_checkpoint_of_another_device_or_precision_is_of_another_run(change: dict[str, Any], tmp_path: Path) -> None:
    plan = resolve(config(executor={"name": "sequential"}))
    for _ in Training(plan, tmp_path).events():
        pass
    executor = from_dict(ExecutorConfig, {"name": "sequential", **change})
    other = replace(plan, config=replace(plan.config, executor=executor))
    with pytest.raises(CheckpointError, match="belongs to another config"):
        list(Training(other, tmp_path).events())
