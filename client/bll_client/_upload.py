"""A file on its way to a server: what is sent, from which offset, and what to do when the stream breaks.

The clients do the calling and the waiting. Nothing is held in memory but the chunk that is being sent.
"""

from __future__ import annotations

import hashlib
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import grpc

from bll_client._errors import DeadlineExceeded, InvalidInput, call_error
from bll_client._types import DatasetFormat
from bll_client._watch import FIRST_DELAY_S, MAX_DELAY_S
from bll_proto.v1 import datasets_pb2

CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int], None]
"""Is told how many bytes have been sent, and of how many; from a thread of the client's."""


class Outgoing:
    """One file, or a folder that is packed for the purpose. Use as a context manager."""

    def __init__(
        self,
        path: Path,
        dataset_id: str | None,
        form: DatasetFormat | str | None,
        on_progress: Progress | None,
        reconnect: timedelta,
    ) -> None:
        """Reads all of the file once, for its digest. Raises InvalidInput, OSError."""
        kind = _format(path, form)
        self._file = _packed(path) if path.is_dir() else path.open("rb")
        try:
            sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()  # type: ignore[arg-type]  # plain file
            total_bytes = self._file.seek(0, 2)
        except BaseException:
            self._file.close()
            raise
        self.header = datasets_pb2.UploadHeader(
            dataset_id=path.resolve().name.partition(".")[0] if dataset_id is None else dataset_id,
            format=datasets_pb2.DatasetFormat.Value(f"DATASET_FORMAT_{kind.name}"),
            total_bytes=total_bytes,
            sha256=sha256,
        )
        self._on_progress = on_progress
        self._reconnect_s = reconnect.total_seconds()
        self._furthest = -1
        self._lost_at: float | None = None
        self._delay_s = FIRST_DELAY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def offset(self, upload: datasets_pb2.Upload | None) -> int:
        """Where to go on, given the unfinished upload that the server has under the id."""
        ours = self.header
        theirs = (upload.format, upload.total_bytes, upload.sha256) if upload else None
        if upload is None or theirs != (ours.format, ours.total_bytes, ours.sha256):
            return 0
        if upload.committed_bytes > self._furthest:  # the connection is of use
            self._furthest, self._lost_at, self._delay_s = upload.committed_bytes, None, FIRST_DELAY_S
        return upload.committed_bytes

    def requests(self, offset: int) -> Iterator[datasets_pb2.UploadDatasetRequest]:
        """The header, and the chunks from `offset` on."""
        yield datasets_pb2.UploadDatasetRequest(header=self.header)
        self._file.seek(offset)
        self._tell(offset)
        while data := self._file.read(CHUNK_BYTES):
            yield datasets_pb2.UploadDatasetRequest(chunk=datasets_pb2.UploadChunk(offset=offset, data=data))
            offset += len(data)
            self._tell(offset)

    def delay_s(self, error: grpc.RpcError) -> float:
        """How long to wait before the next stream.

        Raises the client's error for `error` when another stream would not help, or has not helped for too long.
        """
        failure = call_error(error)
        if failure.status is not grpc.StatusCode.UNAVAILABLE:
            raise failure from error
        now = time.monotonic()
        self._lost_at = now if self._lost_at is None else self._lost_at
        if now - self._lost_at >= self._reconnect_s:
            raise failure from error
        delay_s = self._delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - clients should not come back together
        self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)
        return delay_s

    def _tell(self, sent: int) -> None:
        if self._on_progress:
            self._on_progress(sent, self.header.total_bytes)


def poll_delays(end: float) -> Iterator[float]:
    """Seconds between two looks at a data set that is being checked, until `end` on the monotonic clock.

    Raises DeadlineExceeded then.
    """
    delay_s = 0.05
    while (left_s := end - time.monotonic()) > 0:
        yield min(delay_s, left_s)
        delay_s = min(2 * delay_s, 1.0)
    raise DeadlineExceeded("the data set was not checked in time", status=grpc.StatusCode.DEADLINE_EXCEEDED)


def _format(path: Path, form: DatasetFormat | str | None) -> DatasetFormat:
    """What was asked for, or what `path` shows."""
    if form is not None:
        try:
            return DatasetFormat(form)
        except ValueError as error:
            known = ", ".join(kind for kind in DatasetFormat if kind is not DatasetFormat.UNSPECIFIED)
            raise InvalidInput(f"format must be one of {known}, got {form!r}") from error
    if path.is_dir():
        if any(entry.is_dir() for entry in path.iterdir()):
            return DatasetFormat.IMAGES
        return DatasetFormat.NPY if any(path.glob("*.npy")) else DatasetFormat.IDX
    if path.suffix == ".npz":
        return DatasetFormat.NPZ
    raise InvalidInput(f"{path}: the format of a file that is no .npz must be given: npy, idx or images")


def _packed(folder: Path) -> IO[bytes]:
    """A tar of `folder`, in a file that has no name: the same bytes each time, so that an upload can go on later."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for path in sorted(folder.rglob("*")):
                if not path.is_dir():
                    archive.add(path, path.relative_to(folder), recursive=False, filter=_bare)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _bare(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """`member` without what says nothing about its content."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member
