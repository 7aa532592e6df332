"""Who makes the call that this thread answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from bll_server.auth.roles import Role


@dataclass(frozen=True)
class Caller:
    """The holder of a token, or whoever calls a server that asks for none."""

    owner: str
    role: Role
    token_id: str = ""

    def __str__(self) -> str:
        return self.owner or "anybody"

    @property
    def sees_only(self) -> str | None:
        """The owner whose jobs alone the caller may see, and whose things alone it may change; None: those of all."""
        return self.owner if self.role is Role.TRAINER else None


ANYBODY = Caller("", Role.ADMIN)
"""The caller where nobody is asked for a token."""

_current: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


def caller() -> Caller:
    """Of the call that this thread answers."""
    return _current.get()


@contextmanager
def acting_for(who: Caller) -> Iterator[None]:
    """`caller()` is `who` inside, on this thread."""
    token = _current.set(who)
    try:
        yield
    finally:
        _current.reset(token)
