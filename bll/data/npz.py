"""A user's own data: a `.npz` file of plain arrays, read without trust.

Keys are `x_train` and `y_train`, with `x_test` and `y_test` if there are test rows; or just `x` and `y`.
    x  uint8 or floating point: [rows, H, W] and [rows, H, W, C] with C 1 or 3 are images, [rows, F] are vectors
    y  [rows]: whole numbers 0..K-1, or names (`str`), whose sorted order numbers the classes; or [rows, H, W]: a class
       for each pixel of an image; or [rows, T]: one for each position of a sequence, which x [rows, T, F] then is
uint8 images are scaled to [0, 1] later, like those of the named data sets; all else is taken as it is.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bll.data.dataset import MAX_CLASSES, MAX_NAME_LENGTH, Content, Split, class_name, content_digest
from bll.data.streams import read_exactly
from bll.errors import DataError

MAX_BYTES = 4 << 30
"""All arrays together, as their headers declare them: a zip bomb stops here."""

_KEYS = ({"x", "y"}, {"x_train", "y_train"}, {"x_train", "y_train", "x_test", "y_test"})


def read(path: Path, label: str) -> Content:
    """The file's arrays, checked and in the layout of `Split`.

    `label` is the file's name in messages. Raises DataError naming field, rule and value.
    """
    try:
        if not path.is_file():
            raise DataError(f"{label}: must be a file, but there is none")
        with zipfile.ZipFile(path) as archive:
            arrays = _arrays(archive, label)
    except DataError:
        raise
    except OSError as error:  # its text would tell a remote user where the file lies
        raise DataError(f"{label}: cannot be read: {error.strerror or type(error).__name__}") from error
    # zipfile and numpy's header parser let through whatever the bytes provoke: BadZipFile, zlib.error, struct.error,
    # NotImplementedError, RuntimeError for a password, TypeError, even MemoryError out of a nested header.
    except Exception as error:
        raise DataError(f"{label}: must be a readable .npz file: {type(error).__name__}: {error}") from error
    return from_arrays(arrays, label)


def from_arrays(arrays: dict[str, NDArray[Any]], label: str) -> Content:
    """The same from arrays by their keys, wherever they were read; takes them out of the dictionary.

    Raises DataError as `read` does.
    """
    check_keys(list(arrays), label)
    x_name, y_name = ("x", "y") if "x" in arrays else ("x_train", "y_train")
    has_test = "x_test" in arrays
    if has_test:
        _check_alike(arrays["x_test"], arrays[x_name], label)
    _check_positions(arrays[x_name], arrays[y_name], f"{label}: {y_name}")
    y_train, class_names = _classes(arrays.pop(y_name), f"{label}: {y_name}")
    # `pop` leaves each stored array without an owner, so that a converted copy does not live beside it.
    train = _split(_inputs(arrays.pop(x_name), y_train.ndim, f"{label}: {x_name}"), y_train, f"{label}: {y_name}")
    if has_test:
        if (found := arrays["y_test"].shape[1:]) != y_train.shape[1:]:
            wanted = list(y_train.shape[1:])
            raise DataError(f"{label}: y_test: must have rows of shape {wanted} as y_train has, got {list(found)}")
        y_test = _known(arrays.pop("y_test"), class_names, f"{label}: y_test")
        test = _split(_inputs(arrays.pop("x_test"), y_test.ndim, f"{label}: x_test"), y_test, f"{label}: y_test")
    else:
        test = Split(train.inputs[:0].copy(), train.targets[:0].copy())  # a view would keep all rows alive
    digest = content_digest({"train": train, "test": test}, class_names)
    return Content(train, test, class_names, digest)


@dataclass(frozen=True)
class _Header:
    """What an array says of itself, before any of its values is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _arrays(archive: zipfile.ZipFile, label: str) -> dict[str, NDArray[Any]]:
    members = archive.infolist()
    keys = [member.filename.removesuffix(".npy") for member in members]
    check_keys(keys, label)
    arrays: dict[str, NDArray[Any]] = {}
    left_bytes = MAX_BYTES
    for key, member in zip(keys, members, strict=True):
        with archive.open(member) as stream:
            arrays[key] = read_array(stream, key, f"{label}: {key}", left_bytes)
        left_bytes -= arrays[key].nbytes
    return arrays


def check_keys(keys: list[str], label: str) -> None:
    """Raise DataError if these are not the arrays of a data set."""
    if set(keys) not in _KEYS or len(set(keys)) != len(keys):
        shown = ", ".join(repr(key[:40]) for key in keys[:10]) or "nothing"
        raise DataError(
            f"{label}: must hold x and y, or x_train and y_train and perhaps x_test and y_test, got {shown}"
        )


def read_array(stream: IO[bytes], key: str, what: str, left_bytes: int) -> NDArray[Any]:
    """The array of one `.npy` stream, if its header is one that `key` may have and asks for at most `left_bytes`.

    Raises DataError, and whatever numpy's header parser lets through.
    """
    # Version 1 is what numpy writes for every array that is allowed here; its header is below 64 KiB.
    if (version := npy.read_magic(stream)) != (1, 0):
        raise DataError(f"{what}: must be in version 1.0 of the .npy format, got {version[0]}.{version[1]}")
    shape, fortran, dtype = npy.read_array_header_1_0(stream)
    header = _Header(tuple(int(size) for size in shape), dtype, fortran)
    _check_header(header, key, what)
    if header.size_bytes > left_bytes:
        total_bytes = MAX_BYTES - left_bytes + header.size_bytes
        raise DataError(f"{what}: all arrays together must be at most {MAX_BYTES} bytes, got {total_bytes}")
    values = np.frombuffer(read_exactly(stream, header.size_bytes, what), dtype=dtype)
    return values.reshape(header.shape[::-1]).T if fortran else values.reshape(header.shape)


