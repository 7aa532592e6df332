"""The method's measurements.

python -m benchmarks.method run --only 'cnn/*' --seeds 0 --jobs 2
python -m benchmarks.method report
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase

from benchmarks.method.groups import GROUPS
from benchmarks.method.report import report
from benchmarks.method.results import Results
from benchmarks.method.runner import Runner, predictions, summary
from benchmarks.method.trials import Store, Trial


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.command == "run":
        return _run(arguments)
    report(Results(GROUPS, Store(), predictions))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    trials = _chosen(arguments.only, arguments.seeds)
    if arguments.list:
        for trial in trials:
            stored = Store().read(trial)
            print(f"{trial.key:52}  {summary(stored) if stored else 'not measured'}")
        return 0
    failed = Runner(trust=arguments.trust).run(trials, arguments.jobs)
    for trial in failed:
        print(f"failed: {trial.key}")
    return 1 if failed else 0


def _chosen(patterns: list[str], seeds: list[int] | None) -> list[Trial]:
    return [
        trial
        for group in GROUPS
        for trial in group.trials()
        if any(fnmatchcase(f"{trial.group}/{trial.name}", pattern) for pattern in patterns)
        and (seeds is None or trial.seed in seeds)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run", help="measure what is not measured yet, in the order of priority")
    run.add_argument("--only", metavar="GLOB", nargs="+", default=["*"], help="trials by group/name")
    run.add_argument("--seeds", metavar="N", type=int, nargs="+")
    run.add_argument("--jobs", metavar="N", type=int, default=2, help="trials side by side, a thread each")
    run.add_argument("--trust", action="store_true", help="do not probe whether the code still behaves the same")
    run.add_argument("--list", action="store_true", help="say what there is and what is measured, and end")
    commands.add_parser("report", help="write results by group, and docs/results.md")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
