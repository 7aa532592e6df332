"""What holds for one executor holds for all: the same bits, the same events, the same endings."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bll.choices import ExecutorName
from bll.config import DataConfig, TrainingConfig
from bll.errors import BllError, BlockFailed, Diverged
from bll.events import (
    Alarm,
    BlockDiagnostics,
    BlockProgress,
    BlocksPlaced,
    BlockWaiting,
    CheckpointSaved,
    Evaluation,
    Event,
    RunEnded,
)
from bll.partition import resolve
from bll.placement import worker_name
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import Training

EXECUTORS = (ExecutorName.SEQUENTIAL, ExecutorName.THREADS, ExecutorName.PROCESSES)
every_executor = pytest.mark.parametrize("name", EXECUTORS)
RAY = pytest.param(ExecutorName.RAY, marks=pytest.mark.timeout(300))
every_executor_and_ray = pytest.mark.parametrize("name", [*EXECUTORS, RAY])
"""For tests that say most: an actor takes seconds to start."""

SPECS: dict[str, dict[str, Any]] = {
    "direct_mlp": {"network": {"architecture": "mlp", "widths": [24, 24, 24]}, "blocks": {"num_blocks": 3}},
    "chain_dropout_augmentation_cnn": {
        "data": {"name": "digits", "augmentation": "shift_flip"},
        "network": {"widths": [4, 4, 8], "dropout": 0.2},
        "blocks": {"num_blocks": 4},
        "backward": {"twin": "chain", "delay_steps": 3},
        "latent": {"family": "gaussian", "units": 8, "readout_units": 16},
        "mixing": {"schedule": "linear", "start": 0.2, "end": 1.0, "ramp_epochs": 2},
    },
    "chain_longer_than_the_run": {
        "network": {"architecture": "mlp", "widths": [16, 16], "dropout": 0.5},
        "blocks": {"num_blocks": 2},
        "backward": {"twin": "chain", "delay_steps": 1000},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "warmup_steps": 5},
    },
    "auto_mixing_laplace": {
        "network": {"architecture": "mlp", "widths": [12, 12]},
        "blocks": {"num_blocks": 2},
        "latent": {"family": "laplace", "units": 6},
        "loss": {"posterior": "detached"},
        "mixing": {"schedule": "auto", "start": 0.1, "end": 1.0, "ramp_epochs": 2},
        "epochs": 4,
    },
    "identity_chain_bootstrap_normalised": {
        "network": {"architecture": "mlp", "widths": [16, 12, 8]},
        "blocks": {"num_blocks": 3, "normalize_messages": True},
        "latent": {"readout": "identity", "message": "mean", "bootstrap": 0.5, "bootstrap_epochs": 2},
        "backward": {"twin": "chain", "delay_steps": 2},
    },
    "identity_samples": {
        "network": {"widths": [4]},
        "blocks": {"num_blocks": 2},
        "latent": {"family": "gaussian", "readout": "identity", "message": "sample"},
    },
    "next_layer_dropout_cnn": {
        "network": {"widths": [4, 4, 8], "dropout": 0.2},
        "blocks": {"num_blocks": 3},
        "latent": {"readout": "next_layer", "ema_decay": 0.5, "units": 8},
        "backward": {"delay_steps": 2},
    },
    "next_layer_chain_longer_than_the_run": {
        "network": {"architecture": "mlp", "widths": [16, 12, 8]},
        "blocks": {"num_blocks": 3},
        "latent": {"readout": "next_layer", "units": 8},
        "backward": {"twin": "chain", "delay_steps": 1000},
    },
    "next_layer_chain_of_four": {
        "network": {"architecture": "mlp", "widths": [16, 12, 12, 8], "dropout": 0.2},
        "blocks": {"num_blocks": 4},
        "latent": {"readout": "next_layer", "ema_decay": 0.5, "units": 8},
        "backward": {"twin": "chain", "delay_steps": 2},
    },
    "next_layer_chain_overlapping_pairs": {
        "network": {"architecture": "mlp", "widths": [16, 12, 8]},
        "blocks": {"num_blocks": 3},
        "latent": {"readout": "next_layer", "ema_decay": 0.9, "units": 8},
        "backward": {"twin": "chain", "delay_steps": 3},
        "loss": {"span": 2},
    },
    "overlapping_pairs_chain": {
        "network": {"architecture": "mlp", "widths": [16, 12, 12], "dropout": 0.2},
        "blocks": {"num_blocks": 3},
        "backward": {"twin": "chain", "delay_steps": 3},
        "loss": {"span": 2},
    },
    "every_exit_by_backpropagation": {
        "network": {"widths": [4, 8]},
        "blocks": {"num_blocks": 2},
        "loss": {"span": 2, "posterior": "detached"},
        "mixing": {"schedule": "linear", "start": 0.5, "end": 1.0},
    },
    "similarity_reconstruction_samples": {
        "network": {"widths": [4]},
        "blocks": {"num_blocks": 2},
        "loss": {
            "name": "discriminative",
            "samples": 2,
            "similarity": 0.3,
            "reconstruction": 0.1,
            "block_weights": [1.0, 0.5],
        },
        "mixing": {"start": 0.5},
    },
    "prototype": {
        "rule": "prototype",
        "network": {"architecture": "mlp", "widths": [12, 12]},
        "blocks": {"num_blocks": 2},
    },
    "autoencoder_samples_augmentation": {
        "data": {"name": "digits", "target": "inputs", "augmentation": "shift_flip"},
        "network": {"architecture": "conv_autoencoder", "widths": [4, 6], "dropout": 0.1},
        "blocks": {"num_blocks": 2},
        "latent": {"units": 8, "readout_units": 16},
        "loss": {"name": "decoder", "samples": 2},
        "mixing": {"schedule": "auto", "start": 1.0, "end": 0.0},
    },
    "too_slow_to_learn": {
        "network": {"architecture": "mlp", "widths": [12, 12, 12]},
        "blocks": {"num_blocks": 3},
        "optimizer": {"learning_rate": 1e-6, "backward_learning_rate": 1e-6},
        "epochs": 4,
    },
    "one_block": {"network": {"architecture": "mlp", "widths": [16]}, "blocks": {"num_blocks": 1}},
    "feedback_alignment_cnn": {"rule": "feedback_alignment", "network": {"widths": [4, 8]}},
    "target_propagation_dropout": {
        "rule": "target_propagation",
        "network": {"architecture": "mlp", "widths": [16, 16, 16], "dropout": 0.2},
    },
    "synthetic_gradients": {"rule": "synthetic_gradients", "network": {"architecture": "mlp", "widths": [16, 16]}},
    "transformer_of_sequences": {
        "data": {"name": "reversal", "train_rows": 300, "validation_rows": 40},
        "network": {"architecture": "transformer", "widths": [8] * 4, "heads": 2, "dropout": 0.1},
        "blocks": {"num_blocks": 2},
        "latent": {"units": 4, "readout_units": 8},
        "backward": {"twin": "chain", "delay_steps": 2},
        "batch_size": 50,
    },
    "bfloat16_chain_cnn": {
        "network": {"widths": [4, 8], "dropout": 0.2},
        "blocks": {"num_blocks": 3},
        "backward": {"twin": "chain", "delay_steps": 3},
        "executor": {"precision": "bfloat16"},
    },
    "two_threads_a_block": {
        "network": {"widths": [4, 8]},
        "blocks": {"num_blocks": 2},
        "executor": {"threads_per_block": 2},
    },
}


def plan_of(values: dict[str, Any], name: ExecutorName, **executor: Any) -> Plan:
    base = {"data": {"name": "digits"}, "epochs": 2, "batch_size": 128, **values}
    config = from_dict(TrainingConfig, base)
    return resolve(replace(config, executor=replace(config.executor, name=name, **executor)))


def train(plan: Plan, run_dir: Path, *, stop_after: int | None = None) -> list[Event]:
    training = Training(plan, run_dir)
    events = []
    for event in training.events():
        events.append(event)
        if stop_after is not None and isinstance(event, BlockProgress) and event.step >= stop_after:
            training.pause()
    return events


def next_progress(events: Iterator[Event]) -> BlockProgress:
    """The next report of a block: from then on all workers run."""
    return next(event for event in events if isinstance(event, BlockProgress))


def digest_of(run_dir: Path, plan: Plan) -> str:
    """SHA-256 over every tensor of every block's newest checkpoint: weights, statistics, moments, tables."""
    training = Training(plan, run_dir)
    model = training.regression_model() if plan.is_regression else training.model()
    step = plan.total_steps
    folder = run_dir / "checkpoints" / f"step-{step:09d}"
    content = hashlib.sha256()
    for index in range(plan.num_blocks):
        content.update((folder / f"block-{index}.safetensors").read_bytes())
    for _, tensor in sorted(model.network.state_dict().items()):
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


