"""Ways of training a network, each measured in processes of its own that end with the measurement."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from benchmarks.engine.network import Loopback, Network
from benchmarks.engine.networks import BACKPROP, UNEXAMINED
from benchmarks.method.trials import Spec, merged
from bll.config import TrainingConfig
from bll.executors.processes import ENVIRONMENT
from bll.plain import from_dict

Figures = dict[str, float]

RIVALS = ("backprop", "ddp", "gpipe", "1f1b")

_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Window:
    """Training steps: `warm_up` that are not counted, then `repeats` times as many that are."""

    warm_up: int
    repeats: int
    """1 to 8."""

    @property
    def steps(self) -> int:
        return self.warm_up * self.repeats

    @property
    def steps_per_epoch(self) -> int:
        """So that a run reports after every `warm_up` steps, and its first epoch outlasts the window."""
        return 10 * self.warm_up


@dataclass(frozen=True)
class Contender:
    """One way of training a network."""

    kind: str
    """Of `RIVALS`, or `bll`; of the latter also its `forecast`, where it is first `cut`, and the same as a `job`, or
    with each worker `hosted` by itself."""
    spec: Spec
    window: Window
    threads: int = 1
    """Intra-operation threads of each process."""
    ranks: int = 1
    """Processes of `ddp`, `gpipe` and `1f1b`."""
    cuts: tuple[int, ...] = ()
    """First layers of a pipeline's stages but the first."""
    microbatches: int = 1
    round_trip_ms: float | None = None
    """Of the links between its processes; None = those within one host. Those of `bll` are rings that delay, those of
    `hosted` the network that rivals have."""

    def links(self) -> Network | Loopback:
        """What its ranks talk over."""
        if self.ranks == 1 or self.round_trip_ms is None:
            return Loopback()
        return Network(self.round_trip_ms / 1e3)

    def run_spec(self) -> Spec:
        """The spec of its run, in epochs that suit the window."""
        batch_size = self.spec.get("batch_size", TrainingConfig().batch_size)
        rows = {"data": {"train_rows": self.window.steps_per_epoch * batch_size}}
        rule = BACKPROP if self.kind in RIVALS else {}
        return merged(self.spec, UNEXAMINED, rows, rule)

    def config(self) -> TrainingConfig:
        """As `run_spec`. Raises InvalidConfig."""
        return from_dict(TrainingConfig, self.run_spec())


def measure(contender: Contender) -> Figures:
    """What the contender's first process says of it. Raises RuntimeError if one fails, or takes too long."""
    with tempfile.TemporaryDirectory(prefix="bll-bench-") as folder:
        links = contender.links()
        start = partial(_start, contender, links.device, f"file://{folder}/store")
        ranks = [links.on_new_host(partial(start, rank)) for rank in range(contender.ranks)]
        with _ended(ranks), links.carrying():
            said, _ = ranks[0].communicate(timeout=_TIMEOUT_S)
            if any(process.wait(timeout=_TIMEOUT_S) for process in ranks):
                raise RuntimeError(f"{contender.kind} failed with exit codes {[p.returncode for p in ranks]}")
    figures: Figures = json.loads(said.splitlines()[-1])
    return figures


def _start(contender: Contender, device: str, rendezvous: str, rank: int) -> subprocess.Popen[str]:
    """One process of a contender, in a session of its own; it reaches the others over the network device."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.engine.contend", to_json(contender), str(rank), rendezvous],
        env=environment(contender.threads) | {"GLOO_SOCKET_IFNAME": device},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def environment(threads: int) -> dict[str, str]:
    """The same for every contender: what the workers of executor `processes` have, and `threads` an operation."""
    return os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}


@contextlib.contextmanager
def _ended(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Leaves none of the processes behind, nor what they have started."""
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def to_json(contender: Contender) -> str:
    return json.dumps(asdict(contender), sort_keys=True)


def from_json(text: str) -> Contender:
    values = json.loads(text)
    return Contender(**values | {"window": Window(**values["window"]), "cuts": tuple(values["cuts"])})
