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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bll.errors import CheckpointError
from bll.lineage import Continuation

_MANIFEST = "manifest.json"
_FORMAT = 1


class Part(NamedTuple):
    """One block's part of a cut, complete or not."""

    step: int
    digest: str
    """SHA-256 of its file, in hex."""


def save_block(run_dir: Path, step: int, block: int, tensors: Mapping[str, Tensor]) -> str:
    """Write one block's state after `step` steps, from whichever device; returns its SHA-256, in hex."""
    directory = _directory(run_dir, step)
    directory.mkdir(parents=True, exist_ok=True)
    content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(directory / f"block-{block}.safetensors", content)
    return hashlib.sha256(content).hexdigest()


def commit(
    run_dir: Path,
    step: int,
    digests: Mapping[int, str],
    config_digest: str,
    kept: int,
    continuations: Sequence[Continuation] = (),
) -> None:
    """Make the cut after `step` steps the newest, now that every block is saved, and keep the newest `kept` cuts.

    `continuations` are those that its weights have come through.
    """
    values = {
        "format": _FORMAT,
        "step": step,
        "config": config_digest,
        "blocks": [digests[block] for block in sorted(digests)],
        "continuations": [asdict(continuation) for continuation in continuations],
    }
    write_atomically(_directory(run_dir, step) / _MANIFEST, json.dumps(values, indent=1).encode())
    # The new folder's own name must be on disk before an old cut goes: power may fail between the two.
    sync_directory(run_dir / "checkpoints")
    sync_directory(run_dir)
    # Incomplete cuts stay: a block that runs ahead may have saved its part of a later one.
    for directory in _cuts(run_dir)[kept:]:
        _remove(directory)


def newest(run_dir: Path, config_digest: str) -> int | None:
    """Steps done at the newest complete cut in `run_dir`, or None. Leftovers of incomplete cuts are removed.

    Raises CheckpointError if the cut belongs to another config or its manifest is damaged. Blocks are not read.
    """
    _remove_leftovers(run_dir)
    cuts = _cuts(run_dir)
    return int(_read_manifest(cuts[0], config_digest)["step"]) if cuts else None


class Damaged(NamedTuple):
    """A cut that cannot be gone on from."""

    step: int
    cause: str
    """The file, and what is wrong with it."""


def newest_intact(run_dir: Path, config_digest: str) -> tuple[int | None, list[Damaged]]:
    """As `newest`, of the cuts whose every file is as it was written; and the newer ones, which are removed.

    Raises CheckpointError if there are cuts, but none of them is intact, or one belongs to another config.
    """
    _remove_leftovers(run_dir)
    cuts, damaged = _cuts(run_dir), []
    for directory in cuts:
        try:
            step = _check(directory, config_digest)
        except _DamagedError as error:
            damaged.append(Damaged(_step_of(directory), str(error)))
            continue
        for spoilt in cuts[: len(damaged)]:
            _remove(spoilt)
        return step, damaged
    if damaged:
        raise CheckpointError("; ".join(cut.cause for cut in damaged))
    return None, []


def continuations(run_dir: Path, step: int, config_digest: str) -> tuple[Continuation, ...]:
    """What the weights of the cut after `step` steps have come through. Raises CheckpointError if it is damaged."""
    found: tuple[Continuation, ...] = _read_manifest(_directory(run_dir, step), config_digest)["continuations"]
    return found


def load_block(run_dir: Path, step: int, block: int, config_digest: str) -> dict[str, Tensor]:
    """The tensors that `save_block` wrote. Raises CheckpointError if they are missing or damaged."""
    digests = _read_manifest(_directory(run_dir, step), config_digest)["blocks"]
    if block >= len(digests):
        raise CheckpointError(f"{_directory(run_dir, step)}: has {len(digests)} blocks, and none of number {block}")
    return load_part(run_dir, block, Part(step, digests[block]))


def load_part(run_dir: Path, block: int, part: Part) -> dict[str, Tensor]:
    """As `load_block`, of a cut that need not be complete."""
    path = _directory(run_dir, part.step) / f"block-{block}.safetensors"
    _check_block(path, part.digest)
    try:
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


class _DamagedError(CheckpointError):
    """A file of a cut is not as it was written; an older cut may be."""


def _directory(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:09d}"


def _step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def _cuts(run_dir: Path) -> list[Path]:
    """The folders of complete cuts, newest first."""
    return sorted((path.parent for path in (run_dir / "checkpoints").glob(f"step-*/{_MANIFEST}")), reverse=True)


def _remove_leftovers(run_dir: Path) -> None:
    for directory in (run_dir / "checkpoints").glob("*"):
        if not (directory / _MANIFEST).exists():
            shutil.rmtree(directory, ignore_errors=True)


def _remove(directory: Path) -> None:
    # The manifest goes first: of a cut that is half removed, nothing counts.
    (directory / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _check(directory: Path, config_digest: str) -> int:
    """The step of the cut in `directory`, all of whose files are as they were written. Raises CheckpointError."""
    values = _read_manifest(directory, config_digest)
    for block, expected in enumerate(values["blocks"]):
        _check_block(directory / f"block-{block}.safetensors", expected)
    return int(values["step"])


def _check_block(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _DamagedError(f"{path}: cannot be read: {error}") from error
    if found != expected:
        raise _DamagedError(f"{path}: SHA-256 must be {expected}, got {found}")


def _read_manifest(directory: Path, config_digest: str) -> dict[str, Any]:
    path = directory / _MANIFEST
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        if values["format"] != _FORMAT:
            raise CheckpointError(f"{path}: format must be {_FORMAT}, got {values['format']!r}")
        if values["config"] != config_digest:
            raise CheckpointError(f"{path}: belongs to another config: {values['config']}, not {config_digest}")
        blocks = values["blocks"]
        sound = isinstance(blocks, list) and all(isinstance(digest, str) for digest in blocks)
        if values["step"] != _step_of(directory) or not sound:
            raise ValueError("its step or its blocks are not those that were written")
        values["continuations"] = tuple(Continuation(**each) for each in values.get("continuations", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _DamagedError(f"{path}: not a readable manifest: {error}") from error
    return values
