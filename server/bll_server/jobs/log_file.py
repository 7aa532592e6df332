"""The log of a job: what its training process and all that it started have written, read while it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bll.errors import Violation
from bll_server.errors import InvalidRequest

LOG = "log.txt"
"""In a job's folder."""

PIECE_BYTES = 64 * 1024


def follow(path: Path, offset: int, over: Callable[[], bool], wait: Callable[[], bool]) -> Iterator[bytes]:
    """What is in the file from byte `offset` on, in pieces of at most 64 KiB, until `over()` and all has been read.

    At the end of the file, `wait()` returns once it is time to look again; an empty piece follows where that is true.
    A file that is not there is empty. Raises InvalidRequest where it does not reach to `offset`.
    """
    size = path.stat().st_size if path.exists() else 0
    if not 0 <= offset <= size:
        raise InvalidRequest(Violation("offset", f"must be between 0 and {size}, the size of the log, got {offset}"))
    while True:
        last = over()  # asked first, so that nothing can be written in between and be missed
        piece = _read(path, offset)
        if piece:
            yield piece
            offset += len(piece)
        elif last:
            return
        elif wait():
            yield b""


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)
    except FileNotFoundError:
        return b""
