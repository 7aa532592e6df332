"""The parameters of a study, as they come: paths of a spec's fields, and values of the types that those have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.descriptor import FieldDescriptor

from bll.errors import Violation
from bll.rules import shown
from bll_proto.v1 import studies_pb2, training_pb2
from bll_server import convert
from bll_server.errors import InvalidRequest
from bll_server.studies import search
from bll_server.studies.search import Parameter, Span, Values

_MOST_PARAMETERS, _MOST_VALUES = 32, 1000
_LARGEST = 2**53 - 1
"""Numbers travel as doubles, which hold every whole number up to here."""
_INT32 = (-(2**31), 2**31 - 1)
_WHOLE = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)


class _Broken(Exception):
    """A rule, with the value received."""


def trials_of(study: studies_pb2.Study, most: int) -> list[Values]:
    """The values of each trial, in the order of their numbers. Raises InvalidRequest."""
    parameters = _parameters(study)
    if study.num_trials < 0:
        raise InvalidRequest(Violation("study.num_trials", f"must not be negative, got {study.num_trials}"))
    if study.num_trials:
        return search.random(parameters, study.num_trials, study.seed, most)
    if study.seed:
        raise InvalidRequest(Violation("study.seed", f"must be 0 for a grid, without num_trials, got {study.seed}"))
    return search.grid(parameters, most)


def spec_of(base: training_pb2.JobSpec, values: Values) -> training_pb2.JobSpec:
    """`base` with the values of one trial."""
    spec = training_pb2.JobSpec()
    spec.CopyFrom(base)
    for path, value in values.items():
        *parents, name = path.split(".")
        message: Any = spec
        for parent in parents:
            message = getattr(message, parent)
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated:
            message.ClearField(name)
            getattr(message, name).extend(_number(field, entry) for entry in value)
        else:
            setattr(message, name, _number(field, value))
    return spec


def _parameters(study: studies_pb2.Study) -> tuple[Parameter, ...]:
    """Raises InvalidRequest with every rule that is broken."""
    if not 1 <= len(study.parameters) <= _MOST_PARAMETERS:
        rule = f"must be 1 to {_MOST_PARAMETERS}, got {len(study.parameters)}"
        raise InvalidRequest(Violation("study.parameters", rule))
    violations: list[Violation] = []
    found: dict[str, Parameter] = {}
    for index, message in enumerate(study.parameters):
        where = f"study.parameters[{index}]"
        try:
            field = _field(message.field)
            if message.field in found:
                raise _Broken(f"must be another field than those before, got {message.field!r}")
        except _Broken as broken:
            violations.append(Violation(f"{where}.field", str(broken)))
            continue
        try:
            found[message.field] = Parameter(message.field, _choices(field, message))
        except _Broken as broken:
            violations.append(Violation(f"{where}.{'range' if message.HasField('range') else 'values'}", str(broken)))
    if violations:
        raise InvalidRequest(*violations)
    return tuple(found.values())


def _field(path: str) -> FieldDescriptor:
    message = training_pb2.JobSpec.DESCRIPTOR
    *parents, name = path.split(".")
    for parent in parents:
        field = message.fields_by_name.get(parent)
        if field is None or field.message_type is None:
            raise _Broken(f"must be the path of a field such as optimizer.learning_rate, got {shown(path)}")
        message = field.message_type
    field = message.fields_by_name.get(name)
    if field is None or field.message_type or field.full_name == "bll.v1.JobSpec.model_id":
        known = [f.name for f in message.fields if not f.message_type and f.name != "model_id"]
        raise _Broken(f"must be the path of a field; those here are {', '.join(known)}; got {shown(path)}")
    return field


def _choices(field: FieldDescriptor, parameter: studies_pb2.StudyParameter) -> tuple[Any, ...] | Span:
    if bool(parameter.values) == parameter.HasField("range"):
        raise _Broken(f"must be given, either values or a range, got {'both' if parameter.values else 'neither'}")
    if parameter.HasField("range"):
        return _span(field, parameter.range)
    if len(parameter.values) > _MOST_VALUES:
        raise _Broken(f"must be at most {_MOST_VALUES}, got {len(parameter.values)}")
    values = tuple(_value(field, value) for value in parameter.values)
    for index, value in enumerate(values):
        if value in values[:index]:
            raise _Broken(f"must all be different, got {shown(value)} twice")
    return values


def _span(field: FieldDescriptor, asked: studies_pb2.ParameterRange) -> Span:
    whole = field.cpp_type in _WHOLE
    if field.is_repeated or not (whole or field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE):
        raise _Broken(f"goes with fields that hold one number, {field.name} has values")
    low, high = _one(field, asked.low), _one(field, asked.high)
    if low >= high:
        raise _Broken(f"must have a low below its high, got {low:g} and {high:g}")
    scale = convert.short_names(studies_pb2.ParameterScale.DESCRIPTOR).get(asked.scale)
    if scale is None:
        raise _Broken(f"must have scale linear or log, got {asked.scale}")
    if scale == "log" and low <= 0:
        raise _Broken(f"must have a low above 0 for scale log, got {low:g}")
    return Span(low, high, scale == "log", whole)


def _value(field: FieldDescriptor, value: struct_pb2.Value) -> Any:
    """What `value` is to `field`, in JSON's types. Raises _Broken."""
    content = _content(value)
    if not field.is_repeated:
        return _one(field, content)
    if not isinstance(content, list):
        raise _Broken(f"must be lists, since {field.name} has several entries, got {shown(content)}")
    return [_one(field, entry) for entry in content]


