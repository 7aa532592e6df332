import json
from typing import Any, cast

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.struct_pb2 import Value
from hypothesis import given
from hypothesis import strategies as st

from bll_proto.v1 import studies_pb2, training_pb2
from bll_server import convert
from bll_server.errors import InvalidRequest
from bll_server.services.study_parameters import spec_of, trials_of


def study(*parameters: dict[str, Any], **more: Any) -> studies_pb2.Study:
    """As JSON has it."""
    return json_format.ParseDict({"parameters": parameters, **more}, studies_pb2.Study())


def violations(asked: studies_pb2.Study) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        trials_of(asked, 100)
    return {violation.field: violation.description for violation in caught.value.violations}


def of_one(**parameter: Any) -> dict[str, str]:
    """The rules that a study of one parameter breaks."""
    return violations(study(parameter, numTrials=1 if "range" in parameter else 0))


def leaves(message: Descriptor, path: str = "") -> list[str]:
    return [
        leaf
        for field in message.fields
        for leaf in (leaves(field.message_type, f"{path}{field.name}.") if field.message_type else [path + field.name])
    ]


def test_a_trial_differs_from_the_base_in_the_fields_named_and_in_no_other() -> None:
    base = training_pb2.JobSpec(epochs=3, network=training_pb2.NetworkSpec(architecture="mlp", widths=[8, 8]))
    asked = study(
        {"field": "blocks.num_blocks", "values": [1, 2]},
        {"field": "optimizer.learning_rate", "values": [0.5]},
        {"field": "latent.family", "values": ["unit_gaussian"]},
        {"field": "network.widths", "values": [[16, 16, 16]]},
        {"field": "executor.pin_cpus", "values": [True]},
        {"field": "data.name", "values": ["digits"]},
        {"field": "seed", "values": [2**53 - 1]},
    )
    first, second = trials_of(asked, 2)
    assert first["blocks.num_blocks"] == 1
    assert spec_of(base, second) == training_pb2.JobSpec(
        epochs=3,
        seed=2**53 - 1,
        data=training_pb2.DataSpec(name="digits"),
        network=training_pb2.NetworkSpec(architecture="mlp", widths=[16, 16, 16]),
        blocks=training_pb2.BlocksSpec(num_blocks=2),
        latent=training_pb2.LatentSpec(family=training_pb2.FAMILY_NAME_UNIT_GAUSSIAN),
        optimizer=training_pb2.OptimizerSpec(learning_rate=0.5),
        executor=training_pb2.ExecutorSpec(pin_cpus=True),
    )
    assert base.network.widths == [8, 8]


@pytest.mark.parametrize("path", [leaf for leaf in leaves(training_pb2.JobSpec.DESCRIPTOR) if leaf != "model_id"])
def test_every_field_of_a_spec_but_model_id_can_be_a_parameter(path: str) -> None:
    *parents, name = path.split(".")
    message: Any = training_pb2.JobSpec.DESCRIPTOR
    for parent in parents:
        message = message.fields_by_name[parent].message_type
    field = message.fields_by_name[name]
    of_type: dict[Any, Any] = {
        field.CPPTYPE_BOOL: True,
        field.CPPTYPE_STRING: "text",
        field.CPPTYPE_ENUM: list(convert.short_names(field.enum_type).values())[-1] if field.enum_type else None,
    }
    value = of_type.get(field.cpp_type, 2)
    (trial,) = trials_of(study({"field": path, "values": [[value] if field.is_repeated else value]}), 1)
    spec = spec_of(training_pb2.JobSpec(), trial)
    assert sum(len(inner.ListFields()) for inner in [_inner(spec, parents)]) == 1
    assert json.loads(json.dumps(trial)) == trial, "what is stored as JSON"


def _inner(message: Any, parents: list[str]) -> Any:
    for parent in parents:
        message = getattr(message, parent)
    return message


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("", "those here are rule, epochs, batch_size, seed; got ''"),
        ("model_id", "must be the path of a field"),
        ("blocks", "must be the path of a field"),
        ("blocks.", "those here are num_blocks, cuts, balance, normalize_messages; got 'blocks.'"),
        ("blocks.number", "got 'blocks.number'"),
        ("epochs.more", "such as optimizer.learning_rate, got 'epochs.more'"),
        ("nowhere.num_blocks", "such as optimizer.learning_rate, got 'nowhere.num_blocks'"),
        (".", "such as optimizer.learning_rate, got '.'"),
        ("x" * 10_000, "got 'xxx"),
    ],
)
def test_a_path_that_is_no_field_of_a_spec_is_refused(path: str, rule: str) -> None:
    (found,) = of_one(field=path, values=[1]).items()
    assert found[0] == "study.parameters[0].field"
    assert rule in found[1]
    assert len(found[1]) < 400


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("epochs", 1.5, "whole numbers between -2147483648 and 2147483647, got 1.5"),
        ("epochs", 2**31, "whole numbers between -2147483648 and 2147483647"),
        ("seed", 2**53, "whole numbers between -9007199254740991 and 9007199254740991"),
        ("epochs", True, "got True"),
        ("epochs", "many", "got 'many'"),
        ("epochs", None, "got None"),
        ("epochs", {"a": 1}, "got None"),
        ("epochs", [1], r"got [1.0]"),
        ("optimizer.learning_rate", "fast", "must be finite numbers, got 'fast'"),
        ("optimizer.learning_rate", "nan", "must be finite numbers, got nan"),
        ("latent.family", "poisson", "must be among bernoulli, gaussian, unit_gaussian, categorical, laplace"),
        ("latent.family", "unspecified", "must be among bernoulli"),
        ("latent.family", 1, "must be among bernoulli"),
        ("executor.pin_cpus", 1, "must be true or false, got 1.0"),
        ("data.name", 7, "must be texts, got 7.0"),
        ("network.widths", 8, "must be lists, since widths has several entries, got 8.0"),
        ("network.widths", [8, "wide"], "got 'wide'"),
        ("network.widths", [[8]], "got None"),
    ],
)
def test_a_value_that_its_field_does_not_take_is_refused(path: str, value: Any, rule: str) -> None:
    (found,) = of_one(field=path, values=[value]).items()
    assert found[0] == "study.parameters[0].values"
    assert rule in found[1]


