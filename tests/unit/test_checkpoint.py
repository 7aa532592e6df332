"""Checkpoints: whole or not there, and never mistaken for another run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bll import checkpoint
from bll.errors import CheckpointError
from bll.lineage import Continuation


def write(run_dir: Path, step: int, blocks: int = 2, kept: int = 1) -> None:
    digests = {k: checkpoint.save_block(run_dir, step, k, {"w": torch.full((3,), float(k))}) for k in range(blocks)}
    checkpoint.commit(run_dir, step, digests, "config", kept)


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-5])


def steps_on_disk(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_committed_cut_is_found_and_read_back(tmp_path: Path) -> None:
    write(tmp_path, 20)
    assert checkpoint.newest(tmp_path, "config") == 20
    assert checkpoint.load_block(tmp_path, 20, 1, "config")["w"].tolist() == [1, 1, 1]


def test_a_part_is_read_before_its_cut_is_complete(tmp_path: Path) -> None:
    digest = checkpoint.save_block(tmp_path, 20, 1, {"w": torch.ones(3)})
    part = checkpoint.Part(20, digest)
    assert checkpoint.load_part(tmp_path, 1, part)["w"].tolist() == [1, 1, 1]
    spoil(tmp_path / "checkpoints" / "step-000000020" / "block-1.safetensors", "flip")
    with pytest.raises(CheckpointError, match=r"block-1\.safetensors: SHA-256 must be"):
        checkpoint.load_part(tmp_path, 1, part)


def test_a_cut_knows_what_its_weights_have_come_through(tmp_path: Path) -> None:
    write(tmp_path, 20)
    assert checkpoint.continuations(tmp_path, 20, "config") == ()
    digests = {0: checkpoint.save_block(tmp_path, 40, 0, {"w": torch.zeros(1)})}
    through = (Continuation(0, 31, 20), Continuation(1, 33, 20))
    checkpoint.commit(tmp_path, 40, digests, "config", 2, through)
    assert checkpoint.continuations(tmp_path, 40, "config") == through


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path, "config") is None


def test_a_cut_that_was_not_committed_does_not_count_and_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 20)
    checkpoint.save_block(tmp_path, 40, 0, {"w": torch.zeros(1)})
    assert checkpoint.newest(tmp_path, "config") == 20
    assert [d.name for d in (tmp_path / "checkpoints").iterdir()] == ["step-000000020"]


@pytest.mark.parametrize("kept", [1, 2, 3, 100])
def test_the_newest_cuts_stay_and_older_ones_go(tmp_path: Path, kept: int) -> None:
    for step in (20, 40, 60, 80):
        write(tmp_path, step, kept=kept)
    assert steps_on_disk(tmp_path) == [f"step-0000000{step}" for step in (20, 40, 60, 80)[-kept:]]


def test_committing_a_cut_keeps_what_a_block_that_runs_ahead_has_saved(tmp_path: Path) -> None:
    saved = {step: {0: checkpoint.save_block(tmp_path, step, 0, {"w": torch.zeros(1)})} for step in (20, 40)}
    for step, digests in saved.items():
        digests[1] = checkpoint.save_block(tmp_path, step, 1, {"w": torch.ones(1)})
        checkpoint.commit(tmp_path, step, digests, "config", kept=1)
    assert checkpoint.load_block(tmp_path, 40, 0, "config")["w"].tolist() == [0]


def test_another_configs_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 20)
    with pytest.raises(CheckpointError, match="another config"):
        checkpoint.newest(tmp_path, "other")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_block_is_refused_by_its_digest(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 20)
    spoil(tmp_path / "checkpoints" / "step-000000020" / "block-0.safetensors", damage)
    with pytest.raises(CheckpointError, match=r"block-0\.safetensors"):
        checkpoint.load_block(tmp_path, 20, 0, "config")


WHOLE = '{"format": 1, "config": "config", "step": 20, '


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"format": 99}',
        '{"format": 1}',
        WHOLE + '"blocks": {"a": 1}}',
        WHOLE + '"blocks": [], "continuations": [{"block": 0}]}',
    ],
    ids=range(8),
)
def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    write(tmp_path, 20)
    (tmp_path / "checkpoints" / "step-000000020" / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.newest(tmp_path, "config")


def test_a_block_that_a_cut_does_not_have_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 20)
    with pytest.raises(CheckpointError, match="none of number 7"):
        checkpoint.load_block(tmp_path, 20, 7, "config")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
@pytest.mark.parametrize("file", ["block-0.safetensors", "block-1.safetensors", "manifest.json"])
def test_where_the_newest_cut_is_damaged_the_one_before_is_taken(tmp_path: Path, file: str, damage: str) -> None:
    write(tmp_path, 20, kept=3)
    write(tmp_path, 40, kept=3)
    path = tmp_path / "checkpoints" / "step-000000040" / file
    spoil(path, damage)
    step, damaged = checkpoint.newest_intact(tmp_path, "config")
    assert step == 20
    if (file, damage) == ("manifest.json", "remove"):  # as if it had never been committed
        assert damaged == []
    else:
        ((damaged_step, cause),) = damaged
        assert damaged_step == 40
        assert str(path.parent) in cause  # of a manifest whose digests are wrong, the file that they are not of
    assert steps_on_disk(tmp_path) == ["step-000000020"]


def test_two_damaged_cuts_are_passed_over(tmp_path: Path) -> None:
    for step in (20, 40, 60):
        write(tmp_path, step, kept=3)
    for step in (40, 60):
        spoil(tmp_path / "checkpoints" / f"step-0000000{step}" / "block-1.safetensors", "flip")
    found, damaged = checkpoint.newest_intact(tmp_path, "config")
    assert (found, [cut.step for cut in damaged]) == (20, [60, 40])


def test_a_damaged_cut_without_another_is_an_error_that_names_the_file_and_stays(tmp_path: Path) -> None:
    write(tmp_path, 20)
    spoil(tmp_path / "checkpoints" / "step-000000020" / "block-1.safetensors", "truncate")
    with pytest.raises(CheckpointError, match=r"step-000000020/block-1\.safetensors: SHA-256 must be"):
        checkpoint.newest_intact(tmp_path, "config")
    assert steps_on_disk(tmp_path) == ["step-000000020"]


def test_a_cut_of_another_config_is_no_damage_that_an_older_one_would_make_good(tmp_path: Path) -> None:
    write(tmp_path, 20, kept=2)
    write(tmp_path, 40, kept=2)
    with pytest.raises(CheckpointError, match="another config"):
        checkpoint.newest_intact(tmp_path, "other")


def test_an_intact_newest_cut_is_taken_and_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert checkpoint.newest_intact(tmp_path, "config") == (None, [])
    write(tmp_path, 20)
    assert checkpoint.newest_intact(tmp_path, "config") == (20, [])
