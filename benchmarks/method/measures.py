"""How a trial is trained and scored. A measuring function returns figures by name, and arrays worth keeping.

Figures of a prediction are called `mixture.accuracy`, `product.nll`, `exit1.ece`, ... Times are those of the process's
own CPU wherever other work on the machine would disturb them.
Shapes: B rows, C classes, K exits.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from bll import data
from bll.checkpoint import write_atomically
from bll.config import TrainingConfig
from bll.data import Split
from bll.events import CheckpointSaved, Event
from bll.exits import EvaluationMeter
from bll.model import TrainedModel
from bll.training import fit

_BATCH = 1000
_ELAPSED = "elapsed.json"


@dataclass(frozen=True)
class Measured:
    """What one trial gave."""

    figures: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]
    """Log-probabilities of exits (K, B, C) and true classes (B,) of each split: `test_exits`, `test_targets`."""
    cuts: tuple[int, ...]


Measure = Callable[[TrainingConfig, Path, Path | None], Measured]
"""Of a config, the folder of its run and the root of its data."""


def classifier(config: TrainingConfig, run_dir: Path, data_root: Path | None) -> Measured:
    """Train in `run_dir` and score every exit, mixture and product on validation and test rows."""
    model, figures = trained(config, run_dir, data_root)
    plan = model.plan
    dataset = data.load(plan.config.data, plan.config.seed, data_root)
    arrays: dict[str, np.ndarray] = {}
    for split, rows in (("validation", dataset.validation), ("test", dataset.test)):
        start = time.process_time()
        exits_KBC = log_exits(model, rows)
        if split == "test":
            figures["predict_us"] = (time.process_time() - start) / len(rows) * 1e6
            figures |= scores(exits_KBC, rows.targets)
        arrays |= {f"{split}_exits": exits_KBC, f"{split}_targets": rows.targets}
    return Measured(figures, arrays, plan.config.blocks.cuts)


def smoke(config: TrainingConfig, run_dir: Path, data_root: Path | None) -> Measured:
    """Train a few steps: step time and memory, no scores."""
    model, figures = trained(config, run_dir, data_root)
    return Measured(figures, {}, model.plan.config.blocks.cuts)


MEASURES: Mapping[str, Measure] = {"classifier": classifier, "smoke": smoke}


def trained(config: TrainingConfig, run_dir: Path, data_root: Path | None) -> tuple[TrainedModel, dict[str, float]]:
    """The model, and what its training cost. A run that was cut short goes on from its last checkpoint."""
    clock = _Clock(run_dir)
    model = fit(config, run_dir=run_dir, data_root=data_root, on_event=clock.event)
    blocks, steps = model.plan.blocks, model.plan.total_steps
    return model, {
        "parameters": sum(block.parameters for block in blocks),
        "mflops": sum(block.flops for block in blocks) / 1e6,
        "train_wall_s": clock.wall_s,
        "train_cpu_s": clock.cpu_s,
        "step_ms": clock.cpu_s / steps * 1e3,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def log_exits(model: TrainedModel, rows: Split) -> np.ndarray:
    """log p_k(y|x) of every exit, float32 (K, B, C)."""
    parts = [
        model.predict(rows.inputs[start : start + _BATCH])["exit_probabilities"]
        for start in range(0, len(rows), _BATCH)
    ]
    exits_KBC = np.concatenate(parts).swapaxes(0, 1)
    log_probs_KBC: np.ndarray = np.log(np.maximum(exits_KBC, np.finfo(np.float32).tiny))
    return log_probs_KBC


def scores(exits_KBC: np.ndarray, targets_B: np.ndarray) -> dict[str, float]:
    """Accuracy, NLL, calibration error and Brier score of each prediction; of the mixture also how it ranks errors."""
    meter = EvaluationMeter("test", len(exits_KBC), exits_KBC.shape[-1])
    meter.add(exits_KBC, targets_B)
    evaluation = meter.evaluation(epoch=0, step=0)
    named = {"mixture": evaluation.mixture, "product": evaluation.product}
    named |= {f"exit{k}": exit_scores for k, exit_scores in enumerate(evaluation.exits, 1)}
    figures = {
        f"{prediction}.{name.removesuffix('_nats')}": value
        for prediction, values in named.items()
        for name, value in asdict(values).items()
    }
    mixture_BC = np.exp(exits_KBC.astype(np.float64)).mean(0)
    wrong_B = mixture_BC.argmax(1) != targets_B
    if 0 < wrong_B.sum() < len(wrong_B):
        figures["mixture.error_auroc"] = float(roc_auc_score(wrong_B, -mixture_BC.max(1)))
    return figures | {"mixture_gap": evaluation.mixture_gap_nats}


class _Clock:
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
