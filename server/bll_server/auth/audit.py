"""Who changed what: one JSON line for each change, in files that are only ever appended to.

Each line is on disk before the change is answered: changes are rare, and the few milliseconds of an fsync are less than
a change that nobody did. A line that cannot be written is an error in the log; the change, which has happened, stands.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

AUDIT = "audit.jsonl"
"""The newest file, in the data directory; older ones are audit.jsonl.1, audit.jsonl.2 and so on."""
_MAX_BYTES = 64 * 2**20
_KEEP = 10
_LONGEST = 200
"""Characters of a value: some come from requests that were refused."""


class Audit:
    """The audit log of one data directory. Many threads and processes may write at the same time."""

    def __init__(self, path: Path, max_bytes: int = _MAX_BYTES, keep: int = _KEEP) -> None:
        """A file that would grow beyond `max_bytes` is put aside; `keep` of those are kept, the oldest goes."""
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep

    def write(self, who: str, what: str, resource: str, outcome: str, **more: str) -> None:
        """Add one line. `outcome` is the name of a gRPC status; `more` may be role, token, request_id and peer."""
        entry = {"who": who, "what": what, "resource": resource, "outcome": outcome} | more
        shown = {key: value[:_LONGEST] for key, value in entry.items() if value}
        line = json.dumps({"time": datetime.now(UTC).isoformat()} | shown).encode() + b"\n"
        try:
            self._append(line)
        except OSError as error:
            log.error("the audit log cannot be written: %s; it lacks %s", error, line.decode().rstrip())

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # between threads too: each has opened it for itself
            if self._path.exists() and self._path.stat().st_size + len(line) > self._max_bytes:
                self._rotate()
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(line)
                file.flush()
                os.fsync(descriptor)

    def _rotate(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            if self._aside(number).exists():
                self._aside(number).replace(self._aside(number + 1))
        self._path.replace(self._aside(1))

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
