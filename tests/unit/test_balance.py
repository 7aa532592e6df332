"""Groups of consecutive items against brute force: the smallest largest group, and how even the others are."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from bll.balance import balanced_cuts, even_cuts


def groups(costs: list[int], cuts: tuple[int, ...]) -> list[list[int]]:
    return [costs[a:b] for a, b in itertools.pairwise((0, *cuts, len(costs)))]


def every(costs: list[int], num_groups: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(1, len(costs)), num_groups - 1))


@given(costs=st.lists(st.integers(0, 20), min_size=1, max_size=8), with_exits=st.booleans(), data=st.data())
def test_balanced_cuts_make_the_largest_group_as_small_as_can_be(
    costs: list[int], with_exits: bool, data: st.DataObject
) -> None:
    num_groups = data.draw(st.integers(1, len(costs)))
    one_a_layer = st.lists(st.sampled_from([0, 1, 5, 30, math.inf]), min_size=len(costs), max_size=len(costs))
    exits = data.draw(one_a_layer) if with_exits else []

    def largest(cuts: tuple[int, ...]) -> float:
        held = zip((0, *cuts), (*cuts, len(costs)), strict=True)
        return max(sum(costs[a:b]) + (exits[b - 1] if exits else 0) for a, b in held)

    found = balanced_cuts(costs, num_groups, exits)
    assert len(found) == num_groups - 1
    assert all(groups(costs, found))
    assert largest(found) == min(map(largest, every(costs, num_groups)))


@given(costs=st.lists(st.integers(0, 20), min_size=1, max_size=8), data=st.data())
def test_even_cuts_are_the_most_even_of_those_whose_largest_group_is_the_smallest(
    costs: list[int], data: st.DataObject
) -> None:
    num_groups = data.draw(st.integers(1, len(costs)))

    def cost(cuts: tuple[int, ...]) -> tuple[int, int]:
        sums = [sum(group) for group in groups(costs, cuts)]
        return max(sums), sum(each * each for each in sums)

    found = even_cuts(costs, num_groups)
    assert len(found) == num_groups - 1
    assert all(groups(costs, found))
    assert cost(found) == min(map(cost, every(costs, num_groups)))


@given(costs=st.lists(st.floats(0, 1e-2), min_size=1, max_size=12), data=st.data())
def test_even_cuts_of_measured_times_are_always_found(costs: list[float], data: st.DataObject) -> None:
    """Sums of floats round, and the limit must still be met by the groups that set it."""
    num_groups = data.draw(st.integers(1, len(costs)))
    found = even_cuts(costs, num_groups)
    assert len(found) == num_groups - 1
    assert all(a < b for a, b in itertools.pairwise((0, *found, len(costs))))


def test_even_cuts_do_not_leave_one_group_all_that_is_below_the_largest() -> None:
    assert balanced_cuts([10, 1, 1, 1, 1], 3) == (1, 2)
    assert even_cuts([10, 1, 1, 1, 1], 3) == (1, 3)


def test_equal_costs_are_cut_where_it_comes_first() -> None:
    assert even_cuts([1.0] * 4, 3) == (1, 2)
    assert even_cuts([0.0] * 3, 3) == (1, 2)
    assert even_cuts([5.0], 1) == ()
