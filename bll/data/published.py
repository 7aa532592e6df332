"""Published sets: where their files are looked for on this machine, and where they are downloaded to.

Searched in this order: root/<name>, $BLL_DATASETS_DIR/<name>, ~/.cache/bll/<name>, and where a distribution's package
puts the files. What is nowhere is downloaded into the first of root, $BLL_DATASETS_DIR and ~/.cache/bll that is set,
unless BLL_OFFLINE=1.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from bll.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """One published file."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Source:
    """The files of one published set."""

    name: str
    """Of the set, and of its directory."""
    ways: tuple[tuple[str, ...], ...]
    """Names of files that make up the whole set: a directory holds it when it has all of one way. Best way first."""
    downloads: tuple[Download, ...]
    """What makes up the set when it comes from the network."""
    mirrors: tuple[str, ...]
    """Addresses that the files' names are put behind."""
    system_directory: Path | None = None
    """Where a distribution's package puts the files."""
    advice: str = ""
    """How else to get the files: the start of a sentence."""

    def locate(self, root: Path | None) -> list[Path] | None:
        """The files, in the order of their way, in the first directory that has them all; None when none has."""
        directories = [directory / self.name for directory in _directories(root)]
        if self.system_directory:
            directories.append(self.system_directory)
        for directory in directories:
            for way in self.ways:
                paths = [directory / name for name in way]
                if all(path.is_file() for path in paths):
                    return paths
        return None

    def obtain(self, root: Path | None) -> list[Path]:
        """What `locate` finds, else the files downloaded. Raises DataError."""
        return self.locate(root) or self._download(root)

    def check_download(self, root: Path | None) -> Path:
        """The directory to download into. Raises DataError where downloads are forbidden."""
        target = _directories(root)[0] / self.name
        if os.environ.get("BLL_OFFLINE", "0") not in ("", "0"):
            names = ", ".join(file.name for file in self.downloads)
            raise DataError(
                f"{self.name}: not found on this machine, and BLL_OFFLINE forbids downloads: {self.advice}"
                f"put {names} into {target}, or unset BLL_OFFLINE"
            )
        return target

    def _download(self, root: Path | None) -> list[Path]:
        from bll.data.download import fetch  # urllib and TLS: slow to load, rarely needed

        directory = self.check_download(root)
        paths = []
        for file in self.downloads:
            path = directory / file.name
            if not path.is_file():
                log.info("downloading %s, %d bytes", path, file.size_bytes)
                urls = [f"{mirror}{file.name}" for mirror in self.mirrors]
                fetch(urls, path, sha256=file.sha256, size_bytes=file.size_bytes)
            paths.append(path)
        return paths


def _directories(root: Path | None) -> list[Path]:
    from_environment = os.environ.get("BLL_DATASETS_DIR")
    cache = Path(os.path.expanduser("~/.cache/bll"))  # noqa: PTH111 - Path's raises for a user without a home
    return [*([root] if root else []), *([Path(from_environment)] if from_environment else []), cache]
