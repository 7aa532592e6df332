"""A file as it arrives: appended chunk by chunk, and whole only when its size and digest are those announced."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from bll.errors import Violation
from bll_server.datasets.archives import NO_ROOM
from bll_server.datasets.records import Announcement
from bll_server.errors import InvalidRequest, StorageFull, UploadTakenOver


class Upload:
    """One stream's hold on an unfinished file; the last stream to come has it."""

    def __init__(self, announced: Announcement, path: Path) -> None:
        """Open or create the file at `path`. Raises OSError."""
        self.header = announced.header
        self.owner = announced.owner
        self._path = path
        self._lock = threading.Lock()
        # Not buffered: what a full disk does not take must not come again when the file is closed.
        self._file = path.open("ab", buffering=0)
        self._committed_bytes = self._file.tell()

    @property
    def committed_bytes(self) -> int:
        """How much of the file is there."""
        return self._committed_bytes

    def append(self, offset: int, data: bytes) -> None:
        """Take the next chunk. Raises InvalidRequest, StorageFull, UploadTakenOver."""
        with self._lock:
            self._check_open()
            if offset != self._committed_bytes:
                rule = f"must be the committed offset {self._committed_bytes}, got {offset}"
                raise InvalidRequest(Violation("chunk.offset", rule))
            left_bytes = self.header.total_bytes - offset
            if not 0 < len(data) <= left_bytes:
                rule = f"must hold 1 to {left_bytes} bytes of the {self.header.total_bytes} announced, got {len(data)}"
                raise InvalidRequest(Violation("chunk.data", rule))
            rest = memoryview(data)
            try:
                while rest:
                    written = self._file.write(rest)
                    self._committed_bytes += written
                    rest = rest[written:]
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise StorageFull(f"the upload cannot be stored: {error.strerror}") from error

    def complete(self) -> bool:
        """Whether the file, now on disk, has the digest that was announced.

        Raises InvalidRequest if something is missing of it, StorageFull, UploadTakenOver.
        """
        with self._lock:
            self._check_open()
            if self._committed_bytes < self.header.total_bytes:
                rule = f"must reach {self.header.total_bytes} bytes, got {self._committed_bytes}; the upload can go on"
                raise InvalidRequest(Violation("chunk", rule))
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise StorageFull(f"the upload cannot be stored: {error.strerror}") from error
            self._file.close()
            with self._path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.header.sha256

    def close(self) -> None:
        """Let go of the file, once a chunk that is being written is there."""
        with self._lock:
            self._file.close()

    def _check_open(self) -> None:
        if self._file.closed:
            raise UploadTakenOver(f"the upload of datasets/{self.header.dataset_id} was taken over or given up")