def _check_header(header: _Header, key: str, what: str) -> None:
    shape, dtype = list(header.shape), header.dtype
    if key.startswith("y"):
        if dtype.hasobject:
            raise DataError(f"{what}: must not hold Python objects (store names as numpy str, dtype 'U'), got {dtype}")
        if dtype.kind not in "iuU" or dtype.itemsize == 0:
            raise DataError(f"{what}: must hold whole numbers or str, got {dtype}")
        if len(shape) not in (1, 2, 3) or min(shape) < 1:
            raise DataError(f"{what}: must have shape [rows], [rows, T] or [rows, H, W], no size 0, got {shape}")
        return
    if dtype != np.uint8 and dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
        raise DataError(f"{what}: must be uint8, float16, float32 or float64, got {dtype}")
    if len(shape) not in (2, 3, 4) or min(shape) < 1 or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise DataError(
            f"{what}: must have shape [rows, F], [rows, H, W] or [rows, H, W, C] with C 1 or 3, no size 0, got {shape}"
        )


def _check_positions(x: NDArray[Any], y: NDArray[Any], what: str) -> None:
    """Labels of positions or pixels need an input that has them."""
    positions, shape = y.shape[1:], list(x.shape)
    if len(positions) == 1 and (x.ndim != 3 or x.shape[1:2] != positions):
        raise DataError(f"{what}: shape {list(y.shape)} goes with x of shape [rows, {positions[0]}, F], got {shape}")
    if len(positions) == 2 and (x.ndim < 3 or x.shape[1:3] != positions):
        raise DataError(
            f"{what}: shape {list(y.shape)} goes with images of {positions[0]}x{positions[1]} pixels, got x of {shape}"
        )


def _check_alike(x_test: NDArray[Any], x_train: NDArray[Any], label: str) -> None:
    wanted, found = (list(x.shape[1:]) for x in (x_train, x_test))
    if found != wanted:
        raise DataError(f"{label}: x_test: must have rows of shape {wanted} as x_train has, got {found}")
    if (x_test.dtype == np.uint8) != (x_train.dtype == np.uint8):
        raise DataError(f"{label}: x_test: must be of x_train's kind, {x_train.dtype}, got {x_test.dtype}")


def _inputs(values: NDArray[Any], target_dims: int, what: str) -> NDArray[np.uint8] | NDArray[np.float32]:
    """`values` channels first; float32 unless they are images in bytes. Labels of two dimensions are of sequences."""
    if values.ndim == 3 and target_dims != 2:
        values = values[:, None]
    elif values.ndim == 4:
        values = values.transpose(0, 3, 1, 2)
    if values.dtype == np.uint8 and values.ndim == 4:
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit float32 is found below
        inputs = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(inputs)
    if not finite.all():
        row = int(np.argmin(finite.reshape(len(inputs), -1).all(axis=1)))
        value = values[row][~finite[row]][0]
        count = finite.size - np.count_nonzero(finite)
        raise DataError(f"{what}: must hold finite float32 values, got {value} in row {row}, {count} such in all")
    return inputs


def _classes(labels: NDArray[Any], what: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class of each label, and the names of the classes."""
    if labels.dtype.kind == "U":
        names, codes = np.unique(labels, return_inverse=True)
        class_names = tuple(class_name(name, what) for name in _strings(names, what))
        targets = codes.reshape(labels.shape).astype(np.int64)
    else:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= MAX_CLASSES:
            raise DataError(f"{what}: must hold labels 0 to {MAX_CLASSES - 1}, got {low if low < 0 else high}")
        targets = labels.astype(np.int64)
        missing = np.flatnonzero(np.bincount(targets.reshape(-1)) == 0)
        if len(missing):
            raise DataError(f"{what}: must hold every label from 0 to {high}, but no row has {missing[0]}")
        class_names = tuple(str(label) for label in range(high + 1))
    if not 2 <= len(class_names) <= MAX_CLASSES:
        raise DataError(f"{what}: must name 2 to {MAX_CLASSES} classes, got {len(class_names)}")
    return targets, class_names


def _known(labels: NDArray[Any], class_names: tuple[str, ...], what: str) -> NDArray[np.int64]:
    """Class of each label of the test rows, among the classes of the training rows."""
    index = {name: code for code, name in enumerate(class_names)}
    found, codes = np.unique(labels, return_inverse=True)
    names = _strings(found, what) if labels.dtype.kind == "U" else [str(label) for label in found.tolist()]
    for name in names:
        if name not in index:
            raise DataError(f"{what}: must hold labels that training rows have, got {name[:MAX_NAME_LENGTH]!r}")
    return np.array([index[name] for name in names], dtype=np.int64)[codes].reshape(labels.shape)


def _strings(names: NDArray[Any], what: str) -> list[str]:
    try:
        return [str(name) for name in names.tolist()]
    except (ValueError, SystemError) as error:  # code points beyond Unicode
        raise DataError(f"{what}: must hold Unicode text: {error}") from error


def _split(inputs: NDArray[np.uint8] | NDArray[np.float32], targets: NDArray[np.int64], what: str) -> Split:
    if len(inputs) != len(targets):
        raise DataError(f"{what}: must have one label for each of the {len(inputs)} rows, got {len(targets)}")
    return Split(inputs, targets)
