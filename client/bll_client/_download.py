"""The files of a model version, as they arrive: nothing is visible until all of it is there and verified."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from bll_client._errors import DamagedDownload
from bll_proto.v1.models_pb2 import DownloadModelResponse


class Download:
    """Writes into a hidden directory beside `directory`, which `finish` renames to `directory`.

    Use as a context manager: leaving it without `finish` removes all traces.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._staging = self._directory.parent / f".{self._directory.name}.{secrets.token_hex(4)}"
        self._files: list[_File] = []

    def __enter__(self) -> Self:
        """Raises FileExistsError if the directory exists and holds anything."""
        if self._directory.exists() and any(self._directory.iterdir()):
            raise FileExistsError(f"{self._directory} must not exist or be empty: versions are not mixed")
        self._staging.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        shutil.rmtree(self._staging, ignore_errors=True)

    def write(self, response: DownloadModelResponse) -> None:
        """Take the next chunk. Raises DamagedDownload."""
        if not self._files or self._files[-1].name != response.file:
            self._verify_last()
            self._files.append(_File(self._staging, response))
        self._files[-1].write(response.chunk)

    def finish(self) -> tuple[Path, ...]:
        """Make the directory visible, after the last chunk. Raises DamagedDownload."""
        self._verify_last()
        if not self._files:
            raise DamagedDownload("the server sent no file")
        self._staging.replace(self._directory)
        return tuple(self._directory / file.name for file in self._files)

    def _verify_last(self) -> None:
        if self._files:
            self._files[-1].verify()


class _File:
    def __init__(self, directory: Path, response: DownloadModelResponse) -> None:
        self.name = response.file
        # The name comes from the network: it must not lead out of the directory, on any system.
        if self.name in ("", ".", "..") or any(character in self.name for character in "/\\:\0"):
            raise DamagedDownload(f"a file's name must be plain, got {self.name!r}")
        self._size_bytes = response.size_bytes
        self._sha256 = response.sha256
        self._digest = hashlib.sha256()
        self._written_bytes = 0
        try:
            self._stream = (directory / self.name).open("xb")
        except FileExistsError as error:
            raise DamagedDownload(f"{self.name}: came twice") from error

    def write(self, chunk: bytes) -> None:
        self._written_bytes += len(chunk)
        if self._written_bytes > self._size_bytes:
            raise DamagedDownload(f"{self.name}: must have {self._size_bytes} bytes, got more")
        self._digest.update(chunk)
        self._stream.write(chunk)

    def verify(self) -> None:
        self.close()
        if self._written_bytes != self._size_bytes:
            raise DamagedDownload(f"{self.name}: must have {self._size_bytes} bytes, got {self._written_bytes}")
        if (found := self._digest.hexdigest()) != self._sha256:
            raise DamagedDownload(f"{self.name}: SHA-256 must be {self._sha256}, got {found}")

    def close(self) -> None:
        self._stream.close()
