"""The states of a job and the legal ways between them: the one table that the store obeys."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands. `training.proto` has the same names and says what they mean."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: dict[State, frozenset[State]] = {
    # Back to QUEUED: the server was stopped or killed under the job, which goes on from its checkpoint.
    State.QUEUED: frozenset({State.STARTING, State.CANCELLED}),
    State.STARTING: frozenset({State.RUNNING, State.CANCELLING, State.FAILED, State.QUEUED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.CANCELLING, State.FAILED, State.QUEUED}),
    # SUCCEEDED: the model had been published when the request came.
    State.CANCELLING: frozenset({State.CANCELLED, State.SUCCEEDED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}

FINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
ACTIVE = frozenset({State.STARTING, State.RUNNING, State.CANCELLING})
"""States in which a runner process may exist."""
