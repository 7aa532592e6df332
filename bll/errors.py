"""Errors of the learning library. They know nothing of gRPC.

BllError
├── InvalidConfig     a field of a TrainingConfig breaks its rule
├── DataError         a data set is unknown, missing, damaged or does not fit
├── BlockFailed       a block's worker raised, died or fell silent; names the block
│   └── WorkerLost    it died or fell silent: nothing that the block did, so that the run can be taken up again
├── ClusterError      a Ray cluster does not answer, has no room, or does not share the run's folder
├── Diverged          a block's loss is not finite; names the block and the step
├── CheckpointError   a checkpoint is missing or damaged
└── ExportError       the exported graph does not answer as the network does
"""

from __future__ import annotations

from dataclasses import dataclass


class BllError(Exception):
    """Root of every error that `bll` raises on purpose."""


@dataclass(frozen=True)
class Violation:
    """One broken rule: the field's path (`mixing.start`), and the rule with the value received."""

    field: str
    description: str


class InvalidConfig(BllError):
    """One or more fields break their rule; `violations` names each."""

    def __init__(self, violations: list[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))

    def __reduce__(self) -> tuple[type[InvalidConfig], tuple[list[Violation]]]:
        return InvalidConfig, (list(self.violations),)


class DataError(BllError):
    """A data set is unknown, missing, damaged, or does not fit its description."""


class BlockFailed(BllError):
    """The worker of block `block` (0-based) raised, died or fell silent."""

    def __init__(self, block: int, reason: str) -> None:
        self.block = block
        self.reason = reason
        super().__init__(f"block {block}: {reason}")

    def __reduce__(self) -> tuple[type[BlockFailed], tuple[int, str]]:
        return type(self), (self.block, self.reason)


class WorkerLost(BlockFailed):
    """The worker of block `block` died or fell silent, without an error of the block's own."""


class ClusterError(BllError):
    """A Ray cluster does not answer, has no room for the blocks, or does not share the run's folder."""


class Diverged(BllError):
    """A local loss is not finite."""


class CheckpointError(BllError):
    """A checkpoint is missing, incomplete or damaged."""


class ExportError(BllError):
    """The exported graph differs from the network by more than the tolerance."""
