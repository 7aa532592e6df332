"""How thoroughly the engine is measured, and where the results go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine.contenders import Window
from benchmarks.engine.tally import RUNS, Tally
from benchmarks.record import RESULTS


@dataclass(frozen=True)
class Effort:
    """Rounds, windows and folders of a measurement."""

    rounds: int
    results: Path
    runs: Path
    """What the rounds measured, so that a run cut short goes on where it was."""
    recordings: Path
    """Times of the parts of networks, which simulations use."""
    is_trial: bool = False
    """Whether windows shrink to a step, to see that everything runs."""

    def window(self, full: Window) -> Window:
        return Window(1, 1) if self.is_trial else full

    def tally(self, name: str) -> Tally:
        return Tally(name, self.runs)


_TRIAL = Path(__file__).parents[2] / ".bench" / "engine"

FULL = Effort(rounds=5, results=RESULTS, runs=RUNS, recordings=Path(__file__).parent / "recorded")
QUICK = Effort(rounds=1, results=_TRIAL, runs=_TRIAL / "runs", recordings=_TRIAL / "recorded", is_trial=True)