@pytest.fixture(autouse=True)
def _ray_is_there(request: pytest.FixtureRequest) -> None:
    if hasattr(request.node, "callspec") and ExecutorName.RAY in request.node.callspec.params.values():
        request.getfixturevalue("ray_here")


Reference = Callable[[str], tuple[str, list[Event]]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Digest and events of a spec, run by the sequential loop without a pause, once."""

    @cache
    def run(key: str) -> tuple[str, list[Event]]:
        run_dir = tmp_path_factory.mktemp(key)
        plan = plan_of(SPECS[key], ExecutorName.SEQUENTIAL)
        events = train(plan, run_dir)
        return digest_of(run_dir, plan), events

    return run


def timeless(events: list[Event]) -> list[Event]:
    """Events in an order of their own, without what depends on the clock or tells who runs what."""

    def still(event: Event) -> Event:
        match event:
            case BlockProgress():
                return replace(
                    event, samples_per_s=0.0, wait_s=0.0, version_wait_s=0.0, send_wait_s=0.0, inbox_fill=0.0
                )
            case BlockDiagnostics():
                return replace(event, queue_depth=0)
        return event

    # Neither a slow machine's waits nor where blocks lie.
    told = (event for event in events if not isinstance(event, BlockWaiting | BlocksPlaced))
    return sorted(map(still, told), key=repr)


def under_ray(*values: Any) -> Any:
    """A case of a test with parameters `name` and others."""
    return pytest.param(*RAY.values, *values, marks=RAY.marks)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *((name, key) for name in EXECUTORS for key in SPECS),
        *(under_ray(key) for key in ("chain_longer_than_the_run", "two_threads_a_block")),
    ],
)
def test_weights_are_bit_identical_to_the_sequential_loop(
    name: ExecutorName, key: str, reference: Reference, tmp_path: Path
) -> None:
    plan = plan_of(SPECS[key], name)
    events = train(plan, tmp_path)
    assert digest_of(tmp_path, plan) == reference(key)[0]
    assert timeless(events) == timeless(reference(key)[1])


STOPPED = (
    "chain_dropout_augmentation_cnn",
    "identity_chain_bootstrap_normalised",
    "next_layer_dropout_cnn",
    "next_layer_chain_overlapping_pairs",
    "target_propagation_dropout",
    "transformer_of_sequences",
    "prototype",
    "autoencoder_samples_augmentation",
)


@pytest.mark.parametrize(
    ("name", "key"),
    [*((name, key) for name in EXECUTORS for key in STOPPED), under_ray("identity_chain_bootstrap_normalised")],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    name: ExecutorName, key: str, reference: Reference, tmp_path: Path
) -> None:
    plan = plan_of(SPECS[key], name)
    first = train(plan, tmp_path, stop_after=2)
    end = first[-1]
    assert isinstance(end, RunEnded)
    assert not end.finished
    assert 2 <= end.step < plan.total_steps
    assert CheckpointSaved(end.step, (end.step - 1) // plan.steps_per_epoch) in first
    second = train(plan, tmp_path)
    assert second[-1] == RunEnded(plan.total_steps, finished=True)
    assert min(e.step for e in second if isinstance(e, BlockProgress)) > end.step
    assert digest_of(tmp_path, plan) == reference(key)[0]


@every_executor
def test_a_run_goes_on_under_another_executor(name: ExecutorName, reference: Reference, tmp_path: Path) -> None:
    key = "chain_dropout_augmentation_cnn"
    train(plan_of(SPECS[key], ExecutorName.SEQUENTIAL), tmp_path, stop_after=5)
    plan = plan_of(SPECS[key], name, messages_in_flight=1, checkpoint_steps=3)
    train(plan, tmp_path)
    assert digest_of(tmp_path, plan) == reference(key)[0]


PLACED = (
    *((ExecutorName.THREADS, number) for number in (1, 2, 3)),
    *((ExecutorName.PROCESSES, number) for number in (1, 2, 3)),
    under_ray(2),
)


@pytest.mark.parametrize(("name", "num_workers"), PLACED)
@pytest.mark.parametrize("key", ["chain_dropout_augmentation_cnn", "next_layer_chain_of_four"])
def test_blocks_that_share_workers_give_the_same_bits(
    key: str, name: ExecutorName, num_workers: int, reference: Reference, tmp_path: Path
) -> None:
    plan = plan_of(SPECS[key], name, num_workers=num_workers, messages_in_flight=1)
    events = train(plan, tmp_path)
    assert digest_of(tmp_path, plan) == reference(key)[0]
    assert timeless(events) == timeless(reference(key)[1])


@pytest.mark.parametrize("name", [ExecutorName.THREADS, ExecutorName.PROCESSES])
def test_a_run_goes_on_with_another_number_of_workers(name: ExecutorName, reference: Reference, tmp_path: Path) -> None:
    key = "chain_dropout_augmentation_cnn"
    for num_workers, stop_after in ((2, 3), (0, 8), (3, None)):
        plan = plan_of(SPECS[key], name, num_workers=num_workers)
        train(plan, tmp_path, stop_after=stop_after)
    assert digest_of(tmp_path, plan) == reference(key)[0]


def test_four_processes_pinned_to_one_core_give_the_same_bits(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, core = "chain_dropout_augmentation_cnn", min(os.sched_getaffinity(0))
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {core})
    plan = plan_of(SPECS[key], ExecutorName.PROCESSES, pin_cpus=True)
    placed, *_ = train(plan, tmp_path)
    assert isinstance(placed, BlocksPlaced)
    assert [worker.cpus for worker in placed.workers] == [(core,)] * 4
    assert digest_of(tmp_path, plan) == reference(key)[0]


def test_a_pinned_process_keeps_to_its_core(tmp_path: Path) -> None:
    plan = plan_of({**SPECS["direct_mlp"], "epochs": 10_000}, ExecutorName.PROCESSES, pin_cpus=True, num_workers=2)
    events = Training(plan, tmp_path).events()
    placed = next(events)
    assert isinstance(placed, BlocksPlaced)
    next_progress(events)
    processes = {process.name: process for process in multiprocessing.active_children()}
    for worker in placed.workers:
        blocks = range(worker.blocks[0], worker.blocks[-1] + 1)
        assert os.sched_getaffinity(processes[worker_name(blocks)].pid or 0) == set(worker.cpus)
    events.close()  # type: ignore[attr-defined]


def test_a_killed_process_of_several_blocks_is_named_after_its_first(tmp_path: Path) -> None:
    spec = {**SPECS["chain_dropout_augmentation_cnn"], "epochs": 10_000}
    plan = plan_of(spec, ExecutorName.PROCESSES, num_workers=2, max_restarts=0)
    events = Training(plan, tmp_path).events()
    next_progress(events)
    names = sorted(process.name for process in multiprocessing.active_children())
    assert names == ["blocks-0-1", "blocks-2-3"]
    (victim,) = [p for p in multiprocessing.active_children() if p.name == "blocks-2-3"]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(BlockFailed, match=r"block 2: the process of blocks-2-3 .* was killed by SIGKILL"):
        list(events)


def test_a_run_that_does_not_learn_raises_alarms(reference: Reference) -> None:
    """Which `test_weights_are_bit_identical_to_the_sequential_loop` finds again on every executor."""
    assert any(isinstance(event, Alarm) for event in reference("too_slow_to_learn")[1])


@every_executor
def test_events_tell_every_block_every_epoch_and_the_end(name: ExecutorName, tmp_path: Path) -> None:
    plan = plan_of(SPECS["direct_mlp"], name)
    events = train(plan, tmp_path)
    for block in range(3):
        steps = [e.step for e in events if isinstance(e, BlockProgress) and e.block == block]
        assert steps == sorted(steps)
        assert {plan.steps_per_epoch, plan.total_steps} <= set(steps)
    evaluations = [e for e in events if isinstance(e, Evaluation)]
    assert [(e.split, e.epoch, len(e.exits)) for e in evaluations] == [("validation", 0, 3), ("validation", 1, 3)]
    assert all(e.mixture_gap_nats >= 0 for e in evaluations)
    assert evaluations[-1].mixture.nll_nats < evaluations[0].mixture.nll_nats
    checkpoints = [e.step for e in events if isinstance(e, CheckpointSaved)]
    assert checkpoints == [plan.steps_per_epoch, plan.total_steps]
    assert events[-1] == RunEnded(plan.total_steps, finished=True)


@pytest.mark.parametrize("name", [ExecutorName.THREADS, ExecutorName.PROCESSES])
def test_the_slowest_block_has_a_full_line_at_its_left_and_an_empty_one_at_its_right(
    name: ExecutorName, tmp_path: Path
) -> None:
    # A hundred times the work of its neighbours, so that it is the slowest on a busy machine too.
    network = {"architecture": "mlp", "widths": [8, 1000, 1000, 8]}
    blocks = {"num_blocks": 3, "cuts": [1, 3]}
    plan = plan_of({"network": network, "blocks": blocks, "latent": {"readout": "linear"}, "epochs": 4}, name)
    reports = [e for e in train(plan, tmp_path) if isinstance(e, BlockProgress) and e.epoch > 0]
    fill, waits, blocked = (
        [np.mean([getattr(e, field) for e in reports if e.block == block]) for block in range(3)]
        for field in ("inbox_fill", "wait_s", "send_wait_s")
    )
    assert fill[1] > 0.7 > 0.3 > fill[2]
    assert waits[2] > max(waits[0], waits[1])
    assert blocked[0] > max(blocked[1], blocked[2])


def test_a_block_that_waits_long_names_its_neighbour_and_says_when_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bll.lines.LONG_WAIT_S", 1e-4)
    widths = {"network": {"architecture": "mlp", "widths": [8, 4000, 8]}, "blocks": {"num_blocks": 3, "cuts": [1, 2]}}
    events = train(plan_of(widths, ExecutorName.THREADS), tmp_path)
    told = [event for event in events if isinstance(event, BlockWaiting)]
    for block, for_room in ((2, False), (0, True)):  # behind the slow block and before it
        waits = [event for event in told if (event.block, event.for_room) == (block, for_room)]
        assert {event.neighbour for event in waits} == {1}
        assert [event.ended for event in waits] == [False, True] * (len(waits) // 2)
        assert all(end.wait_s >= begun.wait_s for begun, end in zip(waits[::2], waits[1::2], strict=True))


def overlapping(folder: Path) -> float:
    """The part of the second block's steps during which the first was in a step of its own too."""
    spans = [np.loadtxt(folder / f"steps-{layer}", dtype=np.int64) for layer in range(2)]
    starts, ends = spans[0].T
    return float(np.mean([bool(((starts < end) & (start < ends)).any()) for start, end in spans[1]]))


@every_executor_and_ray
def test_steps_of_blocks_overlap_in_time_but_in_one_loop(name: ExecutorName, clocked: Path, tmp_path: Path) -> None:
    plan = plan_of({"network": {"architecture": "clocked", "widths": [512, 512]}, "blocks": {"num_blocks": 2}}, name)
    for layer in range(2):
        (clocked / f"steps-{layer}").unlink(missing_ok=True)
    train(plan, tmp_path)
    if name is ExecutorName.SEQUENTIAL:
        assert overlapping(clocked) == 0
    else:
        assert overlapping(clocked) > 0.25


def test_one_loop_waits_for_nothing(reference: Reference) -> None:
    reports = [e for e in reference("direct_mlp")[1] if isinstance(e, BlockProgress)]
    assert {(e.wait_s, e.version_wait_s, e.send_wait_s, e.inbox_fill) for e in reports} == {(0.0, 0.0, 0.0, 0.0)}


@every_executor
def test_a_finished_run_is_not_trained_again(name: ExecutorName, tmp_path: Path) -> None:
    plan = plan_of(SPECS["one_block"], name)
    train(plan, tmp_path)
    assert train(plan, tmp_path) == [RunEnded(plan.total_steps, finished=True)]


@every_executor
def test_a_loss_that_is_not_finite_ends_the_run_and_names_its_block(name: ExecutorName, tmp_path: Path) -> None:
    plan = plan_of(
        {
            "network": {"architecture": "mlp", "widths": [8, 8]},
            "blocks": {"num_blocks": 2},
            "latent": {"family": "unit_gaussian"},
            "optimizer": {"name": "sgd", "learning_rate": 10.0, "backward_learning_rate": 10.0},
            "epochs": 40,
        },
        name,
    )
    with pytest.raises(Diverged, match=r"block \d: the local loss is"):
        train(plan, tmp_path)


@every_executor_and_ray
def test_data_that_is_gone_is_an_error_of_the_run(name: ExecutorName, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=generator.normal(size=(60, 5)).astype("f4"), y=np.arange(60) % 3)
    config = from_dict(
        TrainingConfig,
        {
            "data": {"name": "npz", "path": "mine.npz"},
            "network": {"architecture": "mlp", "widths": [8, 8]},
            "blocks": {"num_blocks": 2},
            "batch_size": 8,
        },
    )
    plan = resolve(replace(config, executor=replace(config.executor, name=name)), tmp_path)
    assert plan.config.data == DataConfig("npz", "mine.npz", train_rows=54, validation_rows=6)
    (tmp_path / "mine.npz").unlink()
    with pytest.raises(BllError, match=r"mine\.npz"):
        list(Training(plan, tmp_path / "run", tmp_path).events())


@every_executor
def test_closing_the_events_ends_the_run(name: ExecutorName, tmp_path: Path) -> None:
    plan = plan_of({**SPECS["direct_mlp"], "epochs": 10_000}, name)
    threads_before = threading.active_count()
    events = Training(plan, tmp_path).events()
    next_progress(events)
    events.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads_before
    assert multiprocessing.active_children() == []


def test_a_killed_process_fails_the_run_and_is_named(tmp_path: Path) -> None:
    plan = plan_of({**SPECS["direct_mlp"], "epochs": 10_000}, ExecutorName.PROCESSES, max_restarts=0)
    events = Training(plan, tmp_path).events()
    next_progress(events)
    (victim,) = [p for p in multiprocessing.active_children() if p.name == "block-1"]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(BlockFailed, match=r"block 1: its process \(pid \d+\) was killed by SIGKILL") as caught:
        list(events)
    assert caught.value.block == 1
    assert multiprocessing.active_children() == []
