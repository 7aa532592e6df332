"""How thoroughly the service is measured, and where results go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record import RESULTS

if TYPE_CHECKING:
    from benchmarks.engine.tally import Tally

FOLDER = Path(__file__).parents[2] / ".bench" / "serving"
"""The model, the peers' environments, and what a trial measures."""


@dataclass(frozen=True)
class Effort:
    """Rounds, times and folders of a measurement."""

    rounds: int
    window_s: float
    """Of one contender in one round."""
    overload_s: float
    reloads: int
    stops: int
    soak_s: float
    results: Path
    runs: Path

    is_trial: bool = False

    def tally(self, name: str) -> Tally:
        from benchmarks.engine.tally import Tally  # and with it torch, which the servers that are measured do not need

        tally = Tally(name, self.runs)
        if self.is_trial:
            tally.forget()
        return tally


FULL = Effort(5, 8.0, 60.0, 100, 20, 3600.0, RESULTS, RESULTS / "serving" / "runs")
QUICK = Effort(1, 1.0, 4.0, 3, 2, 60.0, FOLDER, FOLDER / "runs", is_trial=True)
