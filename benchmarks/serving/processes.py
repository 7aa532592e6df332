"""Servers in processes of their own, and what the kernel tells of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine.resident import resident_bytes

_STOP_S = 60.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Serving:
    """A server that has said that it serves."""

    process: subprocess.Popen[str]
    address: str

    @property
    def pids(self) -> list[int]:
        """The process and all that come from it."""
        return _family(self.process.pid)

    def cpu_s(self) -> float:
        """Processor time until now."""
        return sum(map(_cpu_s, self.pids))

    def resident_mib(self) -> float:
        """Of the process itself: what it starts beside itself (our planner, say) answers no calls."""
        return resident_bytes(self.process.pid) / 2**20

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_S)


@contextmanager
def serving(command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> Iterator[Serving]:
    """A server that is there as long as the context, once it has printed on what address it serves."""
    with log.open("a") as errors:
        process = subprocess.Popen(
            command,
            env=os.environ | dict(variables or {}),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    with process:
        try:
            assert process.stdout is not None
            match = re.match(r".*serving on (\S+?)(,|$)", process.stdout.readline())
            if match is None:
                raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
            yield Serving(process, match[1])
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """End a server and all that come from it, which may have ended already."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def bll(data_dir: Path, *flags: str) -> list[str]:
    """The command of a server of ours on loopback."""
    ports = [] if any(flag.startswith("--port") for flag in flags) else ["--port=0"]
    command = [sys.executable, "-m", "bll_server", "--metrics-port=0", f"--data-dir={data_dir}"]
    return [*command, *ports, *flags]


def bare(graph: Path) -> list[str]:
    """The command of the bare loop."""
    return [sys.executable, "-m", "benchmarks.serving.bare", str(graph)]


def wait_for(holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Ask `holds()` until it is true. Raises TimeoutError."""
    end_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(0.05)


def settled(server: Serving) -> None:
    """Wait until the server, and what it starts beside itself, is idle: what they do at first is no call's cost."""
    for _ in range(120):
        before_s = server.cpu_s()
        time.sleep(0.5)
        if server.cpu_s() - before_s <= 0.05:
            return
    raise TimeoutError("the server does not come to rest")


def _family(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        children.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
