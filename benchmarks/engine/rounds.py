"""Contenders measured in turns, round after round: what else the machine does meets them all alike."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from benchmarks.engine.contenders import Contender, Figures, measure, to_json
from benchmarks.engine.tally import Tally

SPEED = "samples_per_s"


class Rounds:
    """Figures of named contenders, round by round."""

    def __init__(self, figures: Mapping[str, list[Figures]]) -> None:
        self._figures = figures

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._figures)

    def values(self, name: str, figure: str = SPEED) -> list[float]:
        """One figure of one contender, round by round."""
        return [figures[figure] for figures in self._figures[name]]

    def median(self, name: str, figure: str = SPEED) -> float:
        return statistics.median(self.values(name, figure))

    def ratio(self, of: str, against: str, figure: str = SPEED, against_figure: str = SPEED) -> float:
        """The median of the rounds' ratios."""
        pairs = zip(self.values(of, figure), self.values(against, against_figure), strict=True)
        return statistics.median(a / b for a, b in pairs)

    def fastest(self, names: Iterable[str]) -> str:
        """The contender of the highest median throughput."""
        return max(names, key=self.median)


def run(
    contenders: Mapping[str, Contender],
    rounds: int,
    tally: Tally,
    network: str,
    measure: Callable[[Contender], Figures] = measure,
) -> Rounds:
    """Measure what the tally does not have yet; every second round goes through the contenders backwards.

    `network` tells the contenders of one network from those of another.
    """
    figures: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders.items())
        for name, contender in reversed(order) if number % 2 else order:
            # Another spec or window is another measurement.
            digest = hashlib.sha256(to_json(contender).encode()).hexdigest()[:8]
            key = f"{network}, round {number + 1}: {name} ({digest})"
            figures[name].append(tally.once(key, partial(measure, contender)))
    return Rounds(figures)
