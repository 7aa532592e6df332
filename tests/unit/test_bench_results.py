"""What the benchmarks' report says of finished trials: its statistics, and its files from a canned folder."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import special, stats

from benchmarks.method.paired import RankedRows, difference, error_auroc_difference, log_prediction, row_scores
from benchmarks.method.report import report
from benchmarks.method.results import Results
from benchmarks.method.trials import Chart, Claim, Contender, Group, Store, Stored, Trial

ROWS = 4000


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_interval_of_one_seed_is_that_of_a_paired_test() -> None:
    a, b = draw(0).normal(0.3, 1, ROWS), draw(1).normal(0, 1, ROWS)
    found = difference([a - b], same_rows=True)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)  # with 4000 rows, t is normal to 1e-3
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-3)
    assert found.over_seeds is None


def test_seeds_with_the_same_rows_are_averaged_and_others_are_pooled() -> None:
    common = draw(0).normal(0.1, 1, ROWS)
    seeds = [common, common, common]
    width = 2 * stats.norm.ppf(0.975) * stats.sem(common)
    same, pooled = difference(seeds, same_rows=True), difference(seeds, same_rows=False)
    assert same.high - same.low == pytest.approx(width)
    assert pooled.high - pooled.low == pytest.approx(width / 3**0.5, rel=1e-3)
    assert same.over_seeds == pytest.approx(0)


def test_interval_holds_the_truth_at_its_stated_rate() -> None:
    covered = 0
    for trial in range(1000):
        a, b = draw(trial).binomial(1, [[0.02], [0.02]], (2, 500))
        found = difference([a - b], same_rows=True)
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / 1000 <= 0.98


def test_predictions_of_exits_are_those_of_scipy() -> None:
    exits_KBC = special.log_softmax(draw(0).normal(size=(3, 5, 4)), axis=-1)
    targets_B = np.array([0, 1, 2, 3, 0])
    mixture_BC = np.exp(exits_KBC).mean(0)
    np.testing.assert_allclose(np.exp(log_prediction(exits_KBC, "mixture")), mixture_BC)
    np.testing.assert_allclose(log_prediction(exits_KBC, "product"), special.log_softmax(exits_KBC.sum(0), axis=-1))
    arrays = {"test_exits": exits_KBC, "test_targets": targets_B, "test_tempered": exits_KBC[1]}
    np.testing.assert_allclose(row_scores(arrays, "mixture", "nll"), -np.log(mixture_BC[np.arange(5), targets_B]))
    np.testing.assert_array_equal(row_scores(arrays, "last", "accuracy"), exits_KBC[2].argmax(1) == targets_B)
    np.testing.assert_allclose(row_scores(arrays, "tempered", "doubt"), 1 - np.exp(exits_KBC[1]).max(1))


def test_interval_of_a_difference_in_ranking_has_the_width_that_repeated_sampling_has() -> None:
    def sample(generator: np.random.Generator) -> tuple[RankedRows, RankedRows]:
        right_B = generator.random(600) < 0.8
        return (generator.normal(size=600) - right_B, right_B), (generator.normal(size=600) - 0.5 * right_B, right_B)

    samples = [sample(draw(seed)) for seed in range(200)]
    repeated = [error_auroc_difference([pair], resamples=1).mean for pair in samples]
    found = error_auroc_difference([samples[0]], resamples=200)
    assert found.low < found.mean < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(repeated), rel=0.25)
    # Of two normals of unit variance a distance d apart, one exceeds the other with probability Phi(d / sqrt 2).
    expected = stats.norm.cdf(1 / 2**0.5) - stats.norm.cdf(0.5 / 2**0.5)
    assert np.mean(repeated) == pytest.approx(expected, abs=0.01)


GROUP = Group(
    name="some",
    title="Two contenders and one that never ran",
    contenders={name: Contender({"epochs": 1}, seeds=(0, 1)) for name in ("ours", "theirs", "late")},
    claims=(
        Claim("ours:mixture", "accuracy", target=0.5),
        Claim("ours:mixture", "accuracy", against="theirs:last", target=0.3),
        Claim("ours:mixture", "accuracy", against="late:last", target=0.0),
        Claim("ours:mixture", "accuracy", against="theirs:last", target=1.4, op="<=", as_ratio=True),
    ),
    chart=Chart("effort", {"all": {1.0: "theirs", 2.0: "ours", 3.0: "late"}}),
)


def canned(folder: Path) -> Results:
    """`ours` is right on 80 and 90 % of ten rows, `theirs` on 60 %; `late` was not measured."""
    store, kept = Store(folder / "trials"), {}
    for trial in GROUP.trials():
        if trial.name == "late":
            continue
        right = (8 + trial.seed) if trial.name == "ours" else 6
        probs_BC = np.where(np.arange(10)[:, None] < right, [[0.9, 0.1]], [[0.1, 0.9]])
        arrays = {"test_exits": np.log(probs_BC)[None], "test_targets": np.zeros(10, dtype=np.int64)}
        accuracy = {f"{prediction}.accuracy": right / 10 for prediction in ("mixture", "exit1")}
        machine = {"cpu": "a CPU", "cores": 2, "python": "3.11", "torch": "2"}
        whole = {"run": trial.key, "epochs": 1, "commit": "0123456789", "date": "2026-01-02", "machine": machine}
        store.write(trial, {**whole, "figures": {"parameters": 1000, "train_cpu_s": 60.0, **accuracy}})
        kept[trial.key] = arrays
    return Results([GROUP], store, lambda stored: kept[stored["run"]])


def test_report_writes_figures_differences_and_what_is_missing(tmp_path: Path) -> None:
    report(canned(tmp_path), tmp_path / "results", tmp_path / "results.md")
    values = json.loads((tmp_path / "results" / "method" / "some.json").read_text())
    rows = {row["what"]: row for row in values["rows"]}
    assert values["seeds"] == [0, 1]
    assert rows["some/ours: mixture.accuracy, mean over 2 seeds"]["value"] == pytest.approx(0.85)
    absolute = rows["some/ours: mixture accuracy, mean over 2 seeds"]
    assert (absolute["target"], absolute["holds"]) == (0.5, True)
    what = "some/ours: mixture accuracy less that of some/theirs: last, mean over 2 seeds"
    assert rows[what]["value"] == pytest.approx(0.25)
    assert rows[what]["ratio"] == pytest.approx(0.85 / 0.6)
    assert rows[what]["holds"] is False
    assert rows[f"{what}: standard deviation over seeds"]["value"] == pytest.approx(0.05 * 2**0.5)
    by_row = np.array([0] * 6 + [1, 1, 0.5, 0])
    half = stats.norm.ppf(0.975) * stats.sem(by_row)
    assert rows[f"{what}: 95 % interval over test rows, from"]["value"] == pytest.approx(0.25 - half)
    quotient = rows["some/ours: mixture accuracy over that of some/theirs: last, mean over 2 seeds"]
    assert quotient["value"] == pytest.approx(0.85 / 0.6)
    assert quotient["holds"] is False
    assert not any("late" in what for what in rows)
    assert "Not measured: late." in values["notes"]

    document = (tmp_path / "results.md").read_text()
    assert "Generated by `python -m benchmarks.method report`" in document
    assert "| ours | 85.00 ± 7.07 |" in document
    assert ">= 30 | **no** |" in document
    assert "Not measured: late." in document
    assert "](results-some.svg)" in document
    chart = ElementTree.fromstring((tmp_path / "results-some.svg").read_text())
    assert len(chart.findall(".//{*}circle")) == 2


def test_report_without_row_predictions_gives_the_difference_without_an_interval(tmp_path: Path) -> None:
    results = canned(tmp_path)

    def none(stored: Stored) -> None:
        return None

    rows = {row.what: row for row in Results(results.groups, results.store, none).rows(GROUP)}
    what = "some/ours: mixture accuracy less that of some/theirs: last, mean over 2 seeds"
    assert rows[what].value == pytest.approx(0.25)
    assert not any("interval" in name for name in rows)


def test_a_trial_whose_spec_has_changed_since_counts_as_not_measured(tmp_path: Path) -> None:
    results = canned(tmp_path)
    changed = Group(**{**vars(GROUP), "contenders": {"ours": Contender({"epochs": 2}, seeds=(0,))}, "claims": ()})
    assert Results([changed], results.store, results.predictions).missing(changed) == [
        Trial("some", "ours", {"epochs": 2}, 0)
    ]
