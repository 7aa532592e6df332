"""Torch's threads within one operation: part of what a result depends on, for 1 and 2 differ in the last bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads an operation, in this thread and those started meanwhile; then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
