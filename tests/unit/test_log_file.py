"""A job's log, read while it grows."""

from pathlib import Path

import pytest

from bll_server.errors import InvalidRequest
from bll_server.jobs.log_file import PIECE_BYTES, follow


def all_of(path: Path, offset: int = 0) -> list[bytes]:
    return list(follow(path, offset, over=lambda: True, wait=lambda: False))


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 1])
def test_the_pieces_are_the_file_from_the_offset_on(tmp_path: Path, size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "log").write_bytes(content)
    for offset in {0, size // 2, size}:
        pieces = all_of(tmp_path / "log", offset)
        assert b"".join(pieces) == content[offset:]
        assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)


def test_a_log_that_is_not_there_is_empty_until_it_is(tmp_path: Path) -> None:
    path, looks = tmp_path / "log", []

    def wait() -> bool:
        looks.append(path.exists())
        path.write_bytes(b"late")
        return False

    assert all_of(path) == []
    assert list(follow(path, 0, over=lambda: bool(looks), wait=wait)) == [b"late"]


def test_what_is_written_while_the_job_ends_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def over() -> bool:
        path.write_bytes(b"last words")
        return True

    assert list(follow(path, 0, over, wait=lambda: False)) == [b"last words"]


def test_silence_gives_a_sign_of_life_and_waiting_alone_does_not(tmp_path: Path) -> None:
    answers = iter([False, True])
    assert list(follow(tmp_path / "log", 0, over=lambda: next(answers, None) is None, wait=lambda: True)) == [b"", b""]


@pytest.mark.parametrize("offset", [-1, 5])
def test_an_offset_beyond_the_log_is_refused_with_its_size(tmp_path: Path, offset: int) -> None:
    (tmp_path / "log").write_bytes(b"four")
    with pytest.raises(InvalidRequest, match=f"offset: must be between 0 and 4, the size of the log, got {offset}"):
        all_of(tmp_path / "log", offset)
