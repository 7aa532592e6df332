from dataclasses import fields, is_dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

import bll_client
from bll import choices
from bll.choices import ExecutorName, FamilyName, MixingSchedule, PrecisionName, Rule, TwinName
from bll.config import (
    BackwardConfig,
    BlocksConfig,
    DataConfig,
    LatentConfig,
    MixingConfig,
    NetworkConfig,
    OptimizerConfig,
    TrainingConfig,
)
from bll.events import (
    Alarm,
    AlarmSignature,
    BlockContinued,
    BlockDiagnostics,
    BlockProgress,
    BlocksPlaced,
    BlockWaiting,
    CheckpointDamaged,
    CheckpointSaved,
    Evaluation,
    Figure,
    PlacedWorker,
    RolledBack,
    Scores,
)
from bll.execution import ExecutorConfig
from bll.plan import BlockPlan, Plan
from bll_client._convert import read
from bll_proto.v1 import training_pb2
from bll_server import convert
from bll_server.errors import InvalidRequest
from bll_server.jobs.admission import Standing
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.records import DEADLINE, Failure, Progress
from bll_server.jobs.states import State
from bll_server.jobs.store import Store

SCORES = Scores(accuracy=0.9, nll_nats=0.3, ece=0.01, brier=0.1)
PLAN = Plan(
    config=TrainingConfig(),
    blocks=(BlockPlan(0, ("stem", "conv 16"), 100, 2000, (16, 28, 28), 4096),),
    input_shape=(1, 28, 28),
    class_names=("a", "b"),
    steps_per_epoch=10,
    dataset_digest="0" * 64,
    warnings=("small",),
)


