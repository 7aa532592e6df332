"""Resident memory of processes, as the kernel counts it."""

from __future__ import annotations

import multiprocessing
import os
import re
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from bll.executors.processes import PRELOAD


def resident_bytes(pid: int) -> int:
    """What the process holds now."""
    return _status_bytes(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """The most that it has held since it started, or since `reset_peak`."""
    return _status_bytes(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def grandchildren(pid: int) -> list[int]:
    """Of a process that runs the executor `processes`: its workers, which are the fork server's children."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold anything; the parent's number is the second field after it.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        children.setdefault(parent, []).append(int(folder.name))
    return [grandchild for child in children.get(pid, []) for grandchild in children.get(child, [])]


def worker_baseline_bytes() -> int:
    """What a process of the fork server holds that has the same modules as a worker, and has built nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sender,))
    process.start()
    sender.close()
    held: int = receiver.recv()
    process.join()
    return held


def baseline_bytes() -> int:
    """What this process holds once its libraries are loaded and set up, before anything of a run is read or built.

    Torch loads much of its code, and sets up its kernels' work space, with the first operations: a training step of a
    network of a few units comes first.
    """
    images, few = torch.rand(2, 1, 8, 8), 4
    convolutions = nn.Sequential(nn.Conv2d(1, few, 3, padding=1, bias=False), nn.BatchNorm2d(few), nn.ReLU())
    dense = nn.Sequential(nn.LayerNorm(few), nn.Linear(few, few), nn.GELU(), nn.Softplus())
    optimizer = torch.optim.AdamW([*convolutions.parameters(), *dense.parameters()], fused=True)
    hidden = convolutions(images).flatten(2).transpose(1, 2).unsqueeze(1)
    attended = F.scaled_dot_product_attention(hidden, hidden, hidden)
    torch.autograd.backward(torch.log_softmax(dense(attended), -1).mean())
    optimizer.step()
    del images, convolutions, dense, optimizer, hidden, attended
    return resident_bytes(os.getpid())


def _tell(sender: Connection) -> None:
    torch.set_num_threads(1)
    sender.send(baseline_bytes())


def _status_bytes(pid: int, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match, f"the kernel tells {name} of process {pid}"
    return int(match[1]) * 1024
