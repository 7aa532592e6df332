"""Job specs, from plain values or a message to the plan that they come to."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_type_hints

from google.protobuf.message import DecodeError

from benchmarks.fuzz.target import Target
from bll.choices import Balance, ExecutorName
from bll.config import TrainingConfig
from bll.errors import DataError, InvalidConfig
from bll.partition import resolve
from bll.plain import from_dict, to_dict
from bll_proto.v1 import training_pb2
from bll_server import convert
from bll_server.errors import InvalidRequest
from bll_server.jobs import planner
from bll_server.jobs.records import plan_from_json, plan_to_json

_TEXTS = {
    "name": ("digits", "reversal", "shapes", "datasets/mine", "npz", "../x", ""),
    "architecture": (
        "mlp",
        "residual_cnn",
        "resnet18",
        "resnet50",
        "efficientnet_small",
        "conv_autoencoder",
        "transformer",
        "none",
    ),
    "devices": ("cpu", "auto", "cuda:1", ""),
}
_WHOLE = (0, 1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 100, 257, 1024, 8192, 65_536, 10**9, -1, 2**63 - 1, 2**31)
_NUMBERS = (0.0, 0.1, 0.5, 0.9, 1.0, 2.0, 1e-3, 1e-9, 100.0, -1.0, 1e6, float("inf"), float("nan"))


def _config(data: bytes) -> bool:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):  # whoever reads the text tells of that
        return False
    with contextlib.suppress(InvalidConfig):
        config = from_dict(TrainingConfig, values)
        assert from_dict(TrainingConfig, to_dict(config)) == config
        return True
    return False


def _config_seeds() -> Iterable[bytes]:
    spec = {"data": {"name": "digits"}, "network": {"architecture": "mlp", "widths": [8, 8]}, "epochs": 2}
    return [json.dumps(values).encode() for values in (spec, to_dict(TrainingConfig()))]


def _spec(data: bytes) -> bool:
    with contextlib.suppress(DecodeError, InvalidRequest):
        config = convert.config_from_spec(training_pb2.JobSpec.FromString(data))
        assert convert.config_from_spec(convert.spec_message(config)) == config
        return True
    return False


def _spec_seeds() -> Iterable[bytes]:
    return [convert.spec_message(TrainingConfig()).SerializeToString(), training_pb2.JobSpec().SerializeToString()]


def _plan(data: bytes) -> bool:
    """A byte or two for each choice, so that most inputs come as far as the resolver."""
    values = _drawn(TrainingConfig, iter(data))
    with contextlib.suppress(InvalidConfig, InvalidRequest, DataError), tempfile.TemporaryDirectory() as folder:
        config = from_dict(TrainingConfig, values)
        if config.blocks.balance is Balance.MEASURED_TIME or config.executor.name is ExecutorName.RAY:
            return False  # the one takes the time that it measures, the other needs a cluster
        plan = resolve(config, Path(folder))
        assert plan_from_json(plan_to_json(plan)) == plan
        convert.plan_message(plan).SerializeToString()
        planner._check_targets(plan)
        planner._check_memory(plan)
        return True
    return False


def _plan_seeds() -> Iterable[bytes]:
    return [b"", bytes(200), bytes(range(128, 256)) * 2, b"\x80\x00" * 100]


def _drawn(cls: type, data: Iterator[int]) -> dict[str, Any]:
    """Some fields of the dataclass, with values as `data` says; the end of `data` leaves out the rest."""
    values = {}
    for name, kind in get_type_hints(cls).items():
        if is_dataclass(kind):
            assert isinstance(kind, type)
            values[name] = _drawn(kind, data)
        elif next(data, 0) & 1:
            values[name] = _value(name, kind, data)
    return values


def _value(name: str, kind: Any, data: Iterator[int]) -> Any:
    number = next(data, 0)
    if kind in (tuple[int, ...], tuple[float, ...], tuple[str, ...]):
        return [_value(name, kind.__args__[0], data) for _ in range(number % 5)]
    choices: dict[Any, tuple[Any, ...]] = {
        bool: (False, True),
        int: _WHOLE,
        float: _NUMBERS,
        str: _TEXTS.get(name, ("",)),
    }
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        options: tuple[Any, ...] = (*kind, "none")
    else:
        options = choices[kind]
    return options[number % len(options)]


TARGETS: dict[str, Target] = {
    "config": Target(_config, _config_seeds),
    "spec": Target(_spec, _spec_seeds),
    "plan": Target(_plan, _plan_seeds),
}
