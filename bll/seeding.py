"""Random draws that depend on what they are for, not on when or where they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose of the run with `seed`, such as `derive(seed, "dropout", block, step)`."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextmanager
def global_generator(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block, and restore it after. Not for use in two threads at once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
