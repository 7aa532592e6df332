"""Which trials a study has: every combination of its parameters' values, or so many of them drawn at random.

A random value is a function of the seed, the number of the draw and the field alone, of SHA-256 and no generator's
state: so the same study has the same trials whatever the versions of what is installed, a study with more trials has
those of the smaller one first, and another parameter leaves the values of the others as they are.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bll.errors import Violation
from bll_server.errors import InvalidRequest

Values = dict[str, Any]
"""Of each parameter's field, in the order of the parameters."""

_DRAWS_A_TRIAL = 20
"""So many draws are made for each trial asked for, before a search says that there are not so many different ones."""


@dataclass(frozen=True)
class Span:
    """The numbers from `low` to `high`, both included, uniform themselves or in their logarithm."""

    low: float
    high: float
    log: bool
    whole: bool
    """The field takes whole numbers alone."""

    def at(self, unit: float) -> float:
        """The number that is `unit`, in [0, 1), of the way from `low` to `high`."""
        # Each whole number owns the half on either side, so that the bounds are as likely as the rest.
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        else:
            value = low + unit * (high - low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value


@dataclass(frozen=True)
class Parameter:
    """A field of a spec, and what trials may have there."""

    field: str
    """Its path, such as `optimizer.learning_rate`."""
    choices: tuple[Any, ...] | Span


def grid(parameters: Sequence[Parameter], most: int) -> list[Values]:
    """Every combination of the values, the last parameter's following each other. Raises InvalidRequest."""
    choices = []
    for index, parameter in enumerate(parameters):
        if isinstance(parameter.choices, Span):
            rule = "goes with a random search, whose num_trials is more than 0; a grid needs values"
            raise InvalidRequest(Violation(f"study.parameters[{index}].range", f"{rule}, got {parameter.field!r}"))
        choices.append(parameter.choices)
    total = math.prod(map(len, choices))
    if total > most:
        sizes = " x ".join(str(len(values)) for values in choices)
        rule = f"must come to at most {most} trials, got {sizes} = {total}"
        raise InvalidRequest(Violation("study.parameters", rule))
    fields = [parameter.field for parameter in parameters]
    return [dict(zip(fields, values, strict=True)) for values in itertools.product(*choices)]


def random(parameters: Sequence[Parameter], num_trials: int, seed: int, most: int) -> list[Values]:
    """`num_trials` different combinations, drawn uniformly and independently. Raises InvalidRequest."""
    if num_trials > most:
        raise InvalidRequest(Violation("study.num_trials", f"must be at most {most}, got {num_trials}"))
    found: dict[str, Values] = {}
    for values in itertools.islice(_draws(parameters, seed), _DRAWS_A_TRIAL * num_trials):
        found.setdefault(json.dumps(values), values)
        if len(found) == num_trials:
            return list(found.values())
    rule = f"must be at most the different trials that there are, got {num_trials} where draws found {len(found)}"
    raise InvalidRequest(Violation("study.num_trials", rule))


def _draws(parameters: Sequence[Parameter], seed: int) -> Iterator[Values]:
    for number in itertools.count():
        yield {p.field: _drawn(p.choices, _unit(seed, number, p.field)) for p in parameters}


def _drawn(choices: tuple[Any, ...] | Span, unit: float) -> Any:
    return choices.at(unit) if isinstance(choices, Span) else choices[math.floor(unit * len(choices))]


def _unit(seed: int, number: int, field: str) -> float:
    """A number in [0, 1) with 53 random bits."""
    digest = hashlib.sha256(json.dumps([seed, number, field]).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53