def same_fields(cls: type, message: Descriptor, *, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    hints = get_type_hints(cls)
    assert set(message.fields_by_name) - but == {f.name for f in fields(cls)} - but, message.name
    for name, kind in hints.items():
        if name in but:
            continue
        field = message.fields_by_name[name]
        inner = next((a for a in get_args(kind) if a is not ...), kind)
        optional = NoneType in get_args(kind)
        assert field.is_repeated == (bool(get_args(kind)) and not optional), f"{message.name}.{name}"
        assert field.has_presence or not optional, f"{message.name}.{name}"
        if is_dataclass(inner):
            assert isinstance(inner, type)
            assert field.message_type is not None
            same_fields(inner, field.message_type)
        elif issubclass(inner, StrEnum):
            assert field.enum_type is not None
            same_values(inner, field.enum_type)
        else:
            allowed = {bool: "bool", int: "int32 int64", float: "double", str: "string"}[inner]
            assert TYPES[field.type] in allowed.split(), f"{message.name}.{name}"


def same_values(cls: type[StrEnum], enum: EnumDescriptor) -> None:
    zero, *names = enum.values_by_name
    prefix = zero.removesuffix("UNSPECIFIED")
    assert set(names) == {prefix + value.upper() for value in cls}
    assert prefix.replace("_", "") == enum.name.upper()


TYPES = {8: "bool", 1: "double", 3: "int64", 5: "int32", 9: "string"}


def test_spec_and_config_have_the_same_fields_kinds_and_choices() -> None:
    same_fields(TrainingConfig, training_pb2.JobSpec.DESCRIPTOR, but={"model_id"})


def test_presence_is_known_for_every_number_and_text_of_a_spec() -> None:
    for kind in (training_pb2.JobSpec, *(f.message_type._concrete_class for f in sub_messages())):
        for field in kind.DESCRIPTOR.fields:
            if not field.is_repeated and not field.enum_type and field.name != "model_id":
                assert field.has_presence, field.full_name


def sub_messages() -> list[Any]:
    return [f for f in training_pb2.JobSpec.DESCRIPTOR.fields if f.message_type]


@pytest.mark.parametrize(
    ("cls", "message", "but"),
    [
        (BlockProgress, training_pb2.BlockProgress, set()),
        (Evaluation, training_pb2.Evaluation, set()),
        (BlockDiagnostics, training_pb2.BlockDiagnostics, set()),
        (Alarm, training_pb2.Alarm, set()),
        (CheckpointSaved, training_pb2.CheckpointSaved, set()),
        (CheckpointDamaged, training_pb2.CheckpointDamaged, set()),
        (RolledBack, training_pb2.RolledBack, set()),
        (BlockContinued, training_pb2.BlockContinued, set()),
        (BlockWaiting, training_pb2.BlockWaiting, set()),
        (Plan, training_pb2.JobPlan, {"config"}),
    ],
)
def test_events_and_plan_have_the_same_fields_as_their_messages(cls: type, message: Any, but: set[str]) -> None:
    same_fields(cls, message.DESCRIPTOR, but=but)


def test_states_have_the_same_names_as_their_enum() -> None:
    same_values(State, training_pb2.JobState.DESCRIPTOR)


def test_an_empty_spec_is_the_config_of_the_defaults() -> None:
    assert convert.config_from_spec(training_pb2.JobSpec()) == TrainingConfig()


CONFIGS = st.builds(
    TrainingConfig,
    data=st.builds(DataConfig, name=st.just("npz"), path=st.text(min_size=1, max_size=9).map(lambda t: f"a{t}")),
    network=st.builds(
        NetworkConfig,
        widths=st.lists(st.integers(1, 8192), min_size=1, max_size=5).map(tuple),
        dropout=st.floats(0, 0.9),
    ),
    blocks=st.builds(BlocksConfig, num_blocks=st.integers(1, 257)),
    latent=st.builds(LatentConfig, family=st.sampled_from(FamilyName)),
    backward=st.builds(BackwardConfig, twin=st.sampled_from(TwinName)),
    mixing=st.builds(MixingConfig, schedule=st.sampled_from(MixingSchedule), start=st.floats(0, 2)),
    optimizer=st.builds(OptimizerConfig, learning_rate=st.floats(1e-8, 10)),
    executor=st.builds(
        ExecutorConfig,
        name=st.just(ExecutorName.RAY),
        address=st.sampled_from(("", "head:6379", "10.0.0.1:1")),
        checkpoint_steps=st.integers(0, 10),
        devices=st.lists(st.sampled_from(("cpu", "cuda", "cuda:3", "auto")), min_size=1, max_size=4).map(tuple),
        precision=st.sampled_from(PrecisionName),
    ),
    rule=st.sampled_from(Rule),
    seed=st.integers(0, 2**63 - 1),
)


@given(CONFIGS)
def test_every_config_survives_the_way_to_a_spec_and_back(config: TrainingConfig) -> None:
    spec = training_pb2.JobSpec.FromString(convert.spec_message(config, "m").SerializeToString())
    assert convert.config_from_spec(spec) == config
    assert spec.model_id == "m"


BROKEN = {
    "job.spec.data.path": {"data": {"name": "npz"}},
    "job.spec.data.train_rows": {"data": {"train_rows": -1}},
    "job.spec.data.validation_rows": {"data": {"validation_rows": -1}},
    "job.spec.network.widths[1]": {"network": {"widths": [4, 0]}},
    "job.spec.network.stem_stride": {"network": {"stem_stride": 3}},
    "job.spec.network.dropout": {"network": {"dropout": float("nan")}},
    "job.spec.blocks.num_blocks": {"blocks": {"num_blocks": 0}},
    "job.spec.blocks.cuts": {"blocks": {"num_blocks": 3, "cuts": [4, 2]}},
    "job.spec.blocks.balance": {"blocks": {"balance": 77}},
    "job.spec.latent.family": {"latent": {"family": 77}},
    "job.spec.latent.units": {"latent": {"units": 0}},
    "job.spec.latent.max_variance": {"latent": {"max_variance": float("inf")}},
    "job.spec.backward.delay_steps": {"backward": {"delay_steps": 0}},
    "job.spec.mixing.start": {"mixing": {"start": -0.5}},
    "job.spec.mixing.ramp_epochs": {"mixing": {"ramp_epochs": 0}},
    "job.spec.optimizer.learning_rate": {"optimizer": {"learning_rate": 0.0}},
    "job.spec.optimizer.warmup_steps": {"optimizer": {"warmup_steps": -1}},
    "job.spec.executor.threads_per_block": {"executor": {"threads_per_block": 0}},
    "job.spec.executor.devices[1]": {"executor": {"devices": ["cpu", "gpu"]}},
    "job.spec.executor.precision": {"executor": {"precision": 77}},
    "job.spec.executor.checkpoints_kept": {"executor": {"checkpoints_kept": 0}},
    "job.spec.executor.recovery": {"executor": {"recovery": 77}},
    "job.spec.executor.max_restarts": {"executor": {"max_restarts": -1}},
    "job.spec.executor.heartbeat_seconds": {"executor": {"heartbeat_seconds": 0.5}},
    "job.spec.rule": {"rule": 77},
    "job.spec.epochs": {"epochs": 0},
    "job.spec.batch_size": {"batch_size": 1},
    "job.spec.seed": {"seed": -1},
}


@pytest.mark.parametrize("path", BROKEN)
def test_a_broken_rule_is_named_by_its_full_path(path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert.config_from_spec(training_pb2.JobSpec(**BROKEN[path]))  # type: ignore[arg-type]
    assert [v.field for v in caught.value.violations] == [path]
    assert "got" in caught.value.violations[0].description


def test_every_broken_rule_is_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert.config_from_spec(training_pb2.JobSpec(epochs=0, data={"train_rows": -1}, latent={"units": 0}))  # type: ignore[arg-type]
    fields = {v.field for v in caught.value.violations}
    assert fields == {"job.spec.epochs", "job.spec.data.train_rows", "job.spec.latent.units"}


@given(st.binary(max_size=200))
def test_bytes_from_outside_become_a_config_or_an_invalid_request(data: bytes) -> None:
    try:
        spec = training_pb2.JobSpec.FromString(data)
    except DecodeError:  # refused before it gets here
        return
    try:
        convert.config_from_spec(spec)
    except InvalidRequest as error:
        assert all(v.field.startswith("job.spec.") for v in error.violations)  # noqa: PT017


def test_a_job_shows_what_was_asked_what_was_made_of_it_and_how_far_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "bll.db")
    spec = training_pb2.JobSpec(epochs=10)
    store.create("one", "m", spec.SerializeToString(), PLAN)
    store.transition("one", State.STARTING)
    store.transition("one", State.RUNNING)
    progress = BlockProgress(0, 0, 5, 1.2, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.01)
    store.append("one", progress, Progress(step=5, epoch=0, samples_per_s=1000.0, remaining_s=2.5, steps_per_s=8.0))
    store.append("one", Evaluation("validation", 0, 10, 100, SCORES, SCORES, (SCORES,), 0.0))
    running = convert.job_message(store.get("one"), Standing(0, "")).progress
    assert (running.remaining.ToMilliseconds(), running.steps_per_s) == (2500, 8.0)
    failure = Failure("BlockFailed", "block 2: killed", block=2)
    message = convert.job_message(store.transition("one", State.FAILED, "killed", failure=failure), Standing(0, ""))

    assert (message.name, message.spec) == ("jobs/one", spec)
    assert convert.config_from_spec(message.resolved_spec) == PLAN.config
    assert message.resolved_spec.model_id == "m"
    assert list(message.plan.blocks[0].output_shape) == [16, 28, 28]
    assert (message.progress.step, message.progress.total_steps) == (5, 100)
    assert not message.progress.HasField("remaining")  # it is over
    assert message.validation.exits[0].accuracy == 0.9
    assert not message.HasField("test")
    assert message.state == training_pb2.JOB_STATE_FAILED
    info = error_details_pb2.ErrorInfo()
    assert message.error.details[0].Unpack(info)
    assert (info.domain, info.reason, info.metadata["block"]) == ("bll", "TRAINING_FAILED", "2")
    assert message.create_time.ToDatetime() <= message.end_time.ToDatetime()

    assert message.state_reason == "killed"
    assert not message.HasField("max_run_duration")

    kinds = [convert.event_message(e).WhichOneof("event") for e in store.events("one", 0)]
    assert kinds == ["state_change"] * 3 + ["block_progress", "evaluation", "state_change"]


def test_a_queued_job_says_why_it_is_queued_and_what_it_waits_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "bll.db")
    store.create("one", "m", b"", PLAN, metadata=Metadata(max_run_duration_s=1.5))
    store.transition("one", State.STARTING)
    job = store.transition("one", State.QUEUED, "the server died")
    message = convert.job_message(job, Standing(3, "waits behind jobs/two"))
    assert (message.queue_position, message.state_reason) == (3, "the server died; waits behind jobs/two")
    assert message.max_run_duration.ToMilliseconds() == 1500
    assert convert.summary_message(job).state_reason == "the server died"


