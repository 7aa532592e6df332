"""Every rule of the configuration, and its way through JSON."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bll.config import DataConfig, TrainingConfig
from bll.errors import InvalidConfig, Violation
from bll.plain import from_dict, to_dict

OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("data.name", ""),
    ("data.name", 3),
    ("data.path", "x.npz"),
    ("data.train_rows", -1),
    ("data.validation_rows", 2.5),
    ("data.augmentation", "rotate"),
    ("data.target", "pixels"),
    ("data.label_noise", 0.95),
    ("network.architecture", ""),
    ("network.widths", [1] * 257),
    ("network.widths[1]", [16, 0]),
    ("network.widths[0]", [8193]),
    ("network.widths[0]", [True]),
    ("network.stem_stride", 3),
    ("network.stem_stride", True),
    ("network.dropout", 0.95),
    ("network.dropout", float("nan")),
    ("network.heads", 0),
    ("blocks.num_blocks", 0),
    ("blocks.cuts", [2, 2, 3]),
    ("blocks.cuts", [1, 2]),
    ("blocks.cuts[0]", [0, 2, 3]),
    ("blocks.balance", "luck"),
    ("blocks.normalize_messages", 1),
    ("latent.family", "poisson"),
    ("latent.units", 0),
    ("latent.readout", "wide"),
    ("latent.readout_units", 65537),
    ("latent.readout_grid", 0),
    ("latent.group_size", 1),
    ("latent.min_variance", 0.0),
    ("latent.max_variance", float("inf")),
    ("latent.message", "mean"),
    ("latent.message", "letter"),
    ("latent.bootstrap", 0.5),
    ("latent.bootstrap", 1.5),
    ("latent.bootstrap_epochs", 0),
    ("latent.ema_decay", 1.1),
    ("backward.twin", "triplet"),
    ("backward.delay_steps", 0),
    ("loss.name", "hinge"),
    ("loss.posterior", "loose"),
    ("loss.samples", 65),
    ("loss.similarity", 1.5),
    ("loss.reconstruction", -1.0),
    ("loss.span", 0),
    ("loss.block_weights", 0.5),
    ("loss.block_weights[1]", [1.0, -2.0]),
    ("mixing.schedule", "quadratic"),
    ("mixing.start", -0.1),
    ("mixing.end", 2.1),
    ("mixing.ramp_epochs", 0),
    ("optimizer.name", "lion"),
    ("optimizer.learning_rate", 0.0),
    ("optimizer.backward_learning_rate", 11),
    ("optimizer.weight_decay", -1),
    ("optimizer.momentum", 1.0),
    ("optimizer.schedule", "linear"),
    ("optimizer.warmup_steps", -1),
    ("executor.name", "fibres"),
    ("executor.threads_per_block", 0),
    ("executor.messages_in_flight", 65),
    ("executor.checkpoint_steps", -1),
    ("executor.devices[1]", ["cpu", "gpu"]),
    ("executor.precision", "float16"),
    ("executor.num_workers", -1),
    ("executor.pin_cpus", "yes"),
    ("executor.checkpoints_kept", 0),
    ("executor.checkpoints_kept", 101),
    ("executor.recovery", "hope"),
    ("executor.max_restarts", -1),
    ("executor.address", "ray://head:10001"),
    ("executor.address", "head:65536"),
    ("executor.address", 6379),
    ("executor.heartbeat_seconds", 0.5),
    ("executor.heartbeat_seconds", float("nan")),
    ("diagnostics.per_epoch", 11),
    ("rule", "hebb"),
    ("epochs", 0),
    ("epochs", True),
    ("batch_size", 1),
    ("seed", -1),
    ("seed", 2**63),
]


def nested(path: str, value: Any) -> dict[str, Any]:
    *sections, name = path.split("[")[0].split(".")
    result: dict[str, Any] = {name: value}
    for section in reversed(sections):
        result = {section: result}
    return result


def leaves(cls: Any = TrainingConfig, prefix: str = "") -> set[str]:
    hints = get_type_hints(cls)
    return {
        path
        for f in fields(cls)
        for path in (
            leaves(hints[f.name], f"{prefix}{f.name}.") if is_dataclass(hints[f.name]) else {f"{prefix}{f.name}"}
        )
    }


@pytest.mark.parametrize(("path", "value"), OUT_OF_RANGE)
def test_a_field_out_of_range_is_named_with_its_value(path: str, value: Any) -> None:
    with pytest.raises(InvalidConfig) as caught:
        from_dict(TrainingConfig, nested(path, value))
    assert path in [violation.field for violation in caught.value.violations]
    received = value[int(path[-2])] if path.endswith("]") else value
    shown = str(len(received)) if path == "network.widths" else str(received)
    assert shown in str(caught.value)


def test_every_field_has_a_rule_that_is_tested() -> None:
    assert {path.split("[")[0] for path, _ in OUT_OF_RANGE} == leaves()


def test_an_address_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(InvalidConfig, match=r"executor\.address: must be empty for an executor other than 'ray', got"):
        from_dict(TrainingConfig, {"executor": {"name": "processes", "address": "head:6379"}})
    config = from_dict(TrainingConfig, {"executor": {"name": "ray", "address": "head:6379"}})
    assert config.executor.address == "head:6379"


def test_groups_must_divide_the_units() -> None:
    with pytest.raises(InvalidConfig, match=r"latent\.group_size: must divide latent\.units = 64, got 5"):
        from_dict(TrainingConfig, {"latent": {"family": "categorical", "group_size": 5}})


def test_a_huge_value_is_cut_short_in_the_message() -> None:
    with pytest.raises(InvalidConfig) as caught:
        from_dict(TrainingConfig, {"rule": "x" * 1_000_000})
    assert len(str(caught.value)) < 300


def test_all_violations_are_told_at_once() -> None:
    with pytest.raises(InvalidConfig) as caught:
        from_dict(TrainingConfig, {"epochs": 0, "mixing": {"start": 9, "spin": 1}, "colour": "red"})
    assert {v.field for v in caught.value.violations} == {"epochs", "mixing.start", "mixing.spin", "colour"}


@pytest.mark.parametrize("name", ["npz", "images", "digits"])
def test_a_path_goes_with_a_users_own_data_alone(name: str) -> None:
    own = name != "digits"
    assert DataConfig(name, "mine" if own else "").path == ("mine" if own else "")
    with pytest.raises(InvalidConfig, match=f"^path: goes with names 'npz' and 'images' and .*, got .* with '{name}'$"):
        DataConfig(name, "" if own else "mine")


def test_config_survives_json() -> None:
    config = from_dict(TrainingConfig, {"network": {"widths": [3, 4]}, "blocks": {"num_blocks": 2, "cuts": [1]}})
    assert from_dict(TrainingConfig, json.loads(json.dumps(to_dict(config)))) == config


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(path=st.sampled_from(sorted(leaves())), value=json_values)
def test_any_value_gives_a_config_or_a_named_violation(path: str, value: Any) -> None:
    violations: tuple[Violation, ...] = ()
    try:
        from_dict(TrainingConfig, nested(path, value))
    except InvalidConfig as error:
        violations = error.violations
    assert all(v.field and v.description for v in violations)
