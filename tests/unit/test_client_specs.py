"""Job specs as people write them, against the protobuf and the library's own config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bll.config import TrainingConfig
from bll.plain import to_dict
from bll_client import InvalidSpec, JobSpec, parse_spec
from bll_client._spec import spec_values
from bll_client.cli.files import read_spec
from bll_proto.v1 import training_pb2

EXAMPLES = Path(__file__).parents[2] / "examples" / "specs"


def violations(values: Any) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(values)
    return {v.field: v.description for v in caught.value.violations}


def test_every_field_of_the_librarys_config_can_be_written_as_the_library_writes_it() -> None:
    values = json.loads(json.dumps(to_dict(TrainingConfig())))
    spec = parse_spec(values)
    assert spec.latent.family == training_pb2.FAMILY_NAME_BERNOULLI
    assert spec.rule == training_pb2.RULE_BLL
    assert spec.network.architecture == "residual_cnn"
    assert spec.seed == 0
    assert spec.HasField("seed")
    present = spec_values(spec)
    for name, group in values.items():
        wanted = {k: v for k, v in group.items() if v != []} if isinstance(group, dict) else group
        assert present[name] == wanted


def test_absent_fields_and_nulls_stay_absent() -> None:
    assert parse_spec({}) == JobSpec()
    assert parse_spec({"epochs": None, "network": None, "latent": {"units": None}}) == JobSpec(
        latent=training_pb2.LatentSpec()
    )


def test_enum_values_may_be_short_or_full() -> None:
    short = parse_spec({"executor": {"name": "threads"}, "data": {"augmentation": "shift_flip"}})
    full = parse_spec(
        {"executor": {"name": "EXECUTOR_NAME_THREADS"}, "data": {"augmentation": "AUGMENTATION_SHIFT_FLIP"}}
    )
    assert short == full
    assert spec_values(full) == {"executor": {"name": "threads"}, "data": {"augmentation": "shift_flip"}}


@pytest.mark.parametrize(
    ("values", "field", "description"),
    [
        ({"epoch": 3}, "epoch", "is not a field; the fields here are model_id, data, network, "),
        ({"network": {"stemStride": 1}}, "network.stemStride", "is not a field; the fields here are architecture, "),
        ({1: 2}, "1", "is not a field"),
        ({"latent": {"family": "poisson"}}, "latent.family", "must be one of bernoulli, gaussian, unit_gaussian"),
        ({"latent": {"readout": 1}}, "latent.readout", "must be one of linear, hidden, deep, conv, identity"),
        ({"latent": {"family": "unspecified"}}, "latent.family", "must be one of"),
        ({"latent": 3}, "latent", "must hold named fields, got 3"),
        ({"epochs": "many"}, "epochs", "must be a whole number of 32 bits, got 'many'"),
        ({"epochs": 2**31}, "epochs", "must be a whole number of 32 bits, got 2147483648"),
        ({"epochs": 1.5}, "epochs", "must be a whole number of 32 bits, got 1.5"),
        ({"epochs": True}, "epochs", "must be a whole number of 32 bits, got True"),
        ({"epochs": [1]}, "epochs", "must be a whole number of 32 bits, got [1]"),
        ({"seed": 2**63}, "seed", "must be a whole number of 64 bits"),
        ({"network": {"widths": 8}}, "network.widths", "must be a list, each entry a whole number of 32 bits, got 8"),
        ({"network": {"widths": [8, "x"]}}, "network.widths", "must be a list, each entry a whole number of 32 bits"),
        ({"network": {"dropout": float("nan")}}, "network.dropout", "must be a finite number, got nan"),
        ({"network": {"dropout": float("inf")}}, "network.dropout", "must be a finite number, got inf"),
        ({"network": {"dropout": 10**400}}, "network.dropout", "must be a finite number, got 1000"),
        ({"model_id": 3}, "model_id", "must be a string, got 3"),
        ([], "spec", "must hold named fields, got []"),
    ],
)  # fmt: skip
def test_a_field_at_fault_is_named_with_rule_and_value(values: Any, field: str, description: str) -> None:
    found = violations(values)
    assert list(found) == [field]
    assert found[field].startswith(description)


def test_all_faults_are_found_at_once() -> None:
    assert set(violations({"epochs": "x", "latent": {"family": "y", "nits": 3}})) == {
        "epochs", "latent.family", "latent.nits",
    }  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([field.name for field in JobSpec.DESCRIPTOR.fields])


@settings(deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_values_are_parsed_or_refused(values: dict[str, Any]) -> None:
    try:
        spec = parse_spec(values)
    except InvalidSpec:
        return
    assert parse_spec(spec_values(spec)) == spec


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_example_specs_fit(path: Path) -> None:
    parse_spec(read_spec(path))


def test_json_is_read_as_yaml_is(tmp_path: Path) -> None:
    values = {"data": {"name": "digits"}, "optimizer": {"learning_rate": 1e-3}}
    (tmp_path / "a.json").write_text(json.dumps(values))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    assert parse_spec(read_spec(tmp_path / "a.json")) == parse_spec(read_spec(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "must be YAML or JSON"),
        (b"\xff\xfe\xfa", "must be YAML or JSON"),
        (b"!!python/object/apply:os.getcwd []", "must be YAML or JSON"),
        (b"[" * 100_000, "must be YAML or JSON"),
        (b"- 1", "must hold named fields, got list"),
        (b"", "must hold named fields, got NoneType"),
    ],
)
def test_a_file_that_is_no_spec_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "spec.yaml").write_bytes(content)
    with pytest.raises(InvalidSpec, match=rf"spec\.yaml: {message}"):
        read_spec(tmp_path / "spec.yaml")
