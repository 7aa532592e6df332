"""How a run is executed and watched: the part of its description that says nothing of what is learned.

Torch is not imported here.
"""

from __future__ import annotations

from dataclasses import dataclass

from bll.choices import ExecutorName
from bll.rules import Rules


@dataclass(frozen=True)
class ExecutorConfig:
    """Who runs the blocks, and how. Nothing here but `threads_per_block` may change the result."""

    name: ExecutorName = ExecutorName.AUTO
    threads_per_block: int = 1
    """Intra-operation threads of each block, 1 to 256; 1 and 2 differ in the last bits."""
    messages_in_flight: int = 4
    """Messages that wait between two blocks at most, 1 to 64."""
    checkpoint_steps: int = 0
    """Steps between checkpoints, 0 to 10 million; 0 = one at the end of each epoch."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.member("name", self.name, ExecutorName)
        rules.whole("threads_per_block", self.threads_per_block, 1, 256)
        rules.whole("messages_in_flight", self.messages_in_flight, 1, 64)
        rules.whole("checkpoint_steps", self.checkpoint_steps, 0, 10_000_000)
        rules.done()


@dataclass(frozen=True)
class DiagnosticsConfig:
    """What is looked at while blocks train, and how often. Nothing here changes the result."""

    per_epoch: int = 2
    """Times an epoch that each block is examined, 0 (never; no alarm is raised then) to 10."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.whole("per_epoch", self.per_epoch, 0, 10)
        rules.done()
