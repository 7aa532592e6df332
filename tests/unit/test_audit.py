import json
import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bll_server.auth.audit import Audit


def lines(path: Path) -> list[str]:
    return [json.loads(line)["what"] for line in path.read_text().splitlines()]


def test_a_full_file_is_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, max_bytes=250, keep=2)  # two lines
    for number in range(7):
        audit.write("ann", f"change {number}", "jobs/one", "OK")
    assert lines(path) == ["change 6"]
    assert lines(tmp_path / "audit.jsonl.1") == ["change 4", "change 5"]
    assert lines(tmp_path / "audit.jsonl.2") == ["change 2", "change 3"]
    assert not (tmp_path / "audit.jsonl.3").exists()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_line_is_lost_or_torn_when_many_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writers = [Audit(path, max_bytes=2000) for _ in range(4)]  # as in processes of their own
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: writers[n % 4].write("ann", f"change {n}", "jobs/one", "OK"), range(60)))
    found = [what for file in tmp_path.glob("audit.jsonl*") for what in lines(file)]
    assert sorted(found) == sorted(f"change {n}" for n in range(60))


def test_what_a_caller_sends_can_neither_forge_a_line_nor_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    Audit(path).write("ann", "CancelJob", 'jobs/x"}\n{"who": "bob"' + "y" * 100_000, "NOT_FOUND")
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["who"] == "ann"
    assert len(line) < 1000


def test_a_disk_that_fails_is_told_in_the_log_with_the_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with caplog.at_level(logging.ERROR):
        Audit(tmp_path / "audit.jsonl").write("ann", "CancelJob", "jobs/one", "OK")
    assert "jobs/one" in caplog.text
