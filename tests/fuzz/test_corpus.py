"""Every decoder of outside bytes on sound inputs and on changed ones: each is accepted or refused as promised."""

from functools import cache
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.target import joined, parts, texts
from benchmarks.fuzz.targets import TARGETS


class Change(NamedTuple):
    """Some bytes in the place of others."""

    place: float
    """Where, as a fraction of the whole."""
    removed: int
    added: bytes

    def of(self, data: bytes) -> bytes:
        start = int(self.place * len(data))
        return data[:start] + self.added + data[start + self.removed :]


CHANGES = st.lists(st.builds(Change, st.floats(0, 1), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4)


@cache
def seeds(name: str) -> list[bytes]:
    return list(TARGETS[name].seeds())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=25)
@given(data=st.data())
def test_changed_seeds_are_accepted_or_refused(name: str, data: st.DataObject) -> None:
    found = data.draw(st.sampled_from(seeds(name)))
    for change in data.draw(CHANGES):
        found = change.of(found)
    TARGETS[name].decode(found)


@pytest.mark.parametrize("name", TARGETS)
def test_some_seed_of_each_target_is_accepted(name: str) -> None:
    accepted = [TARGETS[name].decode(seed) for seed in seeds(name)]
    assert any(accepted)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=5))
def test_parts_come_back_as_they_were_joined(pieces: list[tuple[int, bytes]]) -> None:
    assert parts(joined(*pieces)) == pieces


def test_texts_fill_up_with_empty_ones_and_are_none_where_they_are_no_text() -> None:
    assert texts(b"a\0b", 3) == ["a", "b", ""]
    assert texts(b"a\0b\0c\0d", 3) == ["a", "b", "c\0d"]
    assert texts(b"\xff", 1) is None
