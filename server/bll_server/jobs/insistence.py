"""Asks a job database that may be away for a while, until it is there again or the server ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from bll_server.errors import DatabaseUnavailable

P = ParamSpec("P")
T = TypeVar("T")

RETRY_S = 2.0
"""Time between two looks at a disk that was full or failed, or a database that was away."""


class Insistence:
    """What threads that serve jobs ask with: nobody waits for their answers."""

    def __init__(self, ends_within: Callable[[float], bool]) -> None:
        """`ends_within` tells whether the server shuts down, now or within so many seconds, for which it waits."""
        self.ends_within = ends_within

    def __call__(self, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `ask` returns, once the job database is there. Raises DatabaseUnavailable when this server ends."""
        while True:
            try:
                return ask(*args, **kwargs)
            except DatabaseUnavailable:
                if self.ends_within(RETRY_S):
                    raise
