"""From a plan to a trained model."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import nn

from bll.alarms import Watch
from bll.architectures.modules import Layers
from bll.choices import ExecutorName, TargetName
from bll.config import TrainingConfig
from bll.errors import InvalidConfig, Violation
from bll.events import Event
from bll.execution import DiagnosticsConfig
from bll.model import TrainedModel
from bll.partition import resolve
from bll.plain import to_dict
from bll.plan import Plan
from bll.regression.model import RegressionModel
from bll.supervision import Supervisor


class Training:
    """One run in a folder of its own. Made again on the same folder, it goes on from the newest checkpoint."""

    def __init__(self, plan: Plan, run_dir: Path, root: Path | None = None) -> None:
        self.plan = plan
        self.run_dir = run_dir
        self.root = root
        self._supervisor = Supervisor(plan, run_dir, root, _digest(plan))

    def events(self) -> Iterator[Event]:
        """Train, and tell. The last event is RunEnded; closing the iterator earlier ends the workers.

        After a pause or a cancellation, another iteration goes on from the newest checkpoint. A lost worker is told
        as RolledBack, and the run goes on, as often as `executor.max_restarts` allows.

        Raises BlockFailed, Diverged, CheckpointError or DataError.
        """
        watch = Watch(self.plan)
        for event in self._supervisor.events():
            yield event
            yield from watch.observe(event)

    def pause(self) -> None:
        """Ask for an end at the next marker, with a checkpoint. From any thread or signal handler; repeatable."""
        self._supervisor.pause()

    def cancel(self) -> None:
        """End the workers now: in a moment, or in threads at the end of a step. Steps after the newest checkpoint are
        lost. From any thread or signal handler; repeatable."""
        self._supervisor.cancel()

    def place(self, num_workers: int) -> None:
        """Let that many workers share the blocks from the next marker on; `events` goes on, the result is the same.

        From any thread. Raises InvalidConfig if there cannot be so many.
        """
        self._supervisor.place(num_workers)

    def model(self) -> TrainedModel:
        """The network of the newest checkpoint. Raises CheckpointError if there is none, or it is damaged."""
        return TrainedModel.load(self.plan, self.run_dir, _digest(self.plan), self.root)

    def regression_model(self) -> RegressionModel:
        """As `model`, of a run whose targets are real-valued."""
        return RegressionModel.load(self.plan, self.run_dir, _digest(self.plan), self.root)


def fit(
    config: TrainingConfig | None = None,
    *,
    run_dir: Path | None = None,
    data_root: Path | None = None,
    on_event: Callable[[Event], None] | None = None,
    network: nn.Sequential | Layers | None = None,
) -> TrainedModel:
    """Train to the end and return the model.

    `run_dir` keeps checkpoints, and a second call with it goes on from there; without it they are temporary.
    `data_root` is where data sets are looked for first. `on_event` sees each event as it comes. `network` is one of
    your own instead of `config.network`: its layers are its children; it is copied, and starts from its weights.
    Raises InvalidConfig or DataError before anything is trained, BlockFailed, Diverged or CheckpointError after.
    """
    config = config or TrainingConfig()
    if config.data.target is not TargetName.LABELS:
        rule = f"must be 'labels' for fit; fit_regression takes real-valued targets, got '{config.data.target}'"
        raise InvalidConfig([Violation("data.target", rule)])
    plan = resolve(config, data_root, auto=ExecutorName.THREADS, network=network)
    with _trained(plan, run_dir, data_root, on_event) as training:
        return training.model()


def fit_regression(
    config: TrainingConfig,
    *,
    run_dir: Path | None = None,
    data_root: Path | None = None,
    on_event: Callable[[Event], None] | None = None,
    network: nn.Sequential | Layers | None = None,
) -> RegressionModel:
    """As `fit`, for real-valued targets: `data.target` must be `inputs`, and the network is an autoencoder."""
    if config.data.target is TargetName.LABELS:
        rule = f"must be 'inputs' for fit_regression; fit takes labels, got '{config.data.target}'"
        raise InvalidConfig([Violation("data.target", rule)])
    plan = resolve(config, data_root, auto=ExecutorName.THREADS, network=network)
    with _trained(plan, run_dir, data_root, on_event) as training:
        return training.regression_model()


@contextmanager
def _trained(
    plan: Plan, run_dir: Path | None, root: Path | None, on_event: Callable[[Event], None] | None
) -> Iterator[Training]:
    """A run at its end, whose folder, if it has none of its own, is there as long as the context."""
    with tempfile.TemporaryDirectory(prefix="bll-") as temporary:
        training = Training(plan, run_dir or Path(temporary), root)
        for event in training.events():
            if on_event:
                on_event(event)
        yield training


def _digest(plan: Plan) -> str:
    """SHA-256 of what determines the weights: the config less what executors and diagnostics are free in, and the
    data."""
    config = replace(plan.config, executor=plan.config.executor.decisive(), diagnostics=DiagnosticsConfig())
    values = {"config": to_dict(config), "data": plan.dataset_digest}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
