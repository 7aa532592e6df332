"""The measuring functions by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.method.alignment import alignment
from benchmarks.method.measures import Measured, Task, classifier, positions, reconstruction, segmentation, smoke
from benchmarks.method.uncertainty import ensemble, mc_dropout, single

MEASURES: Mapping[str, Callable[[Task], Measured]] = {
    "classifier": classifier,
    "positions": positions,
    "segmentation": segmentation,
    "reconstruction": reconstruction,
    "smoke": smoke,
    "uncertainty": single,
    "ensemble": ensemble,
    "mc_dropout": mc_dropout,
    "alignment": alignment,
}