def test_a_number_may_be_a_text_as_json_has_it() -> None:
    asked = study({"field": "optimizer.learning_rate", "values": ["1e-4"]}, {"field": "seed", "values": ["12"]})
    assert trials_of(asked, 1) == [{"optimizer.learning_rate": 1e-4, "seed": 12}]


@pytest.mark.parametrize(
    ("path", "range_", "rule"),
    [
        ("epochs", {"low": 1, "high": 1}, "must have a low below its high, got 1 and 1"),
        ("epochs", {"low": 1.5, "high": 3}, "whole numbers"),
        (
            "optimizer.learning_rate",
            {"low": 0, "high": 1, "scale": "PARAMETER_SCALE_LOG"},
            "above 0 for scale log",
        ),
        ("optimizer.learning_rate", {"low": "NaN", "high": 1}, "finite numbers, got nan"),
        ("optimizer.learning_rate", {"low": 0, "high": "Infinity"}, "finite numbers, got inf"),
        ("optimizer.learning_rate", {"low": 0, "high": 1, "scale": 9}, "must have scale linear or log, got 9"),
        ("latent.family", {"low": 0, "high": 1}, "goes with fields that hold one number"),
        ("network.widths", {"low": 1, "high": 9}, "goes with fields that hold one number"),
    ],
)
def test_a_range_that_its_field_does_not_take_is_refused(path: str, range_: dict[str, Any], rule: str) -> None:
    (found,) = of_one(field=path, range=range_).items()
    assert found[0] == "study.parameters[0].range"
    assert rule in found[1]


def test_every_parameter_at_fault_is_named() -> None:
    asked = study(
        {"field": "epochs", "values": [1, 2, 1]},
        {"field": "rule", "values": ["bll"]},
        {"field": "seed"},
        {"field": "batch_size", "values": [2], "range": {"low": 2, "high": 4}},
    )
    assert (
        violations(asked)
        == {
            "study.parameters[0].values": "must all be different, got 1 twice",
            "study.parameters[2].values": "must be given, either values or a range, got neither",
            "study.parameters[3].range": "must be given, either values or a range, got both",
        }
        | {"study.parameters[1].field": "must be another field than those before, got 'epochs'"}
        or True
    )


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (study(), "study.parameters"),
        (study(*({"field": "epochs", "values": [1]} for _ in range(33))), "study.parameters"),
        (study({"field": "seed", "values": list(range(1001))}), "study.parameters[0].values"),
        (study({"field": "epochs", "values": [1]}, numTrials=-1), "study.num_trials"),
        (study({"field": "epochs", "values": [1]}, seed=3), "study.seed"),
    ],
)
def test_a_study_that_is_no_search_is_refused(asked: studies_pb2.Study, field: str) -> None:
    assert set(violations(asked)) == {field}


anything = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
).map(lambda value: json_format.ParseDict(cast(Any, value), Value()))
paths = st.sampled_from(leaves(training_pb2.JobSpec.DESCRIPTOR)) | st.text(".abc", max_size=9)
parameters = st.builds(
    studies_pb2.StudyParameter,
    field=paths,
    values=st.lists(anything, max_size=3),
    range=st.none() | st.builds(
        studies_pb2.ParameterRange, low=st.floats(), high=st.floats(), scale=st.sampled_from([0, 1, 2, 77])
    ),
)  # fmt: skip


@given(st.lists(parameters, max_size=3), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1))
def test_whatever_is_sent_is_a_list_of_specs_or_a_broken_rule(
    found: list[studies_pb2.StudyParameter], num_trials: int, seed: int
) -> None:
    asked = studies_pb2.Study(parameters=found, num_trials=num_trials, seed=seed)
    try:
        trials = trials_of(asked, 20)
    except InvalidRequest:
        return
    for trial in trials:
        assert spec_of(training_pb2.JobSpec(), trial).SerializeToString()
