"""How a trial is trained and scored. A measuring function returns figures by name, and arrays worth keeping.

Figures of a prediction are called `mixture.accuracy`, `product.nll`, `exit1.ece`, ... Times are those of the process's
own CPU wherever other work on the machine would disturb them.
Shapes: B rows, C classes, K exits.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.method.paired import log_prediction
from bll import data
from bll.checkpoint import write_atomically
from bll.config import TrainingConfig
from bll.evaluation import ScoreMeter, mean_iou
from bll.events import CheckpointSaved, Event, RegressionScores, Scores
from bll.model import TrainedModel
from bll.plan import Plan
from bll.regression.scores import INTERVAL
from bll.selective import aurc, error_auroc
from bll.training import fit, fit_regression

_BATCH = 1000
_ELAPSED = "elapsed.json"


@dataclass(frozen=True)
class Task:
    """What a measuring function is given."""

    config: TrainingConfig
    run_dir: Path
    data_root: Path | None
    bases: tuple[Path, ...] = ()
    """Folders of the runs whose networks are to be scored."""
    seeds: tuple[int, ...] = ()
    """Their seeds."""


@dataclass(frozen=True)
class Measured:
    """What one trial gave."""

    figures: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]
    """Log-probabilities of exits (K, B, C) and true classes (B,) of each split: `test_exits`, `test_targets`. A
    prediction that is no exit, mixture or product has its own, (B, C): `test_tempered`."""
    cuts: tuple[int, ...]


def classifier(task: Task) -> Measured:
    """Train and score every exit, mixture and product on test rows; keeps what is said of validation rows too."""
    model, figures = trained(task)
    plan = model.plan
    dataset = data.load(plan.config.data, plan.config.seed, task.data_root)
    arrays: dict[str, np.ndarray] = {}
    for split, rows in (("validation", dataset.validation), ("test", dataset.test)):
        start = time.process_time()
        exits_KBC = log_exits(model, rows.inputs)
        if split == "test":
            figures["predict_us"] = (time.process_time() - start) / len(rows) * 1e6
            figures |= scores(exits_KBC, rows.targets)
        arrays |= {f"{split}_exits": exits_KBC, f"{split}_targets": rows.targets}
    return Measured(figures, arrays, plan.config.blocks.cuts)


def positions(task: Task) -> Measured:
    """Train and score targets with positions, each of which counts as a row; none is kept by itself."""
    model, figures = trained(task)
    return Measured(figures | _evaluated(model), {}, model.plan.config.blocks.cuts)


def segmentation(task: Task) -> Measured:
    """As `positions`, with the mean intersection over union of the mixture's classes."""
    model, figures = trained(task)
    figures |= _evaluated(model) | {"mixture.iou": mean_iou(model.confusion("test"))}
    for index in range(model.plan.num_blocks):
        figures[f"exit{index + 1}.iou"] = mean_iou(model.confusion("test", index))
    return Measured(figures, {}, model.plan.config.blocks.cuts)


def reconstruction(task: Task) -> Measured:
    """Train and score real-valued targets: error, likelihood, how variances rank errors, and 90 % intervals.

    `coverage` is that of the mixture of Gaussians as it is, `calibrated_coverage` that after validation rows.
    """
    clock = Clock(task.run_dir)
    model = fit_regression(task.config, run_dir=task.run_dir, data_root=task.data_root, on_event=clock.event)
    figures, evaluation = costs(model.plan, clock), model.evaluate("test")
    figures |= _flat({"mixture": evaluation.mixture} | _exits(evaluation.exits))
    mixture = evaluation.mixture
    figures["mixture.rank_above_map"] = mixture.rank_correlation - mixture.map_rank_correlation
    interval = next(c for c in model.evaluate_calibration("test").coverages if c.asked == INTERVAL)
    figures |= {
        "mixture.calibrated_coverage": interval.found,
        "mixture.calibrated_width": interval.mean_width,
        "mixture.variance_scale": model.calibration.mixture.variance_scale,
    }
    return Measured(figures, {}, model.plan.config.blocks.cuts)


def smoke(task: Task) -> Measured:
    """Train a few steps: step time and memory, no scores."""
    model, figures = trained(task)
    return Measured(figures, {}, model.plan.config.blocks.cuts)


def trained(task: Task) -> tuple[TrainedModel, dict[str, float]]:
    """The model, and what its training cost. A run that was cut short goes on from its last checkpoint."""
    clock = Clock(task.run_dir)
    model = fit(task.config, run_dir=task.run_dir, data_root=task.data_root, on_event=clock.event)
    return model, costs(model.plan, clock)


