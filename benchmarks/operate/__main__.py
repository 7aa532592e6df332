"""What the service bears in operation, on an otherwise idle machine.

python -m benchmarks.operate                     all of them
python -m benchmarks.operate watchers            some
python -m benchmarks.operate watchers --quick    a small one, to see that it runs; the result goes to .bench/
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from benchmarks.operate.list_jobs import list_jobs
from benchmarks.operate.watchers import watchers

MEASUREMENTS: dict[str, Callable[[bool], None]] = {
    "list_jobs": list_jobs,
    "watchers": watchers,
}
"""Each is told whether it shall be quick."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="MEASUREMENT", help=f"{', '.join(MEASUREMENTS)}; without one, all")
    parser.add_argument("--quick", action="store_true", help="a small one, to see that everything runs")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(MEASUREMENTS):
        parser.error(f"measurements are {', '.join(MEASUREMENTS)}, got {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of what ends the servers
    for name in arguments.what or MEASUREMENTS:
        MEASUREMENTS[name](arguments.quick)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
