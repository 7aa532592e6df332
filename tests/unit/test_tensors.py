"""The codec of `bll.v1.Tensor`, against everything that a client can send."""

import contextlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bll_proto.tensors import DTYPES, InvalidTensor, from_bytes, to_array, to_tensor
from bll_proto.v1.tensor_pb2 import DataType, Tensor

FLOAT32 = DataType.DATA_TYPE_FLOAT32
ARRAYS = st.sampled_from([*DTYPES.values()]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)


@given(ARRAYS)
def test_array_comes_back_as_it_was_sent(array: np.ndarray[Any, Any]) -> None:
    back = to_array(Tensor.FromString(to_tensor(array).SerializeToString()))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=">f4").reshape(2, 3), np.arange(6, dtype="f4").reshape(3, 2).T, np.arange(9.0)[::3]],
    ids=["big endian", "transposed", "strided"],
)
def test_memory_layout_does_not_change_the_elements(array: np.ndarray[Any, Any]) -> None:
    np.testing.assert_array_equal(to_array(to_tensor(array)), array)


def test_decoded_array_is_read_only() -> None:
    assert not to_array(to_tensor(np.zeros(3, np.float32))).flags.writeable


@pytest.mark.parametrize("dtype", [np.float16, np.complex64, np.bool_, object, "U3"])
def test_dtype_without_a_name_on_the_wire_is_refused(dtype: type) -> None:
    with pytest.raises(InvalidTensor, match=r"^dtype: must be one of float32, .*, got"):
        to_tensor(np.zeros(2, dtype))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor(), "dtype: must be one of float32, .*, got DATA_TYPE_UNSPECIFIED"),
        (Tensor(dtype=99), "dtype: must be one of float32, .*, got 99"),  # type: ignore[arg-type]
        (Tensor(dtype=FLOAT32), r"data: must have 4 bytes \(float32 of shape \[\]\), got 0"),
        (Tensor(dtype=FLOAT32, shape=[2], data=bytes(7)), r"data: must have 8 bytes .*, got 7"),
        (Tensor(dtype=FLOAT32, shape=[2], data=bytes(16)), r"data: must have 8 bytes .*, got 16"),
        (
            Tensor(dtype=FLOAT32, shape=[-1, -2], data=bytes(8)),
            r"shape: must have no negative dimension, got \[-1, -2\]",
        ),
        (Tensor(dtype=FLOAT32, shape=[1] * 33, data=bytes(4)), "shape: must have at most 32 dimensions, got 33"),
        (
            Tensor(dtype=FLOAT32, shape=[1] * 100_000, data=bytes(4)),
            "shape: must have at most 32 .* got 100000",
        ),
        (Tensor(dtype=FLOAT32, shape=[2**62, 4], data=b""), r"shape: must describe fewer than 2\^60 elements"),
        (Tensor(dtype=FLOAT32, shape=[0, 2**62, 4], data=b""), r"shape: must describe fewer than 2\^60 elements"),
        (Tensor(dtype=FLOAT32, shape=[2**40], data=b""), "data: must have 4398046511104 bytes"),
    ],
)
def test_tensor_that_does_not_describe_its_bytes_is_refused(tensor: Tensor, message: str) -> None:
    with pytest.raises(InvalidTensor, match=f"^{message}"):
        to_array(tensor)


@given(
    st.builds(
        Tensor,
        dtype=st.integers(-1, 7),
        shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=40),
        data=st.binary(max_size=64),
    )
)
@example(Tensor(dtype=FLOAT32, shape=[2**31, 2**31, 0]))
def test_random_tensor_decodes_or_is_refused_without_allocating(tensor: Tensor) -> None:
    tracemalloc.start()
    with contextlib.suppress(InvalidTensor):
        assert to_array(tensor).nbytes == len(tensor.data)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


@given(st.data())
def test_mutated_bytes_of_a_tensor_decode_or_are_refused(data: st.DataObject) -> None:
    wire = bytearray(to_tensor(np.arange(6, dtype=np.float32).reshape(2, 3)).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = to_array(Tensor.FromString(bytes(wire[: data.draw(st.integers(0, len(wire)))])))
    except (DecodeError, InvalidTensor):
        return
    assert array.nbytes <= len(wire)


def test_bytes_are_viewed_not_copied() -> None:
    data = np.arange(4, dtype=np.float32).tobytes()
    array = from_bytes(data, DTYPES[FLOAT32], (2, 2))
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
