"""What the finished trials of all groups come to: figures over seeds, and claims with their differences."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.method.paired import Difference, RankedRows, difference, error_auroc_difference, row_scores
from benchmarks.method.trials import Claim, Group, Store, Stored, Trial
from benchmarks.record import Row

Predictions = Callable[[Stored], dict[str, np.ndarray] | None]

_BY_ROW = ("accuracy", "nll", "error_auroc")
"""Scores whose differences have an interval over test rows."""

_UNITS = {
    "nll": "nats",
    "mse": "squared units of the target",
    "calibrated_width": "units of the target",
    "variance_scale": "ratio",
    "mixture_gap": "nats",
    "parameters": "parameters",
    "mflops": "MFLOP",
    "step_ms": "ms",
    "peak_rss_mib": "MiB",
    "train_cpu_s": "s",
    "train_wall_s": "s",
    "predict_us": "us",
}


@dataclass(frozen=True)
class Results:
    """Reads trials from `store`, and their rows' predictions where this machine has them."""

    groups: Sequence[Group]
    store: Store
    predictions: Predictions

    def finished(self, name: str) -> dict[int, Stored]:
        """Finished trials of contender `group/name` by seed, in the order of seeds."""
        return {trial.seed: stored for trial in self._trials(name) if (stored := self.store.read(trial))}

    def missing(self, group: Group) -> list[Trial]:
        """Trials of the group that have no result."""
        return [trial for trial in group.trials() if self.store.read(trial) is None]

    def rows(self, group: Group) -> list[Row]:
        """Every figure of the group's contenders over seeds, then its claims; of what is measured only."""
        return [*self._figures(group), *(row for claim in group.claims for row in self._claim(group, claim))]

    def chart(self, group: Group) -> dict[str, list[tuple[float, float]]]:
        """Points of the group's chart, in percent; of what is measured only."""
        found: dict[str, list[tuple[float, float]]] = {}
        for line, named in (group.chart.lines if group.chart else {}).items():
            for x, name in named.items():
                values = [figure(s, "mixture", "accuracy") for s in self.finished(f"{group.name}/{name}").values()]
                if values:
                    found.setdefault(line, []).append((x, 100 * statistics.mean(values)))
        return found

    def _figures(self, group: Group) -> Iterator[Row]:
        for name in contenders(group):
            finished = list(self.finished(name).values())
            for figure in finished[0]["figures"] if finished else ():
                values = [stored["figures"][figure] for stored in finished if figure in stored["figures"]]
                unit = _UNITS.get(figure.rpartition(".")[2], "fraction")
                yield Row(f"{name}: {figure}, {_over(len(values))}", statistics.mean(values), unit)
                if len(values) > 1:
                    what = f"{name}: {figure}, standard deviation over seeds"
                    yield Row(what, statistics.stdev(values), unit)

    def _claim(self, group: Group, claim: Claim) -> Iterator[Row]:
        of, prediction = _split(group, claim.of)
        finished, unit = self.finished(of), _UNITS.get(claim.score, "fraction")
        if not claim.against:
            if values := [figure(stored, prediction, claim.score) for stored in finished.values()]:
                what = f"{of}: {prediction} {claim.score}, {_over(len(values))}"
                yield Row(what, statistics.mean(values), unit, target=claim.target, op=claim.op)
            return
        other, other_prediction = _split(group, claim.against)
        others = self.finished(other)
        if not (seeds := sorted(finished.keys() & others.keys())):
            return
        values = [figure(finished[seed], prediction, claim.score) for seed in seeds]
        references = [figure(others[seed], other_prediction, claim.score) for seed in seeds]
        mean = statistics.mean(values) - statistics.mean(references)
        ratio = statistics.mean(values) / statistics.mean(references) if all(references) else None
        if claim.as_ratio:
            what = f"{of}: {prediction} {claim.score} over that of {other}: {other_prediction}, {_over(len(seeds))}"
            against = f"{other}: {other_prediction}"
            assert ratio is not None, "a score of 0 is no divisor"
            yield Row(what, ratio, "ratio", against, ratio, claim.target, claim.op)
            return
        what = f"{of}: {prediction} {claim.score} less that of {other}: {other_prediction}, {_over(len(seeds))}"
        yield Row(what, mean, unit, f"{other}: {other_prediction}", ratio, claim.target, claim.op)
        pairs = [((finished[seed], prediction), (others[seed], other_prediction)) for seed in seeds]
        if claim.score in _BY_ROW and (found := self._difference(pairs, claim.score)):
            yield Row(f"{what}: 95 % interval over test rows, from", found.low, unit)
            yield Row(f"{what}: 95 % interval over test rows, to", found.high, unit)
        if len(seeds) > 1:
            spread = statistics.stdev(a - b for a, b in zip(values, references, strict=True))
            yield Row(f"{what}: standard deviation over seeds", spread, unit)

    def _difference(
        self, pairs: Sequence[tuple[tuple[Stored, str], tuple[Stored, str]]], score: str
    ) -> Difference | None:
        """Row by row; None where this machine lacks predictions."""
        found = []
        for (of, prediction), (against, other_prediction) in pairs:
            arrays, others = self.predictions(of), self.predictions(against)
            if arrays is None or others is None:
                return None
            if not np.array_equal(arrays["test_targets"], others["test_targets"]):
                raise ValueError(f"{of['run']} and {against['run']} were not tested on the same rows")
            found.append(((arrays, prediction), (others, other_prediction)))
        targets = [arrays["test_targets"] for (arrays, _), _ in found]
        same_rows = all(np.array_equal(targets[0], other) for other in targets)
        if score == "error_auroc":
            ranked = [(_ranked(*of), _ranked(*against)) for of, against in found]
            return error_auroc_difference(ranked) if same_rows else None
        by_seed = [row_scores(*of, score) - row_scores(*against, score) for of, against in found]
        return difference(by_seed, same_rows=same_rows)

    def _trials(self, name: str) -> list[Trial]:
        group_name, _, contender = name.partition("/")
        group = next(group for group in self.groups if group.name == group_name)
        return [trial for trial in group.trials() if trial.name == contender]


def contenders(group: Group) -> list[str]:
    """Names, as `group/name`, of all lines of the group's table."""
    return [*(f"{group.name}/{name}" for name in group.contenders), *group.also]


def figure(stored: Stored, prediction: str, score: str) -> float:
    """One score of one trial; `prediction` may be `first` or `last`, or empty for a figure of the whole trial."""
    figures = stored["figures"]
    if prediction in ("first", "last"):
        exits = sum(1 for name in figures if name.startswith("exit") and name.endswith(f".{score}"))
        prediction = "exit1" if prediction == "first" else f"exit{exits}"
    value: float = figures[f"{prediction}.{score}" if prediction else score]
    return value


def _split(group: Group, reference: str) -> tuple[str, str]:
    """`group/name` and prediction of a claim's `name:prediction`."""
    name, _, prediction = reference.partition(":")
    return name if "/" in name else f"{group.name}/{name}", prediction


def _ranked(arrays: Mapping[str, np.ndarray], prediction: str) -> RankedRows:
    return row_scores(arrays, prediction, "doubt"), row_scores(arrays, prediction, "accuracy") == 1


def _over(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"mean over {seeds} seeds"
