"""Between numpy arrays and `bll.v1.Tensor`, refusing every message that does not describe its own bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bll_proto.v1.tensor_pb2 import DataType, Tensor

DTYPES: dict[DataType.ValueType, np.dtype[Any]] = {
    DataType.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    DataType.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    DataType.DATA_TYPE_INT32: np.dtype("<i4"),
    DataType.DATA_TYPE_INT64: np.dtype("<i8"),
    DataType.DATA_TYPE_UINT8: np.dtype("u1"),
}
_TYPES = {dtype: value for value, dtype in DTYPES.items()}
_NAMES = ", ".join(dtype.name for dtype in _TYPES)

MAX_RANK = 32
"""numpy allows 64; no network here has more than 5."""
MAX_ELEMENTS = 2**60
"""numpy counts bytes with 63 bits, and elements have up to 8."""


class InvalidTensor(ValueError):
    """A tensor's `field` (`dtype`, `shape` or `data`) breaks its rule; `description` has the rule and the value."""

    def __init__(self, field: str, description: str) -> None:
        self.field = field
        self.description = description
        super().__init__(f"{field}: {description}")


def to_array(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """The array that `tensor` describes, read-only; nothing is allocated beyond the bytes received.

    Raises InvalidTensor.
    """
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        name = DataType.Name(tensor.dtype) if tensor.dtype in DataType.values() else str(int(tensor.dtype))
        raise InvalidTensor("dtype", f"must be one of {_NAMES}, got {name}")
    return from_bytes(tensor.data, dtype, tensor.shape)


def from_bytes(data: bytes, dtype: np.dtype[Any], shape: Sequence[int]) -> np.ndarray[Any, np.dtype[Any]]:
    """`data` as a read-only array of `dtype` and `shape`, not copied.

    Raises InvalidTensor if the three do not go together.
    """
    num_bytes = num_elements(shape) * dtype.itemsize
    if len(data) != num_bytes:
        rule = f"must have {num_bytes} bytes ({dtype.name} of shape {list(shape)}), got {len(data)}"
        raise InvalidTensor("data", rule)
    return np.frombuffer(data, dtype).reshape(tuple(shape))


def num_elements(shape: Sequence[int]) -> int:
    """Product of `shape`. Raises InvalidTensor if it is no shape, or one that numpy cannot hold."""
    if len(shape) > MAX_RANK:
        raise InvalidTensor("shape", f"must have at most {MAX_RANK} dimensions, got {len(shape)}")
    sizes = tuple(shape)  # not before its length is known to be small
    if sizes and min(sizes) < 0:
        raise InvalidTensor("shape", f"must have no negative dimension, got {list(sizes)}")
    elements = math.prod(sizes)
    # numpy multiplies the sizes with 64 bits, and leaves out the zeros when it checks for overflow.
    if (elements or math.prod(filter(None, sizes))) >= MAX_ELEMENTS:
        raise InvalidTensor("shape", f"must describe fewer than 2^60 elements, got {list(sizes)}")
    return elements


def to_tensor(array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """The message that describes `array`. Raises InvalidTensor if its dtype has no name on the wire."""
    tensor = Tensor()
    fill(tensor, array)
    return tensor


def fill(tensor: Tensor, array: np.ndarray[Any, np.dtype[Any]]) -> None:
    """Make an empty `tensor` describe `array`; inside a larger message this saves the copy that `to_tensor` costs.

    Raises InvalidTensor if the dtype has no name on the wire.
    """
    dtype = _TYPES.get(array.dtype)
    if dtype is None:  # unknown, or big endian
        dtype = wire_type(array.dtype)
        array = array.astype(DTYPES[dtype])
    tensor.dtype = dtype
    tensor.shape.extend(array.shape)
    tensor.data = array.tobytes()


def wire_type(dtype: np.dtype[Any]) -> DataType.ValueType:
    """The name of `dtype` on the wire, whatever its byte order. Raises InvalidTensor if it has none."""
    value = _TYPES.get(dtype.newbyteorder("<"))
    if value is None:
        raise InvalidTensor("dtype", f"must be one of {_NAMES}, got {dtype}")
    return value