def test_a_job_that_has_run_for_as_long_as_it_may_has_an_error_of_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "bll.db")
    store.create("one", "m", b"", PLAN)
    store.transition("one", State.STARTING)
    job = store.transition("one", State.FAILED, failure=Failure(DEADLINE, "has run for 1 s"), run_s=2.5)
    message, info = convert.summary_message(job), error_details_pb2.ErrorInfo()
    assert message.error.details[0].Unpack(info)
    assert (message.error.code, info.reason) == (code_pb2.DEADLINE_EXCEEDED, "DEADLINE")
    assert message.run_duration.ToMilliseconds() == 2500


@pytest.mark.parametrize("block", [None, 0, 3])
def test_an_alarm_keeps_its_numbers_and_whether_it_is_of_a_block(block: int | None, tmp_path: Path) -> None:
    store = Store(tmp_path / "bll.db")
    store.create("one", "m", b"", PLAN)
    figures = (Figure("agreement", 0.25), Figure("loss_nats", 2.0))
    alarm = Alarm(AlarmSignature.LOSS_PLATEAU, block, 4, 40, "it stands still", "a richer readout", figures)
    store.append("one", alarm)
    (kept,) = store.events("one", 1)
    assert kept.event == alarm
    message = convert.event_message(kept).alarm
    assert message.signature == training_pb2.ALARM_SIGNATURE_LOSS_PLATEAU
    assert (message.block if message.HasField("block") else None) == block
    assert [(figure.name, figure.value) for figure in message.values] == [("agreement", 0.25), ("loss_nats", 2.0)]
    seen = read(bll_client.Alarm, message)
    assert (seen.signature, seen.block, seen.cause) == (bll_client.AlarmSignature.LOSS_PLATEAU, block, alarm.cause)
    assert seen.values == (bll_client.Figure("agreement", 0.25), bll_client.Figure("loss_nats", 2.0))


