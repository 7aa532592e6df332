"""Consecutive items in groups whose costs balance, exactly: layers in blocks, blocks on workers.

By dynamic programming over (groups so far, items in them). Torch is not imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate


def balanced_cuts(costs: Sequence[float], num_groups: int, exits: Sequence[float] = ()) -> tuple[int, ...]:
    """Cuts of consecutive items into `num_groups` non-empty groups with the smallest possible largest group.

    `exits` are what a group costs besides its items, by its last item. Among equals the cuts that come first.
    """
    before = [0.0, *accumulate(costs)]
    after = [0.0, *(exits or [0.0] * len(costs))]
    return _best_cuts(len(costs), num_groups, lambda start, end: before[end] - before[start] + after[end], max)


def even_cuts(costs: Sequence[float], num_groups: int) -> tuple[int, ...]:
    """The cuts that also have the least sum of squares, of those whose largest group is the smallest possible."""
    before = [0.0, *accumulate(costs)]
    cuts = balanced_cuts(costs, num_groups)
    largest = max(before[end] - before[start] for start, end in zip((0, *cuts), (*cuts, len(costs)), strict=True))

    def square(start: int, end: int) -> float:
        cost = before[end] - before[start]
        return cost * cost if cost <= largest else math.inf

    return _best_cuts(len(costs), num_groups, square, lambda total, cost: total + cost)


def _best_cuts(
    num_items: int,
    num_groups: int,
    cost: Callable[[int, int], float],
    joined: Callable[[float, float], float],
) -> tuple[int, ...]:
    """The cuts whose groups, of items `start` up to `end`, have the least `cost(start, end)`, joined from the left."""
    # best[n][end]: (cost, start of the last group) of the first `end` items in n groups.
    best = [{end: (cost(0, end), 0) for end in range(1, num_items + 1)}]
    for groups in range(2, num_groups + 1):
        previous = best[-1]
        best.append(
            {
                end: min((joined(previous[start][0], cost(start, end)), start) for start in range(groups - 1, end))
                for end in range(groups, num_items + 1)
            }
        )
    cuts: list[int] = []
    end = num_items
    for row in reversed(best[1:]):
        end = row[end][1]
        cuts.append(end)
    return tuple(reversed(cuts))
