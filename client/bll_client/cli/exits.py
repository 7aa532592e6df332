"""The exit codes of `bll`: the one table."""

from __future__ import annotations

from enum import IntEnum

from bll_client import (
    DeadlineExceeded,
    InvalidArgument,
    InvalidInput,
    InvalidSpec,
    NotFound,
    PlaintextToken,
    Unavailable,
)


class ExitCode(IntEnum):
    """What became of a command; `bll --help` prints these lines."""

    OK = 0, "done; the job or study that was watched has succeeded"
    JOB_FAILED = 1, "the job or study that was watched has failed or was cancelled"
    USAGE = 2, "the command line, the spec or the input is wrong, or an extra is not installed"
    NOT_FOUND = 3, "no job, study or model has that name"
    UNREACHABLE = 4, "the server cannot be reached, is draining or does not answer in time"
    REFUSED = 5, "the server refused for another reason, or a file could not be read or written"
    DETACHED = 130, "Ctrl-C; a job or study that was watched goes on"

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code


_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (InvalidSpec, ExitCode.USAGE),
    (InvalidInput, ExitCode.USAGE),
    (PlaintextToken, ExitCode.USAGE),
    (InvalidArgument, ExitCode.USAGE),
    (NotFound, ExitCode.NOT_FOUND),
    (Unavailable, ExitCode.UNREACHABLE),
    (DeadlineExceeded, ExitCode.UNREACHABLE),
)


def exit_code(error: Exception) -> ExitCode:
    """The code for a command that ended with `error`, a ClientError or an OSError."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.REFUSED)
