"""Between job specs as people write them and the protobuf `JobSpec`.

One to one by field name, with one addition: an enum value may be written without its prefix and in lower case,
`bernoulli` for `FAMILY_NAME_BERNOULLI`. The server holds the defaults and checks the ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from bll_client._errors import FieldViolation, InvalidSpec
from bll_proto.v1.training_pb2 import JobSpec

_KINDS = {
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits",
    FieldDescriptor.CPPTYPE_DOUBLE: "a finite number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "a string",
}
"""What each type that `JobSpec` uses takes."""


def parse_spec(values: Mapping[str, Any]) -> JobSpec:
    """The message that `values` describe; null counts as absent.

    Raises InvalidSpec with every field at fault, each under its full path.
    """
    spec = JobSpec()
    violations: list[FieldViolation] = []
    fill(spec, values, "", violations)
    if violations:
        raise InvalidSpec(violations)
    return spec


def spec_values(message: Message) -> dict[str, Any]:
    """The fields that are present in `message`, as `parse_spec` takes them."""
    return {field.name: _plain(field, value) for field, value in message.ListFields()}


def short_name(value: Any) -> str:
    """`bernoulli` for FAMILY_NAME_BERNOULLI, from its descriptor."""
    # Every value starts with its enum's name in upper snake case, which UNSPECIFIED shows: it is the same for all.
    prefix: str = value.type.values[0].name.removesuffix("UNSPECIFIED")
    name: str = value.name
    return name.removeprefix(prefix).lower()


def enum_name(enum: Any, number: int) -> str:
    """The short name of `number`, from its enum's descriptor; `unspecified` for one that only a newer proto knows."""
    return short_name(enum.values_by_number.get(number, enum.values[0]))


def fill(message: Message, values: object, path: str, violations: list[FieldViolation]) -> None:
    """Set the fields of `message` that `values` describe, and note those at fault under `path` and their names."""
    if not isinstance(values, Mapping):
        where = path.removesuffix(".") or "spec"
        violations.append(FieldViolation(where, f"must hold named fields, got {values!r}"))
        return
    fields = {field.name: field for field in message.DESCRIPTOR.fields}
    for name, value in values.items():
        where = f"{path}{name}"
        if name not in fields:
            violations.append(FieldViolation(where, f"is not a field; the fields here are {', '.join(fields)}"))
        elif value is None:
            continue
        elif fields[name].message_type is not None:
            nested = getattr(message, name)
            nested.SetInParent()
            fill(nested, value, f"{where}.", violations)
        else:
            _set(message, name, value, where, violations)


def _set(message: Message, name: str, value: object, where: str, violations: list[FieldViolation]) -> None:
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.enum_type is not None:
        known = {short_name(v): v.name for v in field.enum_type.values[1:]}
        if not isinstance(value, str) or value not in (*known, *known.values()):
            violations.append(FieldViolation(where, f"must be one of {', '.join(known)}, got {value!r}"))
            return
        value = known.get(value, value)
    try:
        json_format.ParseDict({name: value}, message)
    except (json_format.ParseError, OverflowError):
        kind = _KINDS[field.cpp_type]
        rule = f"a list, each entry {kind}" if field.is_repeated else kind
        violations.append(FieldViolation(where, f"must be {rule}, got {value!r}"))


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.is_repeated:
        return list(value)
    if field.message_type is not None:
        return spec_values(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    return value
