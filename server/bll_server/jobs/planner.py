"""Resolving a config needs the network itself, hence torch: it is done in a child process that is kept warm.

The child, `python -m bll_server.jobs.planner DATASETS`, reads one config a line and answers with one line: a plan, the
rules that the config breaks, or its own failure.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from bll.choices import TargetName
from bll.config import TrainingConfig
from bll.errors import DataError, InvalidConfig, Violation
from bll.plain import from_dict, to_dict
from bll.plan import Plan
from bll_server.errors import InvalidRequest, Overloaded, ShuttingDown
from bll_server.jobs.records import plan_from_json, plan_to_json
from bll_server.own_memory import data_bytes

log = logging.getLogger(__name__)

_MEMORY_BYTES = 4 * 2**30
"""What a plan may take beside torch itself; no spec can make this machine swap."""
_TOO_LARGE = Violation(
    "job.spec", f"must be plannable in {_MEMORY_BYTES // 2**30} GiB of memory and in the time of a call"
)


class Planner:
    """Turns configs into plans, one at a time."""

    def __init__(self, datasets: Path, timeout_s: float = 60.0) -> None:
        """Start the child, which imports torch while the server already serves."""
        self._command = [sys.executable, "-m", "bll_server.jobs.planner", str(datasets)]
        self._timeout_s = timeout_s
        self._busy = threading.Lock()
        self._closed = False
        self._child = self._start()

    def plan(self, config: TrainingConfig) -> Plan:
        """What `config` comes to. Raises InvalidRequest with paths of a request, Overloaded."""
        if config.data.target is not TargetName.LABELS:
            rule = f"must be 'labels' for a job of the service, which serves classes, got '{config.data.target}'"
            raise InvalidRequest(Violation("job.spec.data.target", rule))
        if not self._busy.acquire(timeout=self._timeout_s):
            raise Overloaded("the planner is busy with other jobs")
        try:
            answer = self._ask(json.dumps(to_dict(config)))
        finally:
            self._busy.release()
        if answer is None or "too_large" in answer:
            raise InvalidRequest(_TOO_LARGE)
        if "violations" in answer:
            raise InvalidRequest(*(Violation(f"job.spec.{field}", text) for field, text in answer["violations"]))
        if "fault" in answer:
            raise RuntimeError(f"the planner failed: {answer['fault']}")
        plan = plan_from_json(answer["plan"])
        _check_targets(plan)
        _check_memory(plan)
        return plan

    def close(self) -> None:
        """End the child; a plan that is being made comes to nothing."""
        self._closed = True
        self._child.kill()
        with self._busy:
            self._child.communicate()

    def _ask(self, line: str) -> dict[str, Any] | None:
        """The child's answer; None if it ran out of memory or time."""
        if self._closed:
            raise ShuttingDown("the server is shutting down and plans no more jobs")
        if self._child.poll() is not None:
            log.warning("the planner had died with status %s; started again", self._child.returncode)
            self._child.communicate()
            self._child = self._start()
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        deadline = threading.Timer(self._timeout_s, self._child.kill)
        deadline.start()
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            deadline.cancel()
        if answer:
            answered: dict[str, Any] = json.loads(answer)
            return answered
        self._child.wait()
        if self._closed:
            raise ShuttingDown("the server is shutting down and plans no more jobs")
        return None

    def _start(self) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C in the terminal is for the server, which ends its children in order.
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )


def _check_targets(plan: Plan) -> None:
    """Raises InvalidRequest for targets whose predictions the service has no messages for."""
    if plan.target_shape:
        rule = "must be a data set with one class a row: predictions of more are not served, bll.fit trains them"
        received = f"got {plan.config.data.name!r} with targets of shape {list(plan.target_shape)}"
        raise InvalidRequest(Violation("job.spec.data.name", f"{rule}; {received}"))


def _check_memory(plan: Plan) -> None:
    """Raises InvalidRequest for what cannot be trained here: it would take the server down with it."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parameters, rows = sum(block.parameters for block in plan.blocks), plan.config.batch_size
    rule = f"must fit into the {available / 2**30:.3g} GiB of memory of this machine"
    if (needed := sum(block.parameter_bytes for block in plan.blocks)) > available:
        received = f"got {parameters} parameters, which take {needed / 2**30:.3g} GiB to train"
        raise InvalidRequest(Violation("job.spec.network", f"{rule}, {received}"))
    if (needed := sum(plan.training_bytes(block) for block in range(plan.num_blocks))) > available:
        received = f"got {rows} rows, whose activations and losses bring a step to {needed / 2**30:.3g} GiB"
        raise InvalidRequest(Violation("job.spec.batch_size", f"{rule}, {received}"))


def _answer(line: str, datasets: Path) -> dict[str, Any]:
    from bll.partition import resolve

    try:
        return {"plan": plan_to_json(resolve(from_dict(TrainingConfig, json.loads(line)), datasets))}
    except InvalidConfig as error:
        return {"violations": [(v.field, v.description) for v in error.violations]}
    except DataError as error:
        return {"violations": [("data", str(error))]}
    except MemoryError:
        return {"too_large": True}
    except Exception as error:  # noqa: BLE001 - all leave as one line, which is what the server reads
        traceback.print_exc()
        return {"fault": repr(error)}


def main(datasets: Path) -> None:
    """Answer until the server closes the pipe, by its own will or by its death."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is not an answer
    import bll.partition  # noqa: F401 - warm before the first question

    # DATA, not AS: the address space of torch's libraries is many times what they use.
    most = data_bytes() + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    for line in sys.stdin:
        print(json.dumps(_answer(line, datasets)), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
