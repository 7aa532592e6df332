"""Tar files of strangers, unpacked: plain files and folders alone, nowhere but below one folder, up to a size."""

from __future__ import annotations

import errno
import tarfile
from pathlib import Path, PurePosixPath

from bll.data.streams import CHUNK_BYTES
from bll.errors import DataError

MAX_MEMBERS = 1_100_000
"""A data set of images may have a million files."""
MAX_DEPTH = 4
"""Of a member's path: a folder round everything, `train`, a class, a file."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where nothing more can be written: no fault of the archive's."""

_GZIP_MAGIC = b"\x1f\x8b"


def unpack(archive: Path, folder: Path, max_bytes: int) -> Path:
    """Unpack `archive` into `folder`, which is empty; returns where its content begins.

    That is the one folder in it where there is nothing else at the top: what `tar cf my.tar my` makes.
    Raises DataError naming member, rule and value, and OSError where nothing more can be written.
    """
    with archive.open("rb") as file:
        kind = "gz" if file.read(2) == _GZIP_MAGIC else ""
        file.seek(0)
        try:
            # As a stream: a tar's members are taken in their order, and none is read twice.
            with tarfile.open(fileobj=file, mode=f"r|{kind}") as members:  # type: ignore[call-overload]
                _unpack(members, folder, max_bytes)
        except (DataError, MemoryError):
            raise
        # tarfile lets through whatever the bytes provoke: TarError, EOFError, zlib.error, ValueError, struct.error,
        # OSError for what is not gzip.
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            raise DataError(f"must be a readable .tar file: {type(error).__name__}: {error}") from error
    entries = list(folder.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


def _unpack(archive: tarfile.TarFile, folder: Path, max_bytes: int) -> None:
    count = 0
    while member := archive.next():
        archive.members = []  # type: ignore[attr-defined]  # else it keeps a record of each
        count += 1
        if count > MAX_MEMBERS:
            raise DataError(f"must have at most {MAX_MEMBERS} members, but has more")
        path = _path(member)
        if path is None:
            continue
        if member.isdir():
            _write_folder(folder / path, member)
            continue
        if not member.isreg() or member.issparse():
            raise DataError(f"{_shown(member)}: must be a plain file or a folder, got tar type {member.type!r}")
        max_bytes -= member.size
        if max_bytes < 0:
            raise DataError(f"{_shown(member)}: the content must be smaller, it goes beyond what may be unpacked")
        _write_folder((folder / path).parent, member)
        _write_file(archive, member, folder / path)


def _path(member: tarfile.TarInfo) -> PurePosixPath | None:
    """Where the member goes, below the folder; None for the folder itself."""
    name = member.name
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise DataError(f"{_shown(member)}: must be a path below the archive's top, without '..' and backslashes")
    if len(path.parts) > MAX_DEPTH or any(len(part.encode(errors="surrogateescape")) > 255 for part in path.parts):
        raise DataError(f"{_shown(member)}: must have at most {MAX_DEPTH} parts of 255 bytes each")
    return path if path.parts else None


def _write_folder(path: Path, member: tarfile.TarInfo) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{_shown(member)}: must not be file and folder at once") from error


def _write_file(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None  # it is a plain file
    try:
        file = path.open("xb")
    except (FileExistsError, IsADirectoryError) as error:
        raise DataError(f"{_shown(member)}: must not come twice") from error
    with file:
        while chunk := content.read(CHUNK_BYTES):
            file.write(chunk)


def _shown(member: tarfile.TarInfo) -> str:
    return repr(member.name[:100])
