"""What a runner tells of its run, line by line, and what follows from it."""

from __future__ import annotations

import json

from bll.events import BlockProgress, RegressionEvaluation, RolledBack, RunEnded, from_json
from bll.plan import Plan
from bll_server.jobs.pace import Pace
from bll_server.jobs.records import Failure, Progress, RunEvent


class Report:
    """One run, as far as it has been told."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._blocks: dict[int, BlockProgress] = {}
        self._pace = Pace(plan.steps_per_epoch)
        self.started = False
        """The runner is ready to train."""
        self.exported = False
        """The model lies in the job's staging folder."""
        self.seconds: dict[str, float] = {}
        """Times that parts of it took, once exported."""
        self.failure: Failure | None = None

    def hear(self, line: str) -> RunEvent | None:
        """Take in one line; the event in it that is kept with the job, if there is one. Raises ValueError."""
        values = json.loads(line)
        match values.get("event"):
            case "Started":
                self.started = True
            case "Exported":
                self.exported = True
                self.seconds = {name: float(value) for name, value in values.items() if name != "event"}
            case "Failed":
                self.failure = Failure(values["kind"], values["message"], values["block"])
            case _:
                event = from_json(line)
                if isinstance(event, BlockProgress):
                    self._blocks[event.block] = event
                elif isinstance(event, RolledBack):
                    self._blocks.clear()  # what the blocks had done is to be done again
                return None if isinstance(event, RunEnded | RegressionEvaluation) else event
        return None

    def progress(self) -> Progress | None:
        """Steps that every block has done, and the time to the last one; None before every block has reported."""
        if len(self._blocks) < self._plan.num_blocks:
            return None
        rows = self._plan.config.batch_size
        slowest = min(self._blocks.values(), key=lambda block: block.step)
        self._pace.reached(slowest.step)
        # At first what the blocks say of themselves must do.
        rate = self._pace.steps_per_s() or min(block.samples_per_s for block in self._blocks.values()) / rows
        left = self._plan.total_steps - slowest.step
        return Progress(slowest.step, slowest.epoch, rate * rows, left / rate if rate > 0 else None, rate)
