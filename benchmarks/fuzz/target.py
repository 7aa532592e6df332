"""The form of a target, and how one input is made of several parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Target(NamedTuple):
    """One decoder under test."""

    decode: Callable[[bytes], bool]
    """True for what is accepted, False for what is refused as promised; what is neither is an exception."""
    seeds: Callable[[], Iterable[bytes]]
    """Inputs to begin from: one at least is accepted."""


def parts(data: bytes) -> list[tuple[int, bytes]]:
    """`data` read as a sequence of a number, two bytes of length, and as much content as there is."""
    found = []
    while data:
        size = int.from_bytes(data[1:3], "big")
        found.append((data[0], data[3 : 3 + size]))
        data = data[3 + size :]
    return found


def joined(*pieces: tuple[int, bytes]) -> bytes:
    """What `parts` takes apart."""
    return b"".join(bytes([number]) + len(content).to_bytes(2, "big") + content for number, content in pieces)


def texts(data: bytes, count: int) -> Sequence[str] | None:
    """`count` texts out of `data`, separated by zero bytes; None where they are not UTF-8, which no message carries."""
    try:
        found = [text.decode() for text in data.split(b"\0", count - 1)]
    except UnicodeDecodeError:
        return None
    return [*found, *[""] * (count - len(found))]