def _content(value: struct_pb2.Value) -> Any:
    """A number, text or flag, a list of those; None for what no field takes."""
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [None if entry.HasField("list_value") else _content(entry) for entry in value.list_value.values]
    return getattr(value, kind) if kind in ("number_value", "string_value", "bool_value") else None


def _one(field: FieldDescriptor, value: Any) -> Any:
    return _READERS[field.cpp_type](field, value)


def _whole(field: FieldDescriptor, value: Any) -> int:
    value = _as_number(value)
    low, high = _INT32 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else (-_LARGEST, _LARGEST)
    if not isinstance(value, float) or not low <= value <= high or value != int(value):
        raise _Broken(f"must be whole numbers between {low} and {high}, got {shown(value)}")
    return int(value)


def _finite(field: FieldDescriptor, value: Any) -> float:
    value = _as_number(value)
    if not isinstance(value, float) or not math.isfinite(value):
        raise _Broken(f"must be finite numbers, got {shown(value)}")
    return value


def _as_number(value: Any) -> Any:
    """The number that a text is, as proto3's JSON has it: in YAML, 1e-4 without a point is a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _flag(field: FieldDescriptor, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Broken(f"must be true or false, got {shown(value)}")
    return value


def _text(field: FieldDescriptor, value: Any) -> str:
    if not isinstance(value, str):
        raise _Broken(f"must be texts, got {shown(value)}")
    return value


def _name(field: FieldDescriptor, value: Any) -> str:
    names = list(convert.short_names(field.enum_type).values())[1:]  # but for UNSPECIFIED
    if not isinstance(value, str) or value not in names:
        raise _Broken(f"must be among {', '.join(names)}, got {shown(value)}")
    return value


_READERS: Mapping[int, Callable[[FieldDescriptor, Any], Any]] = {
    FieldDescriptor.CPPTYPE_INT32: _whole,
    FieldDescriptor.CPPTYPE_INT64: _whole,
    FieldDescriptor.CPPTYPE_DOUBLE: _finite,
    FieldDescriptor.CPPTYPE_BOOL: _flag,
    FieldDescriptor.CPPTYPE_STRING: _text,
    FieldDescriptor.CPPTYPE_ENUM: _name,
}
"""By the types that `JobSpec` uses."""


def _number(field: FieldDescriptor, value: Any) -> Any:
    """`value` as `field` takes it."""
    return convert.enum_number(field.enum_type, value) if field.enum_type else value
