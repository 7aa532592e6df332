"""Files that survive power loss once a call has returned."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, values: dict[str, Any]) -> None:
    """Replace `path` by one rename, once its new content is on disk."""
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("w") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_one(path.parent)


def sync(folder: Path) -> None:
    """Have all files of `folder` on disk, and their names."""
    for path in folder.iterdir():
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
