"""Strict reader of idx files, plain or gzipped: the form in which MNIST and Fashion-MNIST are published.

Layout: two zero bytes, a type, the number of dimensions, each dimension as a big-endian 32-bit number, the values.
Only unsigned bytes are read: nothing else is published in this form.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bll.data.streams import CHUNK_BYTES, Readable, read_exactly
from bll.errors import DataError

UNSIGNED_BYTE = 0x08
MAX_BYTES = 1 << 30
"""Values that a file may hold, decoded: a gzip bomb stops here. MNIST has 47 million."""


def read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in the file, which must have `dimensions` dimensions.

    Raises DataError, naming file, rule and value, on anything that is not exactly one idx file.
    """
    with _opened(path) as stream:
        shape = _shape(stream, path, dimensions)
        values = read_exactly(stream, math.prod(shape), str(path))
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def read_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """The shape that the file's header gives, without reading the values. Raises DataError as `read` does."""
    with _opened(path) as stream:
        return _shape(stream, path, dimensions)


def content_digest(path: Path) -> str:
    """SHA-256 of the file's bytes, unpacked, in hex. Raises DataError as `read` does."""
    digest, size_bytes = hashlib.sha256(), 0
    with _opened(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
            if size_bytes > 2 * MAX_BYTES:
                raise DataError(f"{path}: must unpack to at most {2 * MAX_BYTES} bytes, but goes on")
    return digest.hexdigest()


def _shape(stream: Readable, path: Path, dimensions: int) -> tuple[int, ...]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(f"{path}: must start as an idx file does, with two zero bytes, got {magic.hex(' ')!r}")
    if magic[2] != UNSIGNED_BYTE:
        raise DataError(f"{path}: type of values must be 0x08 (unsigned byte), got 0x{magic[2]:02x}")
    if magic[3] != dimensions:
        raise DataError(f"{path}: must have {dimensions} dimensions, got {magic[3]}")
    header = stream.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise DataError(f"{path}: must have {4 + 4 * dimensions} bytes of header, got {4 + len(header)}")
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", header)
    if not 1 <= math.prod(shape) <= MAX_BYTES:
        raise DataError(f"{path}: must hold 1 to {MAX_BYTES} values, got dimensions {list(shape)}")
    return shape


@contextmanager
def _opened(path: Path) -> Iterator[Readable]:
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream
            else:
                yield file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
