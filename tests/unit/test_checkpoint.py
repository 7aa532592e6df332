"""Checkpoints: whole or not there, and never mistaken for another run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bll import checkpoint
from bll.errors import CheckpointError


def write(run_dir: Path, step: int, blocks: int = 2) -> None:
    digests = {k: checkpoint.save_block(run_dir, step, k, {"w": torch.full((3,), float(k))}) for k in range(blocks)}
    checkpoint.commit(run_dir, step, digests, "config")


def test_a_committed_cut_is_found_and_read_back(tmp_path: Path) -> None:
    write(tmp_path, 20)
    assert checkpoint.newest(tmp_path, "config") == 20
    assert checkpoint.load_block(tmp_path, 20, 1, "config")["w"].tolist() == [1, 1, 1]


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path, "config") is None


def test_a_cut_that_was_not_committed_does_not_count_and_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 20)
    checkpoint.save_block(tmp_path, 40, 0, {"w": torch.zeros(1)})
    assert checkpoint.newest(tmp_path, "config") == 20
    assert [d.name for d in (tmp_path / "checkpoints").iterdir()] == ["step-000000020"]


def test_a_new_cut_replaces_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, 20)
    write(tmp_path, 40)
    assert [d.name for d in (tmp_path / "checkpoints").iterdir()] == ["step-000000040"]


def test_committing_a_cut_keeps_what_a_block_that_runs_ahead_has_saved(tmp_path: Path) -> None:
    saved = {step: {0: checkpoint.save_block(tmp_path, step, 0, {"w": torch.zeros(1)})} for step in (20, 40)}
    for step, digests in saved.items():
        digests[1] = checkpoint.save_block(tmp_path, step, 1, {"w": torch.ones(1)})
        checkpoint.commit(tmp_path, step, digests, "config")
    assert checkpoint.load_block(tmp_path, 40, 0, "config")["w"].tolist() == [0]


def test_another_configs_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 20)
    with pytest.raises(CheckpointError, match="another config"):
        checkpoint.newest(tmp_path, "other")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_block_is_refused_by_its_digest(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 20)
    path = tmp_path / "checkpoints" / "step-000000020" / "block-0.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-5])
    with pytest.raises(CheckpointError, match=r"block-0\.safetensors"):
        checkpoint.load_block(tmp_path, 20, 0, "config")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    write(tmp_path, 20)
    (tmp_path / "checkpoints" / "step-000000020" / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.newest(tmp_path, "config")
