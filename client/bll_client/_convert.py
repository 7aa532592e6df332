"""From messages to the dataclasses of `_types`, by field name: the one place where either client reads an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, timedelta
from enum import StrEnum
from functools import cache
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.rpc import code_pb2

from bll_client._spec import enum_name, spec_values
from bll_client._types import JobFailure
from bll_proto import tensors

T = TypeVar("T")


def plain_value(value: Value) -> Any:
    """What `value` holds, in JSON's types; a number that is whole as an int."""
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [plain_value(entry) for entry in value.list_value.values]
    if kind == "struct_value":
        return _plain_struct(value.struct_value)
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def _plain_struct(struct: Struct) -> dict[str, Any]:
    return {name: plain_value(value) for name, value in struct.fields.items()}


_READERS: dict[str, Callable[[Any], Any]] = {
    "google.protobuf.Timestamp": lambda message: message.ToDatetime(UTC),
    "google.protobuf.Duration": lambda message: message.ToTimedelta(),
    "google.rpc.Status": lambda message: JobFailure(code_pb2.Code.Name(message.code), message.message),
    "google.protobuf.Struct": _plain_struct,
    "google.protobuf.Value": plain_value,
    "bll.v1.Tensor": tensors.to_array,
    "bll.v1.JobSpec": spec_values,
}
"""Messages that become something else than a dataclass with their fields."""


def read(kind: type[T], message: Message) -> T:
    """`message` as a `kind`, a dataclass whose fields have the names of the message's."""
    return kind(**{name: _field(message, name, hint) for name, hint in _hints(cast(Any, kind)).items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _field(message: Message, name: str, hint: Any) -> Any:
    if name in message.DESCRIPTOR.oneofs_by_name:
        member = message.WhichOneof(name)
        return None if member is None else _value(message, member, hint, getattr(message, member))
    if name not in message.DESCRIPTOR.fields_by_name:
        # The proto names the unit of a bare number; a timedelta has its own.
        assert hint is timedelta, f"{message.DESCRIPTOR.full_name} has no field {name}"
        return timedelta(seconds=getattr(message, f"{name}_s"))
    value = getattr(message, name)
    field = message.DESCRIPTOR.fields_by_name[name]
    if get_origin(hint) is Mapping:
        known = field.message_type is not None and field.message_type.full_name in _READERS
        return _value(message, name, hint, value) if known else dict(value)
    if field.is_repeated:
        return tuple(_value(message, name, get_args(hint)[0], item) for item in value)
    if NoneType in get_args(hint) and not message.HasField(name):
        return None
    return _value(message, name, hint, value)


def _value(message: Message, name: str, hint: Any, value: Any) -> Any:
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.message_type is not None:
        reader = _READERS.get(field.message_type.full_name)
        return reader(value) if reader else read(_dataclass(hint, field.message_type.name), value)
    if field.enum_type is not None:
        short = enum_name(field.enum_type, value)
        return hint(short) if issubclass(hint, StrEnum) else short
    return value


def _dataclass(hint: Any, name: str) -> Any:
    """The class called `name`, out of `hint` or its union."""
    return next(kind for kind in (hint, *get_args(hint)) if getattr(kind, "__name__", "") == name)
