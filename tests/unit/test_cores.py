"""Cores that a run may use: by affinity, by cgroups of both versions, and how they are dealt."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bll import cores
from bll.cores import dealt, usable_cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the cgroup file system of a machine of 8 cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "_OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_without_cgroups_the_affinity_counts(machine: Path) -> None:
    assert usable_cores() == 8


@pytest.mark.parametrize(("limit", "usable"), [("max 100000", 8), ("250000 100000", 2), ("10000 100000", 1)])
def test_a_quota_of_version_2_counts(limit: str, usable: int, machine: Path) -> None:
    write(machine / "own", "0::/pod/task\n")
    write(machine / "pod/task/cpu.max", limit + "\n")
    assert usable_cores() == usable


def test_the_tightest_cgroup_above_counts(machine: Path) -> None:
    write(machine / "own", "0::/pod/task\n")
    write(machine / "pod/task/cpu.max", "max 100000")
    write(machine / "pod/cpu.max", "300000 100000")
    write(machine / "cpu.max", "600000 100000")
    assert usable_cores() == 3


@pytest.mark.parametrize(("quota", "usable"), [("-1", 8), ("400000", 4)])
def test_a_quota_of_version_1_counts(quota: str, usable: int, machine: Path) -> None:
    write(machine / "own", "5:memory:/task\n4:cpu,cpuacct:/not/mounted/here\n")
    write(machine / "cpu/cpu.cfs_quota_us", quota)
    write(machine / "cpu/cpu.cfs_period_us", "100000")
    assert usable_cores() == usable


@given(usable=st.sets(st.integers(0, 300), min_size=1), num_workers=st.integers(1, 20), threads=st.integers(1, 8))
def test_cores_are_dealt_evenly_and_none_is_shared_without_need(
    usable: set[int], num_workers: int, threads: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.sched_getaffinity", lambda _pid: usable)
        found = dealt(num_workers, threads)
    assert len(found) == num_workers
    assert all(len(set(cpus)) == min(threads, len(usable)) for cpus in found)
    users = [sum(core in cpus for cpus in found) for core in usable]
    assert max(users) - min(users) <= 1
