"""Uploaded files, of every format: as raw bytes, and as sound archives of members with any bytes in them."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.fuzz.target import Target, joined, parts
from bll.data import idx
from bll.errors import DataError
from bll_server.datasets.formats import read
from bll_server.datasets.records import Format

_ROOM_BYTES = 16 << 20
_ARRAYS = ("x.npy", "y.npy", "x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy", "z.npy")
_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
)
_IMAGES = ("cat/a.png", "dog/a.png", "cat/b.jpg", "train/cat/a", "train/dog/a", "test/cat/a", "test/dog/b", "a")


def read_upload(kind: Format, content: bytes) -> bool:
    """As the server checks an upload."""
    with tempfile.TemporaryDirectory(prefix="bll-fuzz-") as folder:
        upload, scratch = Path(folder, "upload"), Path(folder, "scratch")
        upload.write_bytes(content)
        scratch.mkdir()
        try:
            found = read(kind, upload, scratch, _ROOM_BYTES)
        except DataError as error:
            str(error).encode()  # it travels to the client
            return False
        assert len(found.train.inputs) == len(found.train.targets)
        assert {path.name for path in Path(folder).iterdir()} == {"upload", "scratch"}
        return True


def _read_members(kind: Format, names: Sequence[str], data: bytes) -> bool:
    members = [(names[number % len(names)], content) for number, content in parts(data)]
    return read_upload(kind, _zip(members) if kind is Format.NPZ else _tar(members))


def _read_idx(data: bytes) -> bool:
    with tempfile.TemporaryDirectory(prefix="bll-fuzz-") as folder:
        path = Path(folder, "array.gz" if data[:1] == b"z" else "array")
        path.write_bytes(data[2:])
        try:
            return idx.read(path, 3 if data[1:2] == b"3" else 1).size > 0
        except DataError:
            return False


def _zip(members: Sequence[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i, (name, content) in enumerate(members):
            info = zipfile.ZipInfo(name if name not in archive.namelist() else f"{name}{i}")
            archive.writestr(info, content)
    return stream.getvalue()


def _tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _idx_file(array: NDArray[Any]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def _picture(value: int, form: str, mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (3, 2), value).save(stream, form)
    return stream.getvalue()


_X, _Y = np.arange(24, dtype=np.float32).reshape(6, 4), np.arange(6) % 2


def _array_seeds() -> list[bytes]:
    names = np.array(["cat", "dog"])[_Y]
    images = np.arange(6 * 2 * 3, dtype=np.uint8).reshape(6, 2, 3)
    return [
        joined((0, _npy(_X)), (1, _npy(_Y))),
        joined((2, _npy(_X)), (3, _npy(names)), (4, _npy(_X[:2])), (5, _npy(names[:2]))),
        joined((0, _npy(images)), (1, _npy(np.ones((6, 2, 3), np.int64) * _Y[:, None, None]))),
        joined((0, _npy(np.asfortranarray(_X.astype(">f2")))), (1, _npy(_Y.astype("u1")))),
    ]


def _idx_seeds() -> list[bytes]:
    images, labels = _idx_file(np.arange(16).reshape(4, 2, 2)), _idx_file(np.array([0, 1, 2, 1]))
    return [
        joined((0, images), (1, labels)),
        joined((4, gzip.compress(images, mtime=0)), (5, gzip.compress(labels, mtime=0)), (2, images), (3, labels)),
    ]


def _image_seeds() -> list[bytes]:
    grey, other, colour = _picture(1, "PNG"), _picture(2, "PNG"), _picture(3, "JPEG", "RGB")
    return [
        joined((0, grey), (1, other)),
        joined((3, grey), (4, other), (5, grey), (6, other)),
        joined((2, colour), (1, colour)),
    ]


def _archives(kind: Format, names: Sequence[str], seeds: Callable[[], list[bytes]]) -> list[bytes]:
    pack = _zip if kind is Format.NPZ else _tar
    return [pack([(names[number], content) for number, content in parts(seed)]) for seed in seeds()]


_FORMATS: dict[Format, tuple[Sequence[str], Callable[[], list[bytes]]]] = {
    Format.NPZ: (_ARRAYS, _array_seeds),
    Format.NPY: (_ARRAYS, _array_seeds),
    Format.IDX: (_IDX, _idx_seeds),
    Format.IMAGES: (_IMAGES, _image_seeds),
}

TARGETS: dict[str, Target] = {
    **{
        f"{kind}-members": Target(partial(_read_members, kind, names), seeds)
        for kind, (names, seeds) in _FORMATS.items()
    },
    "npz-archive": Target(partial(read_upload, Format.NPZ), partial(_archives, Format.NPZ, *_FORMATS[Format.NPZ])),
    "tar-archive": Target(
        partial(read_upload, Format.IMAGES), partial(_archives, Format.IMAGES, *_FORMATS[Format.IMAGES])
    ),
    "idx": Target(
        _read_idx,
        lambda: [b"p" + form + content for seed in _idx_seeds() for _, content in parts(seed) for form in (b"1", b"3")],
    ),
}