def test_a_long_wait_reaches_the_client(tmp_path: Path) -> None:
    store = Store(tmp_path / "bll.db")
    store.create("one", "m", b"", PLAN)
    store.append("one", BlockWaiting(2, 1, True, 31.5, False))
    (kept,) = store.events("one", 1)
    seen = read(bll_client.BlockWaiting, convert.event_message(kept).block_waiting)
    assert seen == bll_client.BlockWaiting(2, 1, True, timedelta(seconds=31.5), False)


@pytest.mark.parametrize(
    "event",
    [
        CheckpointDamaged(20, 10, "block-1.safetensors: truncated"),
        RolledBack(10, 2, "was killed by SIGKILL", 1),
        BlockContinued(2, 13, 10, "was killed by SIGKILL", 1),
    ],
)
def test_what_happened_to_a_run_reaches_its_watchers(
    event: CheckpointDamaged | RolledBack | BlockContinued, tmp_path: Path
) -> None:
    store = Store(tmp_path / "bll.db")
    store.create("one", "m", b"", PLAN)
    store.append("one", event)
    (kept,) = store.events("one", 1)
    assert kept.event == event
    message = convert.event_message(kept)
    kind: Any = getattr(bll_client, type(event).__name__)
    assert read(kind, getattr(message, message.WhichOneof("event") or "")) == kind(**vars(event))


def test_who_runs_which_blocks_reaches_the_client(tmp_path: Path) -> None:
    store = Store(tmp_path / "bll.db")
    store.create("one", "m", b"", PLAN)
    placed = BlocksPlaced(40, True, (PlacedWorker((0, 1), 0.625, (3,)), PlacedWorker((2,), 0.375, ())))
    store.append("one", placed)
    (kept,) = store.events("one", 1)
    assert kept.event == placed
    seen = read(bll_client.BlocksPlaced, convert.event_message(kept).blocks_placed)
    workers = (bll_client.PlacedWorker((0, 1), 0.625, (3,)), bll_client.PlacedWorker((2,), 0.375, ()))
    assert seen == bll_client.BlocksPlaced(40, True, workers)


def test_every_enum_of_the_config_is_compared() -> None:
    enums = [v for v in vars(choices).values() if isinstance(v, type) and issubclass(v, StrEnum)]
    assert len([e for e in enums if e is not StrEnum]) == len(
        [e for e in training_pb2.DESCRIPTOR.enum_types_by_name if e not in ("JobState", "BlockState", "AlarmSignature")]
    )
