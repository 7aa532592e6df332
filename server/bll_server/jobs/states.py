"""The states of a job, the legal ways between them, and what a caller may ask in each: the tables that all obey."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands. `training.proto` has the same names and says what they mean."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: dict[State, frozenset[State]] = {
    # Back to QUEUED: the server was stopped or killed under the job, or it gave way; it goes on from its checkpoint.
    State.QUEUED: frozenset({State.STARTING, State.PAUSED, State.CANCELLED}),
    State.STARTING: frozenset({State.RUNNING, State.PAUSING, State.CANCELLING, State.FAILED, State.QUEUED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.PAUSING, State.CANCELLING, State.FAILED, State.QUEUED}),
    # SUCCEEDED: the model had been published when the request came. The same holds of CANCELLING.
    State.PAUSING: frozenset({State.PAUSED, State.SUCCEEDED, State.CANCELLING, State.FAILED}),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.CANCELLING: frozenset({State.CANCELLED, State.SUCCEEDED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}

FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
"""States that nothing but a retry ends."""
ACTIVE = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.CANCELLING})
"""States in which a runner process may exist."""

DELETABLE = FINAL | {State.PAUSED}
"""States without a runner in which a job may be deleted; one that is queued or runs is to be cancelled first."""


class Request(StrEnum):
    """What a caller may ask of a job; the value says it in words."""

    CANCEL = "cancelled"
    PAUSE = "paused"
    RESUME = "resumed"
    RETRY = "retried"


REQUESTS: dict[Request, dict[State, State]] = {
    Request.CANCEL: {
        State.QUEUED: State.CANCELLED,
        State.PAUSED: State.CANCELLED,
        State.STARTING: State.CANCELLING,
        State.RUNNING: State.CANCELLING,
        State.PAUSING: State.CANCELLING,
        State.CANCELLING: State.CANCELLING,
        State.CANCELLED: State.CANCELLED,
    },
    Request.PAUSE: {
        State.QUEUED: State.PAUSED,
        State.STARTING: State.PAUSING,
        State.RUNNING: State.PAUSING,
        State.PAUSING: State.PAUSING,
        State.PAUSED: State.PAUSED,
    },
    Request.RESUME: {State.PAUSED: State.QUEUED},
    Request.RETRY: {State.FAILED: State.QUEUED, State.CANCELLED: State.QUEUED},
}
"""The state that each request leads to, from each state in which it is allowed; the same state: nothing to do."""
