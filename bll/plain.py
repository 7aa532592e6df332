"""Configs as plain JSON values, and back. Torch is not imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import StrEnum
from typing import Any, TypeVar, cast, get_type_hints

from bll.errors import InvalidConfig, Violation


def to_dict(config: Any) -> dict[str, Any]:
    """`config` as plain JSON values."""
    plain: dict[str, Any] = asdict(config)
    return plain


T = TypeVar("T")


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """The config that `to_dict` wrote, or that a user did; absent fields take their defaults.

    Raises InvalidConfig with every violation found, each under its full path.
    """
    violations: list[Violation] = []
    config = _build(cls, values, "", violations)
    if violations:
        raise InvalidConfig(violations)
    assert config is not None
    return config


def _build(cls: type[T], values: Any, path: str, violations: list[Violation]) -> T | None:
    if not isinstance(values, Mapping):
        violations.append(Violation(path.removesuffix("."), f"must hold named fields, got {values!r}"))
        return None
    hints = get_type_hints(cls)
    found = len(violations)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            known = ", ".join(f.name for f in fields(cls))  # type: ignore[arg-type]
            violations.append(Violation(f"{path}{name}", f"is not a field; the fields here are {known}"))
            continue
        kind = hints[name]
        if is_dataclass(kind):
            arguments[name] = _build(cast(type[Any], kind), value, f"{path}{name}.", violations)
        elif isinstance(kind, type) and issubclass(kind, StrEnum) and value in list(kind):
            arguments[name] = kind(value)
        elif isinstance(value, list):
            arguments[name] = tuple(value)
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            arguments[name] = float(value)
        else:
            arguments[name] = value
    if len(violations) > found and any(value is None for value in arguments.values()):
        arguments = {name: value for name, value in arguments.items() if value is not None}
    try:
        return cls(**arguments)
    except InvalidConfig as error:
        violations += [Violation(f"{path}{v.field}", v.description) for v in error.violations]
        return None
