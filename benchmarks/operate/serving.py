"""A server in a process of its own, whose jobs run a program in the runner's place.

`python -m benchmarks.operate.serving MODULE FLAGS...` prints its address, and ends with its stdin.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bll_server.app import Server
from bll_server.settings import Settings


@dataclass(frozen=True)
class Serving:
    """Where it is, and which process."""

    address: str
    pid: int
    log: Path


@contextmanager
def serving(module: str, *flags: str) -> Iterator[Serving]:
    """A server that is there as long as the context, on a data directory of its own."""
    with tempfile.TemporaryDirectory(prefix="bll-bench-") as folder:
        ports = ("--port", "0", "--metrics-port", "0", "--data-dir", folder)
        command = [sys.executable, "-m", "benchmarks.operate.serving", module, *ports, *flags]
        log = Path(folder) / "log"
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
        ):
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                address = child.stdout.readline().strip()
                if not address:
                    raise RuntimeError(f"the server did not start: {log.read_text()}")
                yield Serving(address, child.pid, log)
                child.stdin.close()
                child.wait(60)
            finally:
                child.kill()


def main(module: str, flags: list[str]) -> int:
    server = Server(Settings.from_flags(flags), [sys.executable, "-m", module])
    print(server.address, flush=True)
    sys.stdin.read()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
