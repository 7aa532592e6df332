"""What a plan is expected to cost: the arithmetic exactly, the measurement against a run, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from bll.config import TrainingConfig
from bll.forecast import Forecast, Load, forecast
from bll.partition import resolve
from bll.plain import from_dict
from bll.plan import Plan
from bll.plan_command import plan_command

SPEC = """
model_id: digits
data: {name: digits}
network: {architecture: mlp, widths: [256, 8, 8, 8]}
blocks: {num_blocks: 2, cuts: [1]}
latent: {units: 8, readout: linear}
batch_size: 64
epochs: 1
"""


def expected(times_s: list[float], cores: int) -> Forecast:
    workers = tuple(Load(range(k, k + 1), time_s, 0) for k, time_s in enumerate(times_s))
    return Forecast(units=workers, workers=workers, batch_size=100, cores=cores)


def plan_of(**values: object) -> Plan:
    network = {"architecture": "mlp", "widths": [8, 8, 8]}
    small = {"data": {"name": "digits"}, "network": network, "latent": {"units": 4}, "blocks": {"num_blocks": 3}}
    return resolve(from_dict(TrainingConfig, {**small, "batch_size": 32, **values}))


def test_the_slowest_worker_bounds_a_pipeline_that_has_a_core_for_each() -> None:
    found = expected([0.1, 0.3, 0.2], cores=3)
    assert found.slowest.blocks == range(1, 2)
    assert found.pipeline_s == 0.3
    assert found.speed_up == pytest.approx(2.0)
    assert found.samples_per_s == pytest.approx(100 / 0.3)


def test_cores_bound_a_pipeline_of_more_workers() -> None:
    found = expected([0.1, 0.1, 0.1, 0.1], cores=2)
    assert found.pipeline_s == pytest.approx(0.2)
    assert found.speed_up == pytest.approx(2.0)
    assert expected([0.5], cores=64).speed_up == 1.0


@pytest.mark.parametrize("twin", ["direct", "chain"])
def test_every_worker_is_timed_and_nothing_is_written(
    twin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = forecast(plan_of(backward={"twin": twin}))
    assert [worker.blocks for worker in found.workers] == [range(1), range(1, 2), range(2, 3)]
    assert all(worker.step_s > 0 for worker in found.workers)
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_share_losses_are_one_worker() -> None:
    plan = plan_of(loss={"span": 2})
    found = forecast(plan)
    assert [worker.blocks for worker in found.workers] == [range(3)]
    of_losses = 3 * 4 * 32 * 10 * 4  # blocks, bytes, rows, classes, units
    of_layers = sum(16 * b.parameters + 32 * b.activation_bytes for b in plan.blocks)
    assert found.workers[0].memory_bytes == of_layers + of_losses
    assert found.speed_up == 1.0


def test_workers_take_what_their_blocks_take_and_the_slowest_as_little_as_can_be() -> None:
    found = forecast(plan_of(executor={"num_workers": 2}))
    assert [unit.blocks for unit in found.units] == [range(1), range(1, 2), range(2, 3)]
    assert [block for worker in found.workers for block in worker.blocks] == [0, 1, 2]
    assert len(found.workers) == 2
    assert sum(w.memory_bytes for w in found.workers) == sum(u.memory_bytes for u in found.units)
    times_s = [unit.step_s for unit in found.units]
    assert found.alone_s == pytest.approx(sum(times_s))
    assert found.slowest.step_s == pytest.approx(min(max(sum(times_s[:k]), sum(times_s[k:])) for k in (1, 2)))


def test_a_run_shorter_than_the_measurement_is_timed_too() -> None:
    found = forecast(plan_of(data={"name": "digits", "train_rows": 32}, epochs=1))
    assert all(worker.step_s > 0 for worker in found.workers)


def test_the_command_prints_blocks_bounds_and_better_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    assert plan_command([str(tmp_path / "spec.yaml"), "--propose"]) == 0
    printed = capsys.readouterr().out
    assert "dense 64->256" in printed
    assert "slowest: block" in printed
    assert "worker 1: block 1, " in printed
    assert "expected with 2 workers" in printed
    assert "cuts [" in printed


def test_the_command_tries_another_number_of_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    assert plan_command([str(tmp_path / "spec.yaml"), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "worker 0: blocks 0 to 1, 100% of a step" in printed
    assert "expected with 1 workers" in printed
    assert plan_command([str(tmp_path / "spec.yaml"), "--workers", "3"]) == 2
    assert "executor.num_workers: must be at most 2: a block is never divided, got 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("blocks: {num_blocks: 0}", "blocks.num_blocks: must be a whole number between 1 and 257, got 0"),
        ("blocks: {num_blocks: 9, cuts: []}\ndata: {name: digits}", "blocks.num_blocks"),
        ("- 1", "must hold named fields, got list"),
        ("a: [", "must be YAML or JSON"),
        ("colour: red", "colour: is not a field"),
    ],
)
def test_the_command_names_what_is_wrong_with_a_spec(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    assert plan_command([str(tmp_path / "spec.yaml")]) == 2
    assert words in capsys.readouterr().err


def test_the_command_says_that_a_file_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_command([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
