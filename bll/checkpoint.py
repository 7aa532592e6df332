"""Checkpoints: one consistent cut of a run on disk, in safetensors and JSON. Nothing is ever unpickled.

    run_dir/checkpoints/step-000000420/
        block-0.safetensors …    written by the block's worker when the marker passes it
        manifest.json            written last, when all blocks are there: without it the folder does not count

Files appear by `write temporary, fsync, rename, fsync folder`: kill -9 leaves a whole file or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bll.errors import CheckpointError

_MANIFEST = "manifest.json"
_FORMAT = 1


def save_block(run_dir: Path, step: int, block: int, tensors: Mapping[str, Tensor]) -> str:
    """Write one block's state after `step` steps, from whichever device; returns its SHA-256, in hex."""
    directory = _directory(run_dir, step)
    directory.mkdir(parents=True, exist_ok=True)
    content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(directory / f"block-{block}.safetensors", content)
    return hashlib.sha256(content).hexdigest()


def commit(run_dir: Path, step: int, digests: Mapping[int, str], config_digest: str) -> None:
    """Make the cut after `step` steps the newest, now that every block is saved, and drop the older ones."""
    values = {
        "format": _FORMAT,
        "step": step,
        "config": config_digest,
        "blocks": [digests[block] for block in sorted(digests)],
    }
    write_atomically(_directory(run_dir, step) / _MANIFEST, json.dumps(values, indent=1).encode())
    # The new folder's own name must be on disk before the old cut goes: power may fail between the two.
    sync_directory(run_dir / "checkpoints")
    sync_directory(run_dir)
    for directory in (run_dir / "checkpoints").iterdir():
        if directory < _directory(run_dir, step):  # a block that runs ahead may have saved its part of a later cut
            shutil.rmtree(directory, ignore_errors=True)


def newest(run_dir: Path, config_digest: str) -> int | None:
    """Steps done at the newest complete cut in `run_dir`, or None. Leftovers of incomplete cuts are removed.

    Raises CheckpointError if the cut belongs to another config or its manifest is damaged.
    """
    folder = run_dir / "checkpoints"
    if not folder.exists():
        return None
    steps = []
    for directory in folder.iterdir():
        if (directory / _MANIFEST).exists():
            steps.append(_read_manifest(directory, config_digest)["step"])
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return max(steps, default=None)


def load_block(run_dir: Path, step: int, block: int, config_digest: str) -> dict[str, Tensor]:
    """The tensors that `save_block` wrote. Raises CheckpointError if they are missing or damaged."""
    directory = _directory(run_dir, step)
    path = directory / f"block-{block}.safetensors"
    expected = _read_manifest(directory, config_digest)["blocks"][block]
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise CheckpointError(f"{path}: SHA-256 must be {expected}, got {found}")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: after a crash it holds the old or the new, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _directory(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:09d}"


def _read_manifest(directory: Path, config_digest: str) -> dict[str, Any]:
    path = directory / _MANIFEST
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        if values["format"] != _FORMAT:
            raise CheckpointError(f"{path}: format must be {_FORMAT}, got {values['format']!r}")
        if values["config"] != config_digest:
            raise CheckpointError(f"{path}: belongs to another config: {values['config']}, not {config_digest}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable manifest: {error}") from error
    return values
