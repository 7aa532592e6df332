"""The content of an uploaded file, by its format. What is wrong with it is a DataError that names member and rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bll.data import idx, images, npz
from bll.data.dataset import Content
from bll.errors import DataError
from bll_server.datasets.archives import unpack
from bll_server.datasets.records import Format

LABEL = "the upload"
"""Of the file in messages: its name on the server is no concern of the user's."""

_IDX_FILES = {
    "x_train": ("train-images-idx3-ubyte", 3),
    "y_train": ("train-labels-idx1-ubyte", 1),
    "x_test": ("t10k-images-idx3-ubyte", 3),
    "y_test": ("t10k-labels-idx1-ubyte", 1),
}
"""Array, file and number of dimensions, under the names that MNIST is published with."""


def read(kind: Format, upload: Path, scratch: Path, max_bytes: int) -> Content:
    """What `upload` holds; `scratch` is an empty folder for what has to be unpacked, to at most `max_bytes`.

    Raises DataError, MemoryError, and OSError where nothing more can be written.
    """
    if kind is Format.NPZ:
        return npz.read(upload, LABEL)
    try:
        folder = unpack(upload, scratch, max_bytes)
    except DataError as error:
        raise DataError(f"{LABEL}: {error}") from error
    readers: dict[Format, Callable[[Path], Content]] = {Format.NPY: _npy, Format.IDX: _idx, Format.IMAGES: _images}
    return readers[kind](folder)


def _npy(folder: Path) -> Content:
    paths = {path.name.removesuffix(".npy"): path for path in _files(folder)}
    npz.check_keys(list(paths), LABEL)
    arrays: dict[str, NDArray[Any]] = {}
    left_bytes = npz.MAX_BYTES
    for key, path in paths.items():
        what = f"{LABEL}: {path.name}"
        try:
            with path.open("rb") as stream:
                arrays[key] = npz.read_array(stream, key, what, left_bytes)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # of numpy's header parser, which lets through whatever the bytes provoke
            raise DataError(f"{what}: must be a readable .npy file: {type(error).__name__}: {error}") from error
        left_bytes -= arrays[key].nbytes
    return npz.from_arrays(arrays, LABEL)


def _idx(folder: Path) -> Content:
    found = {path.name: path for path in _files(folder)}
    arrays: dict[str, NDArray[Any]] = {}
    for key, (name, dimensions) in _IDX_FILES.items():
        ways = [found.pop(way) for way in (name, f"{name}.gz") if way in found]
        if len(ways) > 1:
            raise DataError(f"{LABEL}: {name}: must not come twice, plain and as .gz")
        if ways:
            try:
                arrays[key] = idx.read(ways[0], dimensions)
            except DataError as error:  # it names the whole path
                raise DataError(str(error).replace(str(ways[0]), f"{LABEL}: {ways[0].name}")) from error
    if found:
        names = ", ".join(name for name, _ in _IDX_FILES.values())
        raise DataError(f"{LABEL}: must hold {names}, each plain or as .gz, got {min(found)!r:.100}")
    npz.check_keys(list(arrays), LABEL)
    return npz.from_arrays(arrays, LABEL)


def _images(folder: Path) -> Content:
    return images.read(folder, LABEL)


def _files(folder: Path) -> list[Path]:
    """The plain files in `folder`, which must hold nothing else."""
    paths = sorted(folder.iterdir())
    for path in paths:
        if not path.is_file():
            raise DataError(f"{LABEL}: {path.name!r:.100}: must be a plain file")
    return paths


def class_counts(targets: NDArray[np.int64], num_classes: int) -> list[int]:
    """How often each class is a target."""
    counts: list[int] = np.bincount(targets.reshape(-1), minlength=num_classes).tolist()
    return counts
