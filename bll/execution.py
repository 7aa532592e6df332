"""How a run is executed and watched: the part of its description that says nothing of what is learned.

Torch is not imported here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bll.choices import ExecutorName, PrecisionName, Recovery
from bll.rules import Rules, shown

_DEVICE = re.compile(r"cpu|auto|cuda(:(0|[1-9]\d?))?")
_MAX_DEVICES = 257
_ADDRESS = re.compile(r"[^\s/:]+:(\d{1,5})")


@dataclass(frozen=True)
class ExecutorConfig:
    """Who runs the blocks, and how. Nothing here but what `decisive` keeps may change the result."""

    name: ExecutorName = ExecutorName.AUTO
    threads_per_block: int = 1
    """Intra-operation threads of each block, 1 to 256; 1 and 2 differ in the last bits."""
    messages_in_flight: int = 4
    """Messages that wait between two blocks at most, 1 to 64."""
    checkpoint_steps: int = 0
    """Steps between checkpoints, 0 to 10 million; 0 = one at the end of each epoch."""
    num_workers: int = 0
    """Threads, processes or actors that the blocks share, 0 to 257, at most one a block; 0 = one a block."""
    pin_cpus: bool = False
    """Whether each worker keeps to cores of its own, `threads_per_block` many: executor `processes` only."""
    devices: tuple[str, ...] = ("cpu",)
    """Where blocks compute, one for all of them or one each: `cpu`, `cuda` (the first), `cuda:1`, or `auto`: the CUDA
    devices that there are, each for as many blocks in a row, else the CPU."""
    precision: PrecisionName = PrecisionName.FLOAT32
    """What layers and readouts compute in, and messages travel in."""
    checkpoints_kept: int = 2
    """Newest checkpoints that stay on disk, 1 to 100: where one is damaged, a run goes on from the one before."""
    recovery: Recovery = Recovery.EXACT
    """What becomes of a run whose worker was killed, died or fell silent. `continue` is for processes: the worker's
    blocks go on with the weights that they last saved while the others train, so the result is not reproducible."""
    max_restarts: int = 3
    """Losses of a worker that a run survives between two checkpoints, 0 to 1,000; one more, and it fails."""
    heartbeat_seconds: float = 30.0
    """Silence after which a worker process counts as lost, 1 to 3,600; 0 = however long it is silent."""
    address: str = ""
    """Of the Ray cluster that executor `ray` runs on, host:port of its head; empty = Ray is started on this machine."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.member("name", self.name, ExecutorName)
        rules.whole("threads_per_block", self.threads_per_block, 1, 256)
        rules.whole("messages_in_flight", self.messages_in_flight, 1, 64)
        rules.whole("checkpoint_steps", self.checkpoint_steps, 0, 10_000_000)
        rules.whole("num_workers", self.num_workers, 0, 257)
        rules.flag("pin_cpus", self.pin_cpus)
        _check_devices(rules, self.devices)
        rules.member("precision", self.precision, PrecisionName)
        rules.whole("checkpoints_kept", self.checkpoints_kept, 1, 100)
        rules.member("recovery", self.recovery, Recovery)
        rules.whole("max_restarts", self.max_restarts, 0, 1000)
        if self.heartbeat_seconds != 0:
            rules.within("heartbeat_seconds", self.heartbeat_seconds, 1, 3600)
        _check_address(rules, self.address, self.name)
        rules.done()

    def decisive(self) -> ExecutorConfig:
        """What of it decides the bits of a result: of a device its kind, not its number."""
        kinds = tuple(device.partition(":")[0] for device in self.devices)
        return ExecutorConfig(
            threads_per_block=self.threads_per_block,
            devices=kinds[:1] if len(set(kinds)) == 1 else kinds,
            precision=self.precision,
        )


def _check_devices(rules: Rules, devices: Any) -> None:
    if not isinstance(devices, tuple) or not 1 <= len(devices) <= _MAX_DEVICES:
        received = len(devices) if isinstance(devices, tuple) else shown(devices)
        rules.fail("devices", f"must list 1 to {_MAX_DEVICES} entries, got {received}")
        return
    for i, device in enumerate(devices):
        if not isinstance(device, str) or not _DEVICE.fullmatch(device):
            rules.fail(f"devices[{i}]", f"must be cpu, cuda, cuda and a number (cuda:1), or auto, got {shown(device)}")


def _check_address(rules: Rules, address: Any, name: ExecutorName) -> None:
    parts = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if address != "" and not (parts and 1 <= int(parts[1]) <= 65535):
        rules.fail("address", f"must be host:port of a Ray cluster's head, or empty, got {shown(address)}")
    elif address and name is not ExecutorName.RAY:
        rules.fail("address", f"must be empty for an executor other than 'ray', got {shown(address)}")


@dataclass(frozen=True)
class DiagnosticsConfig:
    """What is looked at while blocks train, and how often. Nothing here changes the result."""

    per_epoch: int = 2
    """Times an epoch that each block is examined, 0 (never; no alarm is raised then) to 10."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.whole("per_epoch", self.per_epoch, 0, 10)
        rules.done()