def costs(plan: Plan, clock: Clock) -> dict[str, float]:
    """Size of the network, and time and memory of its training in this process."""
    return {
        "parameters": sum(block.parameters for block in plan.blocks),
        "mflops": sum(block.flops for block in plan.blocks) / 1e6,
        "train_wall_s": clock.wall_s,
        "train_cpu_s": clock.cpu_s,
        "step_ms": clock.cpu_s / plan.total_steps * 1e3,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


@torch.no_grad()
def log_exits(model: TrainedModel, inputs: np.ndarray) -> np.ndarray:
    """log p_k(y|x) of every exit, float32 (K, B, C). The network alone: nothing is calibrated for it."""
    starts = range(0, len(inputs), _BATCH)
    batches = (torch.from_numpy(data.as_float(inputs[start : start + _BATCH])) for start in starts)
    exits_KBC = torch.cat([model.network(batch).exit_probabilities for batch in batches]).numpy().swapaxes(0, 1)
    log_probs_KBC: np.ndarray = np.log(np.maximum(exits_KBC, np.finfo(np.float32).tiny))
    return log_probs_KBC


def scores(exits_KBC: np.ndarray, targets_B: np.ndarray) -> dict[str, float]:
    """Accuracy, NLL, calibration error and Brier score of each prediction; of the mixture also how it ranks errors."""
    named = {name: log_prediction(exits_KBC, name) for name in ("mixture", "product")}
    named |= {f"exit{k}": log_exit_BC for k, log_exit_BC in enumerate(exits_KBC, 1)}
    figures: dict[str, float] = {}
    for name, log_probs_BC in named.items():
        figures |= prediction_scores(name, log_probs_BC, targets_B)
    exit_nll = sum(figures[f"exit{k}.nll"] for k in range(1, len(exits_KBC) + 1)) / len(exits_KBC)
    return figures | {"mixture_gap": exit_nll - figures["mixture.nll"]} | ranking(named["mixture"], targets_B)


def prediction_scores(name: str, log_probs_BC: np.ndarray, targets_B: np.ndarray) -> dict[str, float]:
    """Accuracy, NLL, calibration error and Brier score of one prediction."""
    meter = ScoreMeter(log_probs_BC.shape[1])
    meter.add(log_probs_BC, targets_B)
    return {f"{name}.{score.removesuffix('_nats')}": value for score, value in asdict(meter.scores()).items()}


def ranking(log_mixture_BC: np.ndarray, targets_B: np.ndarray) -> dict[str, float]:
    """How the mixture's largest probability tells errors apart; nothing where there are none."""
    correct_B = log_mixture_BC.argmax(1) == targets_B
    if correct_B.all() or not correct_B.any():
        return {}
    doubt_B = -log_mixture_BC.max(1)
    return {"mixture.error_auroc": error_auroc(doubt_B, correct_B), "mixture.aurc": aurc(doubt_B, correct_B)}


def _evaluated(model: TrainedModel) -> dict[str, float]:
    """The library's own scores of every prediction on test rows."""
    evaluation = model.evaluate("test")
    return _flat({"mixture": evaluation.mixture, "product": evaluation.product} | _exits(evaluation.exits))


AnyScores = Scores | RegressionScores


def _exits(scores_K: Sequence[AnyScores]) -> dict[str, AnyScores]:
    return {f"exit{k}": values for k, values in enumerate(scores_K, 1)}


def _flat(named: Mapping[str, AnyScores]) -> dict[str, float]:
    return {
        f"{name}.{score.removesuffix('_nats')}": value
        for name, values in named.items()
        for score, value in asdict(values).items()
    }


class Clock:
    """Seconds of training, kept with each checkpoint so that a run that goes on counts those before it too."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / _ELAPSED
        before = json.loads(self._path.read_text()) if self._path.exists() else {"wall_s": 0.0, "cpu_s": 0.0}
        self.wall_s: float = before["wall_s"]
        self.cpu_s: float = before["cpu_s"]
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def event(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            wall, cpu = time.perf_counter(), time.process_time()
            self.wall_s += wall - self._wall
            self.cpu_s += cpu - self._cpu
            self._wall, self._cpu = wall, cpu
            write_atomically(self._path, json.dumps({"wall_s": self.wall_s, "cpu_s": self.cpu_s}).encode())
