"""A data set that is read once and mapped by every worker process."""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Iterator
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bll.data import Dataset, Split
from bll.data.mapped import MappedRows

_ALIGNMENT = 64


class SharedDataset:
    """The arrays of a data set, in memory that has no name and is gone with the last process that holds it.

    Passed to a process when that is started. Each maps its own view of the same pages: what one of them writes, none
    of the others sees.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._description = (dataset.name, dataset.class_names, dataset.digest)
        self._layout: list[tuple[int, np.dtype[Any], tuple[int, ...]] | MappedRows] = []
        self._file = os.memfd_create("bll-data")
        weakref.finalize(self, os.close, self._file)
        with open(self._file, "wb", closefd=False) as file:
            for array in _arrays(dataset):
                if isinstance(array, MappedRows):  # every process can map it as it is
                    self._layout.append(array)
                    continue
                file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)
                self._layout.append((file.tell(), array.dtype, array.shape))
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": reduction.DupFd(self._file)}

    def dataset(self) -> Dataset:
        """The data set, in the process that this was passed to. Once: the descriptor is given up."""
        descriptor = self._file.detach()  # type: ignore[attr-defined]
        try:
            memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
        arrays: list[Any] = [
            place if isinstance(place, MappedRows) else _view(memory, *place) for place in self._layout
        ]
        train, validation, test = (Split(*arrays[start : start + 2]) for start in (0, 2, 4))
        name, class_names, digest = self._description
        return Dataset(name, train, validation, test, class_names, digest)


def _view(memory: mmap.mmap, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if not all(shape):  # it may lie at the very end, where there is nothing to view
        return np.empty(shape, dtype)
    return np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape)


def _arrays(dataset: Dataset) -> Iterator[NDArray[Any] | MappedRows]:
    for rows in (dataset.train, dataset.validation, dataset.test):
        yield rows.inputs
        yield rows.targets
