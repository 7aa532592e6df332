"""Rows that stay on the disk until they are asked for, so that a data set may be larger than memory. numpy only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray


class MappedRows:
    """The rows of a `.npy` file, or some of them in an order of their own.

    Has what training asks of an array: shape, dtype, length, and `rows[where]` for a slice or an array of indices,
    which reads and copies those rows alone. numpy's functions take it for the array that it stands for, and read it
    whole. Sent to another process, it maps the file there.
    """

    def __init__(self, path: Path, order: NDArray[np.int64] | None = None) -> None:
        """`order` are the file's rows that these rows are; None means all as they come. Raises OSError."""
        self._path = path
        self._order = order
        self._file: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._file.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._file.dtype

    @property
    def ndim(self) -> int:
        return self._file.ndim

    @property
    def size(self) -> int:
        """Of all values."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self._file) if self._order is None else len(self._order)

    def __getitem__(self, where: slice | NDArray[np.int64]) -> NDArray[Any]:
        found = self._file[where if self._order is None else self._order[where]]
        return np.array(found)  # a plain array that owns its rows: a slice would still be a view of the file

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def take(self, indices: NDArray[np.int64]) -> MappedRows:
        """The rows at `indices`, still on the disk."""
        return MappedRows(self._path, indices if self._order is None else self._order[indices])

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedRows, (self._path, self._order)


def mapped(path: Path) -> NDArray[Any]:
    """The rows of the file, under the type of the array that they stand for: whoever reads rows need not know."""
    return cast(NDArray[Any], MappedRows(path))


def taken(rows: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
    """The rows at `indices`, copied; of mapped ones, still on the disk."""
    source: Any = rows
    return cast(NDArray[Any], source.take(indices) if isinstance(source, MappedRows) else rows[indices])
