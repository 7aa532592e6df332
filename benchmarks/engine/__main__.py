"""The engine's measurements, on an otherwise idle machine.

python -m benchmarks.engine                     all of them
python -m benchmarks.engine throughput limit    some
python -m benchmarks.engine memory --quick      a step each, to see that it runs; the result goes to .bench/
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace

from benchmarks.engine.chaos import chaos
from benchmarks.engine.checkpoints import checkpoints
from benchmarks.engine.effort import FULL, QUICK
from benchmarks.engine.limit import limit
from benchmarks.engine.links import links
from benchmarks.engine.memory import memory
from benchmarks.engine.recovery import recovery
from benchmarks.engine.service import service
from benchmarks.engine.simulation import recordings, simulation
from benchmarks.engine.throughput import throughput

MEASUREMENTS = {
    "throughput": throughput,
    "limit": limit,
    "service": service,
    "memory": memory,
    "links": links,
    "recordings": recordings,
    "simulation": simulation,
    "checkpoints": checkpoints,
    "recovery": recovery,
    "chaos": chaos,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="MEASUREMENT", help=f"{', '.join(MEASUREMENTS)}; without one, all")
    parser.add_argument("--quick", action="store_true", help="a step each, to see that everything runs")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"of contenders in turns; {FULL.rounds} without it")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(MEASUREMENTS):
        parser.error(f"measurements are {', '.join(MEASUREMENTS)}, got {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of what ends the processes being measured
    effort = QUICK if arguments.quick else FULL
    effort = replace(effort, rounds=arguments.rounds or effort.rounds)
    for name in arguments.what or MEASUREMENTS:
        MEASUREMENTS[name](effort)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
