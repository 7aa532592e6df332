"""What a result owes to the losses that it went through: the blocks that went on with older weights. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Continuation:
    """A block's worker was lost, and the block went on at its place in the stream with weights from before."""

    block: int
    step: int
    """Steps done, by its place in the stream."""
    from_step: int
    """Steps after which its weights had been saved; 0 = its initial weights."""
