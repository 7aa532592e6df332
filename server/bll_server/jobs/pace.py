"""How fast a run goes as a whole, as steadily as can be told."""

from __future__ import annotations

import time
from collections import deque

_EPOCHS = 2
_LEAST_S = 60.0
_MOST_POINTS = 1000
_FEWEST_POINTS = 3


class Pace:
    """Steps of the slowest block against the clock, over the last two epochs, or the last minute if that is longer.

    What blocks report of themselves leaves evaluations and checkpoints out, and swings from report to report.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self._epoch = steps_per_epoch
        self._points: deque[tuple[float, int]] = deque(maxlen=_MOST_POINTS)
        """Monotonic time and steps done, both rising."""

    def reached(self, step: int) -> None:
        """Every block has done `step` steps; fewer than before mean that the run has gone back."""
        points, now = self._points, time.monotonic()
        if points and step < points[-1][1]:
            points.clear()
        if points and step == points[-1][1]:
            return
        points.append((now, step))
        least, latest = step - _EPOCHS * self._epoch, now - _LEAST_S
        while len(points) > _FEWEST_POINTS and points[1][1] <= least and points[1][0] <= latest:
            points.popleft()

    def steps_per_s(self) -> float | None:
        """None until it can be told."""
        if len(self._points) < _FEWEST_POINTS:
            return None
        now, last = self._points[-1]
        # Over whole epochs, where there are any: each has its evaluations and checkpoints in it once.
        whole = (point for point in self._points if point[1] < last and (last - point[1]) % self._epoch == 0)
        began, first = next(whole, self._points[0])
        return (last - first) / (now - began) if now > began else None
