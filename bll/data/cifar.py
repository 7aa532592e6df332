"""CIFAR-10 in its binary version, as its authors published it: one archive, or the `.bin` files out of it.

Each record is one byte of label and 3 x 32 x 32 bytes of image, channels first. The archive must be the published one,
by SHA-256, and is read in place: nothing is unpacked to disk, nothing in it is run. `.bin` files are the user's own
affair: any that fit are taken, and the data set's digest tells them apart.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from bll.data.dataset import Content, Split, Summary
from bll.data.published import Download, Source
from bll.data.streams import Readable, read_exactly
from bll.errors import DataError

log = logging.getLogger(__name__)

IMAGE_SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
FOLDER = "cifar-10-batches-bin"
"""Where the archive keeps its files."""

_OTHER_MEMBERS = ("batches.meta.txt", "readme.html")  # class names, which `CIFAR_10` knows, and a web page
_OVERHEAD_BYTES = 1 << 20
"""What an unpacked archive may hold besides the records: headers, padding and the other members."""


@dataclass(frozen=True)
class File:
    """One `.bin` file, known by its content."""

    name: str
    rows: int
    md5: str

    @property
    def size_bytes(self) -> int:
        return self.rows * RECORD_BYTES


@dataclass(frozen=True)
class BinarySet:
    """A data set in CIFAR-10's binary form."""

    name: str
    class_names: tuple[str, ...]
    archive: Download
    files: tuple[File, ...]
    """For training, in their order; the last is for testing."""
    mirrors: tuple[str, ...]

    def read(self, root: Path | None) -> Content:
        """The set's rows, downloaded if they are nowhere. Raises DataError."""
        paths = self._source.obtain(root)
        digest = self._digest(paths)
        train, test = self._empty(self._train_rows), self._empty(self.files[-1].rows)
        starts = {file.name: sum(before.rows for before in self.files[:i]) for i, file in enumerate(self.files)}
        for file, content, what in self._contents(paths):
            records = np.frombuffer(content, dtype=np.uint8).reshape(file.rows, RECORD_BYTES)
            if (highest := int(records[:, 0].max())) >= len(self.class_names):
                raise DataError(f"{what}: labels must be below {len(self.class_names)}, got {highest}")
            rows, start = (test, 0) if file is self.files[-1] else (train, starts[file.name])
            rows.targets[start : start + file.rows] = records[:, 0]
            rows.inputs[start : start + file.rows] = records[:, 1:].reshape(file.rows, *IMAGE_SHAPE)
        return Content(train, test, self.class_names, digest)

    def summary(self, root: Path | None) -> Summary:
        """What `read` would find: files that are there are checked; of files still to come, what is known of them."""
        if paths := self._source.locate(root):
            digest = self._digest(paths)
        else:
            self._source.check_download(root)
            digest = self.archive.sha256
        return Summary(IMAGE_SHAPE, self._train_rows, self.files[-1].rows, self.class_names, digest)

    @property
    def _source(self) -> Source:
        names = tuple(file.name for file in self.files)
        return Source(
            name=self.name,
            ways=((self.archive.name,), names, tuple(f"{FOLDER}/{name}" for name in names)),
            downloads=(self.archive,),
            mirrors=self.mirrors,
        )

    @property
    def _train_rows(self) -> int:
        return sum(file.rows for file in self.files[:-1])

    def _empty(self, rows: int) -> Split:
        return Split(np.empty((rows, *IMAGE_SHAPE), np.uint8), np.empty(rows, np.int64))

    def _digest(self, paths: list[Path]) -> str:
        """The archive's SHA-256, for the files out of it too; a user's own files get one of their own."""
        try:
            if len(paths) == 1:
                return self._archive_digest(paths[0])
            for file, path in zip(self.files, paths, strict=True):
                if (size_bytes := path.stat().st_size) != file.size_bytes:
                    raise DataError(
                        f"{path}: must hold {file.rows} records of {RECORD_BYTES} bytes, {file.size_bytes} bytes, "
                        f"got {size_bytes}"
                    )
            if [_file_digest(path, "md5") for path in paths] == [file.md5 for file in self.files]:
                return self.archive.sha256
            log.warning("%s: not the published %s; its digest tells them apart", paths[0].parent, self.name)
            return hashlib.sha256("\n".join(_file_digest(path, "sha256") for path in paths).encode()).hexdigest()
        except OSError as error:
            raise DataError(f"{error.filename or paths[0]}: cannot be read: {error}") from error

    def _archive_digest(self, path: Path) -> str:
        found = _file_digest(path, "sha256")
        if found != self.archive.sha256:
            raise DataError(
                f"{path}: SHA-256 must be {self.archive.sha256}, got {found} (any files of the right form are taken "
                "when they are unpacked)"
            )
        return found

    def _contents(self, paths: list[Path]) -> Iterator[tuple[File, bytearray, str]]:
        """Each file with its content, of the right size, and its name for messages."""
        try:
            if len(paths) == 1:
                with paths[0].open("rb") as packed:
                    yield from self._members(packed, str(paths[0]))
                return
            for file, path in zip(self.files, paths, strict=True):
                with path.open("rb") as stream:
                    content = read_exactly(stream, file.size_bytes, str(path))
                yield file, content, str(path)
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"{paths[0].parent}: cannot be read: {error}") from error
        # tarfile and gzip let through whatever the bytes provoke: TarError, EOFError, zlib.error, ValueError.
        except Exception as error:
            raise DataError(f"{paths[0]}: must be a readable archive: {type(error).__name__}: {error}") from error

    def _members(self, packed: BinaryIO, label: str) -> Iterator[tuple[File, bytearray, str]]:
        wanted = {f"{FOLDER}/{file.name}": file for file in self.files}
        sizes = {FOLDER: 0, **{name: file.size_bytes for name, file in wanted.items()}}
        sizes |= {f"{FOLDER}/{name}": _OVERHEAD_BYTES for name in _OTHER_MEMBERS}
        unpacked = _Bounded(gzip.GzipFile(fileobj=packed), sum(sizes.values()), label)
        seen: set[str] = set()
        # In this mode tarfile asks its stream for `read` alone.
        with tarfile.open(fileobj=cast(BinaryIO, unpacked), mode="r|") as archive:
            for member in archive:
                what = f"{label}: {member.name[:100]!r}"
                if member.name not in sizes or member.name in seen:
                    raise DataError(f"{what}: must be one of {', '.join(sizes)}, once")
                if not (member.isdir() if member.name == FOLDER else member.isreg()) or member.issparse():
                    raise DataError(f"{what}: must be a plain {'folder' if member.name == FOLDER else 'file'}")
                seen.add(member.name)
                if (file := wanted.get(member.name)) is None:
                    continue
                if member.size != file.size_bytes:
                    raise DataError(f"{what}: must have {file.size_bytes} bytes, got {member.size}")
                stream = archive.extractfile(member)
                assert stream is not None  # of a plain file there is always one
                yield file, read_exactly(stream, file.size_bytes, what), what
        if missing := wanted.keys() - seen:
            raise DataError(f"{label}: must hold {', '.join(sorted(missing))}")


