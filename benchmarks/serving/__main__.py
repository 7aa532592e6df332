"""The service's measurements, on an otherwise idle machine.

python -m benchmarks.serving                      all of them but the soak, which takes an hour
python -m benchmarks.serving latency throughput   some
python -m benchmarks.serving soak --quick         a moment each, to see that it runs; the result goes to .bench/
"""

from __future__ import annotations

import argparse
import signal
import sys

from benchmarks.serving.conditions import overload, sharing, soak, startup, stops
from benchmarks.serving.effort import FULL, QUICK
from benchmarks.serving.sameness import sameness
from benchmarks.serving.speed import latency, overhead, peers, throughput

MEASUREMENTS = {
    "latency": latency,
    "throughput": throughput,
    "overhead": overhead,
    "startup": startup,
    "overload": overload,
    "sharing": sharing,
    "stops": stops,
    "sameness": sameness,
    "peers": peers,
    "soak": soak,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="MEASUREMENT", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="a moment each, to see that everything runs")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(MEASUREMENTS):
        parser.error(f"measurements are {', '.join(MEASUREMENTS)}, got {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of what ends the processes being measured
    for name in arguments.what or [name for name in MEASUREMENTS if name != "soak"]:
        MEASUREMENTS[name](QUICK if arguments.quick else FULL)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
