"""The idx reader takes what is exactly one idx file and nothing else."""

import gzip
import math
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bll.data import idx
from bll.errors import DataError

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
reuse_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def encoded(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def ramp(shape: tuple[int, ...]) -> np.ndarray:
    return (np.arange(math.prod(shape)) % 251).astype(np.uint8).reshape(shape)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def refusal(path: Path, dimensions: int) -> str | None:
    """The DataError's text, or None when the file is read to an array of so many dimensions."""
    try:
        assert idx.read(path, dimensions).ndim == dimensions
    except DataError as error:
        return str(error)
    return None


@given(shape=SHAPES, name=st.sampled_from(["file", "file.gz"]))
@reuse_tmp_path
def test_what_was_written_is_read(tmp_path: Path, shape: tuple[int, ...], name: str) -> None:
    path = write(tmp_path / name, encoded(ramp(shape)))
    values = idx.read(path, len(shape))
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, ramp(shape))
    assert idx.read_shape(path, len(shape)) == shape


@given(content=st.binary(max_size=64), name=st.sampled_from(["file", "file.gz"]))
@reuse_tmp_path
def test_random_bytes_raise_nothing_but_data_errors(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused = refusal(tmp_path / name, 2)
    assert refused is None or str(tmp_path / name) in refused


@given(position=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 200), packed=st.booleans())
@reuse_tmp_path
def test_a_mutated_archive_is_refused_or_still_decodes_to_its_own_header(
    tmp_path: Path, position: int, value: int, cut: int, packed: bool
) -> None:
    content = bytearray(encoded(ramp((4, 5, 5))))
    if packed:
        content = bytearray(gzip.compress(bytes(content), mtime=0))
    content[position % len(content)] = value
    del content[len(content) - cut % 3 :]
    path = tmp_path / ("file.gz" if packed else "file")
    path.write_bytes(content)
    refused = refusal(path, 3)
    assert refused is None or str(path) in refused


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "two zero bytes, got ''"),
        (b"\x1f\x8b\x08\x00", "two zero bytes, got '1f 8b 08 00'"),
        (b"\0\0\x0d\x01" + bytes(8), r"\(unsigned byte\), got 0x0d"),
        (b"\0\0\x08\x03" + bytes(16), "must have 1 dimensions, got 3"),
        (b"\0\0\x08\x01\0\0", "8 bytes of header, got 6"),
        (b"\0\0\x08\x01\0\0\0\0", r"1 to 1073741824 values, got dimensions \[0\]"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", r"1 to 1073741824 values, got dimensions \[4294967295\]"),
        (b"\0\0\x08\x01\0\0\0\x05abcd", "must hold 5 bytes of values as its header says, got 4"),
        (b"\0\0\x08\x01\0\0\0\x05abcdef", "must end after the 5 bytes"),
    ],
)
def test_each_rule_is_named_with_the_value(tmp_path: Path, content: bytes, rule: str) -> None:
    for name in ("file", "file.gz"):
        with pytest.raises(DataError, match=rule):
            idx.read(write(tmp_path / name, content), 1)


@pytest.mark.parametrize("name", ["file", "file.gz"])
def test_a_header_that_promises_much_costs_little_memory(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"\0\0\x08\x01" + struct.pack(">I", 1 << 30) + bytes(100))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="must hold 1073741824 bytes"):
            idx.read(path, 1)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_stops_at_the_length_of_its_header(tmp_path: Path) -> None:
    path = write(tmp_path / "file.gz", encoded(ramp((10,))) + bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="goes on"):
            idx.read(path, 1)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_wrong_gzip_checksum_is_found(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(encoded(ramp((10,)))))
    packed[-8] ^= 1
    (tmp_path / "file.gz").write_bytes(packed)
    with pytest.raises(DataError, match="CRC"):
        idx.read(tmp_path / "file.gz", 1)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        idx.read(tmp_path / "absent", 1)
