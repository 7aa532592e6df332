import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bll_server.errors import InvalidRequest
from bll_server.studies.search import Parameter, Span, grid, random

FIELDS = ("epochs", "seed", "latent.family", "optimizer.learning_rate")
FAMILIES = Parameter("latent.family", ("bernoulli", "gaussian"))

values = st.lists(st.integers(-9, 9) | st.sampled_from(["bernoulli", "laplace"]), min_size=1, max_size=4, unique=True)
lists = st.lists(values, min_size=1, max_size=4).map(
    lambda found: [Parameter(field, tuple(choices)) for field, choices in zip(FIELDS, found, strict=False)]
)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    whole, log = draw(st.booleans()), draw(st.booleans())
    least = (1 if whole else 1e-8) if log else -1000
    numbers = st.integers(least, 2**40) if whole else st.floats(least, 1e6)  # type: ignore[arg-type]  # whole: an int
    low, high = sorted((draw(numbers), draw(numbers)))
    return Span(low, high + 1, log, whole)


searches = st.lists(spans() | st.just(FAMILIES.choices), min_size=1, max_size=4).map(
    lambda found: [Parameter(field, choices) for field, choices in zip(FIELDS, found, strict=False)]
)
seeds = st.integers(-(2**63), 2**63 - 1)


@given(lists)
def test_a_grid_is_the_product_of_the_values_and_the_last_parameter_runs_first(parameters: list[Parameter]) -> None:
    trials = grid(parameters, 1000)
    expected = itertools.product(*(p.choices for p in parameters))  # type: ignore[arg-type]  # none is a Span
    assert [tuple(trial.values()) for trial in trials] == list(expected)
    assert {tuple(trial) for trial in trials} == {tuple(p.field for p in parameters)}


def test_a_grid_that_is_too_large_says_what_it_comes_to() -> None:
    parameters = [Parameter("epochs", tuple(range(40))), Parameter("seed", tuple(range(3)))]
    assert len(grid(parameters, 120)) == 120
    with pytest.raises(InvalidRequest, match=r"study\.parameters: must come to at most 119 trials, got 40 x 3 = 120"):
        grid(parameters, 119)


def test_a_grid_of_a_size_that_no_memory_holds_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequest, match="at most 100 trials"):
        grid([Parameter(f"f{i}", tuple(range(1000))) for i in range(32)], 100)


def test_a_range_is_refused_in_a_grid() -> None:
    with pytest.raises(InvalidRequest, match=r"study\.parameters\[1\]\.range: goes with a random search"):
        grid([FAMILIES, Parameter("seed", Span(0, 9, False, True))], 100)


@given(searches, seeds, st.integers(1, 2))
def test_the_same_study_has_the_same_trials_and_a_larger_one_has_them_first(
    parameters: list[Parameter], seed: int, num_trials: int
) -> None:
    first = random(parameters, num_trials, seed, 10)
    assert random(parameters, num_trials, seed, 10) == first
    assert random(parameters, 2, seed, 10)[:num_trials] == first


@given(spans(), seeds)
def test_every_value_is_within_its_range_and_of_its_kind(span: Span, seed: int) -> None:
    for trial in random([Parameter("epochs", span)], 2, seed, 10):
        assert span.low <= trial["epochs"] <= span.high
        assert isinstance(trial["epochs"], int if span.whole else float)


@given(spans(), st.floats(0, 1, exclude_max=True))
def test_no_draw_leaves_the_range(span: Span, unit: float) -> None:
    assert span.low <= span.at(unit) <= span.high


@given(seeds)
def test_another_parameter_leaves_the_values_of_the_others(seed: int) -> None:
    rate = Parameter("optimizer.learning_rate", Span(1e-4, 1e-1, True, False))
    alone = random([rate], 5, seed, 10)
    both = random([Parameter("seed", Span(0, 99, False, True)), rate], 5, seed, 10)
    assert [trial["optimizer.learning_rate"] for trial in both] == [trial["optimizer.learning_rate"] for trial in alone]


def test_trials_are_those_that_they_have_always_been() -> None:
    parameters = [FAMILIES, Parameter("seed", Span(0, 9, False, True)), Parameter("r", Span(1e-4, 1e-2, True, False))]
    assert random(parameters, 2, 7, 10) == [
        {"latent.family": "gaussian", "seed": 0, "r": 0.0019360345902244972},
        {"latent.family": "bernoulli", "seed": 7, "r": 0.0022749087754921067},
    ]


def test_all_trials_are_different_and_every_combination_can_be_had() -> None:
    parameters = [FAMILIES, Parameter("epochs", Span(1, 3, False, True))]
    trials = random(parameters, 6, 0, 10)
    assert len({tuple(trial.values()) for trial in trials}) == 6
    with pytest.raises(InvalidRequest, match=r"num_trials: must be at most the different trials .* got 7 .* found 6"):
        random(parameters, 7, 0, 10)


def test_more_trials_than_the_server_takes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"study\.num_trials: must be at most 10, got 11"):
        random([FAMILIES], 11, 0, 10)


@pytest.mark.parametrize("log", [False, True])
def test_whole_numbers_are_as_likely_at_the_bounds_as_their_share_says(log: bool) -> None:
    counts = Counter(Span(1, 4, log, True).at(i / 10_000) for i in range(10_000))
    assert set(counts) == {1, 2, 3, 4}
    if not log:
        assert all(abs(count - 2500) <= 1 for count in counts.values())
    else:
        assert counts[1] > counts[2] > counts[3] > counts[4] > 1000
