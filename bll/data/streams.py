"""Reading a known number of bytes from a stream that may lie about what it holds."""

from typing import Protocol

from bll.errors import DataError

CHUNK_BYTES = 1 << 20


class Readable(Protocol):
    """What plain, gzip and zip streams have in common."""

    def read(self, size: int, /) -> bytes: ...


def read_exactly(stream: Readable, size_bytes: int, what: str) -> bytearray:
    """The `size_bytes` that are all the stream still holds.

    Grows with what arrives and not with what was promised, so a short stream costs little memory however much
    its header claims. Raises DataError, in the name of `what`, when the stream ends early or goes on.
    """
    data = bytearray()
    while len(data) < size_bytes:
        chunk = stream.read(min(CHUNK_BYTES, size_bytes - len(data)))
        if not chunk:
            raise DataError(f"{what}: must hold {size_bytes} bytes of values as its header says, got {len(data)}")
        data += chunk
    # Also the read that makes gzip and zip compare their checksums.
    if stream.read(1):
        raise DataError(f"{what}: must end after the {size_bytes} bytes of values of its header, but goes on")
    return data
