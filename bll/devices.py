"""Where blocks compute: the devices that a config names, found on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bll.errors import InvalidConfig, Violation
from bll.execution import ExecutorConfig


def resolved_devices(names: Sequence[str], num_blocks: int, *, apart: bool = True) -> tuple[str, ...]:
    """`names` with nothing left open: one for all blocks if they are equal, else one each.

    `auto` puts as many blocks in a row on each CUDA device, so that few messages go from one to another; all on the
    first if blocks are not to lie `apart`. Raises InvalidConfig for a device that is not here.
    """
    if all(name == "cpu" for name in names):  # and CUDA is not asked: that alone may start its driver
        return ("cpu",)
    here = ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))
    spread = here[1:] if apart else here[1:2]
    found, violations = [], []
    for block in range(num_blocks):
        number = block if len(names) > 1 else 0
        name = names[number]
        if name == "auto":
            name = spread[block * len(spread) // num_blocks] if spread else "cpu"
        elif name == "cuda":
            name = "cuda:0"
        if name not in here:
            rule = f"must be a device of this machine ({', '.join(here)}), got {names[number]!r}"
            violations.append(Violation(f"executor.devices[{number}]", rule))
        found.append(name)
    if violations:
        raise InvalidConfig(list(dict.fromkeys(violations)))
    return tuple(found[:1]) if len(set(found)) == 1 else tuple(found)


def wait_for_devices(config: ExecutorConfig) -> None:
    """Return when all that was queued on the devices of a resolved run has been done: for clocks, not for a run."""
    for name in config.devices:
        torch.get_device_module(torch.device(name)).synchronize(torch.device(name))


def cluster_devices(names: Sequence[str]) -> tuple[str, ...]:
    """As `resolved_devices`, where Ray gives each worker with a block on `cuda` a device of its own, on any machine.

    Raises InvalidConfig for a device that only a machine could name.
    """
    rule = "must be 'cpu' or 'cuda' for executor 'ray', which chooses the device, got "
    violations = [
        Violation(f"executor.devices[{number}]", f"{rule}{name!r}")
        for number, name in enumerate(names)
        if name not in ("cpu", "cuda", "cuda:0")
    ]
    if violations:
        raise InvalidConfig(violations)
    # A worker sees its device alone: for it, that is the first.
    found = tuple("cpu" if name == "cpu" else "cuda:0" for name in names)
    return found[:1] if len(set(found)) == 1 else found


def device_of(config: ExecutorConfig, block: int) -> torch.device:
    """The device of block `block` in a resolved run."""
    return torch.device(config.devices[block if len(config.devices) > 1 else 0])
