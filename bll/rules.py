"""The rules that fields of a config must keep, and how a broken one is told. Torch is not imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bll.errors import InvalidConfig, Violation


def shown(value: object) -> str:
    """`value` as an error message repeats it: whoever sent it, the message stays short."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


@dataclass(frozen=True)
class Rules:
    """Collects the broken rules of one config class. Values come from outside: their declared types prove nothing."""

    violations: list[Violation] = field(default_factory=list)

    def within(self, name: str, value: Any, low: float, high: float) -> bool:
        """A finite number between `low` and `high`, both allowed; returns whether it is."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:  # NaN compares false
            self.fail(name, f"must be between {low:g} and {high:g}, got {shown(value)}")
            return False
        return True

    def flag(self, name: str, value: Any) -> None:
        """True or False."""
        if not isinstance(value, bool):
            self.fail(name, f"must be true or false, got {shown(value)}")

    def whole(self, name: str, value: Any, low: int, high: int) -> None:
        """A whole number between `low` and `high`, both allowed."""
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.fail(name, f"must be a whole number between {low} and {high}, got {shown(value)}")

    def text(self, name: str, value: Any) -> None:
        """A name, not empty."""
        if not isinstance(value, str) or not value:
            self.fail(name, f"must be a name, got {shown(value)}")

    def layers(self, name: str, value: Any, least: int, most: int, low: int, high: int) -> bool:
        """`least` to `most` whole numbers between `low` and `high`; returns whether they can be compared."""
        if not isinstance(value, tuple) or not least <= len(value) <= most:
            received = len(value) if isinstance(value, tuple) else shown(value)
            self.fail(name, f"must list {least} to {most} entries, got {received}")
            return False
        for i, entry in enumerate(value):
            self.whole(f"{name}[{i}]", entry, low, high)
        return all(isinstance(entry, int) for entry in value)

    def numbers(self, name: str, value: Any, most: int, low: float, high: float) -> None:
        """Up to `most` numbers between `low` and `high`, both allowed."""
        if not isinstance(value, tuple) or len(value) > most:
            received = len(value) if isinstance(value, tuple) else shown(value)
            self.fail(name, f"must list at most {most} entries, got {received}")
            return
        for i, entry in enumerate(value):
            self.within(f"{name}[{i}]", entry, low, high)

    def member(self, name: str, value: Any, choices: type[StrEnum]) -> None:
        """One of `choices`."""
        if not isinstance(value, choices):
            self.fail(name, f"must be one of {', '.join(choices)}, got {shown(value)}")

    def fail(self, name: str, description: str) -> None:
        """Note a broken rule that the others do not cover."""
        self.violations.append(Violation(name, description))

    def done(self) -> None:
        """Raises InvalidConfig if a rule was broken."""
        if self.violations:
            raise InvalidConfig(self.violations)
