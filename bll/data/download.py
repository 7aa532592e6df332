"""Downloads of known files over HTTP: resumed, bounded, checked by SHA-256, visible only when whole."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from bll.errors import DataError

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Limits:
    """How long a download is tried."""

    rounds: int = 3
    """Times that each mirror is asked."""
    backoff_s: float = 1.0
    """Pause before the second round; twice as long before each further one."""
    timeout_s: float = 30.0
    """Silence on the connection after which it is given up."""
    deadline_s: float = 1800.0
    """Time for one whole answer, so that a server that drips cannot hold us."""


LIMITS = Limits()


def fetch(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str,
    size_bytes: int,
    limits: Limits = LIMITS,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Make `target` the file of `size_bytes` bytes with digest `sha256`, from the first of `urls` that has it.

    What has arrived waits in `target` + ".part" and is gone on from, by the next call too. Processes that want
    the same file take turns. Raises DataError when no mirror could give the file or it cannot be written.
    """
    part_path = target.with_name(target.name + ".part")
    failures: list[str] = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part_path.open("a+b") as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if target.exists():  # made by the process that held the lock before
                part_path.unlink(missing_ok=True)
                return
            for round_number in range(limits.rounds):
                if round_number:
                    pause(limits.backoff_s * 2 ** (round_number - 1))
                for url in urls:
                    failure = _attempt(url, part, sha256, size_bytes, limits)
                    if failure is None:
                        _publish(part, part_path, target)
                        return
                    log.warning("download of %s: %s", url, failure)
                    failures.append(f"{url}: {failure}")
    except OSError as error:
        raise DataError(f"{target}: cannot be downloaded to: {error}") from error
    raise DataError(f"{target}: cannot be downloaded: {'; '.join(failures[-len(urls) :])}")


def _attempt(url: str, part: BufferedRandom, sha256: str, size_bytes: int, limits: Limits) -> str | None:
    """Ask one mirror for what is missing; None when the part file is whole and right, else what went wrong."""
    try:
        if part.seek(0, os.SEEK_END) != size_bytes:
            _receive(url, part, size_bytes, limits)
    except (_Refused, http.client.HTTPException, OSError) as error:
        return str(error) or type(error).__name__
    part.seek(0)
    found = hashlib.file_digest(part, "sha256").hexdigest()
    if found != sha256:
        part.truncate(0)  # wrong bytes are no start to go on from
        return f"SHA-256 must be {sha256}, got {found}"
    return None


class _Refused(Exception):
    """An answer that is not the file asked for."""


def _receive(url: str, part: BufferedRandom, size_bytes: int, limits: Limits) -> None:
    """Append to `part` until it has `size_bytes` bytes. Raises _Refused, or what the network raises."""
    start = part.tell()
    headers = {"Accept-Encoding": "identity", "User-Agent": "bll"}
    if start:
        headers["Range"] = f"bytes={start}-"
    give_up = time.monotonic() + limits.deadline_s
    try:
        answer = urlopen(Request(url, headers=headers), timeout=limits.timeout_s)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # our start is past the mirror's end: begin anew next time
            part.truncate(0)
        raise _Refused(f"HTTP status {error.code} {error.reason}") from error
    with answer:
        if answer.status == 206:
            wanted = rf"bytes {start}-\d+/({size_bytes}|\*)"
            if not re.fullmatch(wanted, got := answer.headers.get("Content-Range", "")):
                part.truncate(0)
                raise _Refused(f"Content-Range must start at {start} of {size_bytes}, got {got!r}")
        else:  # 200: the whole file, whether or not a part was asked for
            part.truncate(0)
            part.seek(0)
            start = 0
        while chunk := answer.read1(_CHUNK_BYTES):
            start += len(chunk)
            if start > size_bytes:
                part.truncate(0)
                raise _Refused(f"must be {size_bytes} bytes, but goes on")
            part.write(chunk)
            if time.monotonic() > give_up:
                raise _Refused(f"must answer within {limits.deadline_s:g} s, got {start} of {size_bytes} bytes")
    if start < size_bytes:
        raise _Refused(f"must be {size_bytes} bytes, but ended after {start}")


def _publish(part: BufferedRandom, part_path: Path, target: Path) -> None:
    part.flush()
    os.fsync(part.fileno())
    part_path.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