class _Bounded:
    """A stream that ends in a DataError after so many bytes: a bomb stops here, whatever its headers claim."""

    def __init__(self, stream: Readable, size_bytes: int, label: str) -> None:
        self._stream = stream
        self._left = size_bytes
        self._rule = f"{label}: must unpack to at most {size_bytes} bytes, but goes on"

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise DataError(self._rule)
        return data


def _file_digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        # MD5 is no proof against forgery, but what it tells apart here is only published files from a user's own.
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


# Size and SHA-256 of the archive: as public loaders pin them (ankane/torchvision-ruby,
# lib/torchvision/datasets/cifar10.rb, for one), with the MD5 that the authors publish,
# c32a1d4ab5d03f1284b67883e8d87530. The authors publish no digests of the files in it: their MD5s are those that
# several public loaders of the same archive agree on.
CIFAR_10 = BinarySet(
    name="cifar-10",
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    archive=Download(
        name="cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        size_bytes=170_052_171,
    ),
    files=(
        File("data_batch_1.bin", 10_000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
        File("data_batch_2.bin", 10_000, "5ea93a67294ea407fff1d09f752e9692"),
        File("data_batch_3.bin", 10_000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
        File("data_batch_4.bin", 10_000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
        File("data_batch_5.bin", 10_000, "53f37980c15c3d472c316c40844f3f0d"),
        File("test_batch.bin", 10_000, "803d5f7f4d78ea53de84dbe85f74fb6d"),
    ),
    mirrors=("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
)
