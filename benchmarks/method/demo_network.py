"""The demo's network under block-local learning and under backprop, side by side: same modules, data, epochs, seeds.

python -m benchmarks.method.demo_network        (make bench-demo-network)
"""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import yaml

from benchmarks.record import Row, write
from bll.choices import ExecutorName, FamilyName, Rule
from bll.config import TrainingConfig
from bll.events import Evaluation
from bll.plain import from_dict
from bll.training import fit

SEEDS = [0, 1, 2]
SPEC = Path(__file__).parents[2] / "examples" / "specs" / "fashion-mnist.yaml"


def demo_config() -> TrainingConfig:
    """The spec that `make demo` submits, without the name of its model."""
    values = yaml.safe_load(SPEC.read_text())
    del values["model_id"]
    return from_dict(TrainingConfig, values)


def contenders(seed: int) -> dict[str, TrainingConfig]:
    config = replace(demo_config(), seed=seed)
    # One thread each, two side by side. The weights are those of every executor, bit for bit.
    config = replace(config, executor=replace(config.executor, name=ExecutorName.SEQUENTIAL))
    gaussian = replace(config, latent=replace(config.latent, family=FamilyName.GAUSSIAN))
    return {
        "BLL, Bernoulli": config,
        "BLL, Gaussian with learned variance": gaussian,
        "backprop, same modules, Bernoulli head": replace(config, rule=Rule.BACKPROP),
        "backprop, same modules, Gaussian head": replace(gaussian, rule=Rule.BACKPROP),
    }


def measure(config: TrainingConfig) -> Evaluation:
    """Scores on the test rows."""
    return fit(config).evaluate("test")


def main() -> None:
    jobs = [(name, config) for seed in SEEDS for name, config in contenders(seed).items()]
    found: dict[str, list[Evaluation]] = {}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for (name, config), evaluation in zip(jobs, pool.map(measure, [config for _, config in jobs]), strict=True):
            found.setdefault(name, []).append(evaluation)
            mixture = evaluation.mixture
            told = f"accuracy {mixture.accuracy:.4f}  nll {mixture.nll_nats:.4f}  ece {mixture.ece:.4f}"
            print(f"seed {config.seed}  {name:40}  {told}", flush=True)
    rows = []
    for name, evaluations in found.items():
        measures = {
            "accuracy": ("fraction", [e.mixture.accuracy for e in evaluations]),
            "nll": ("nats", [e.mixture.nll_nats for e in evaluations]),
            "ece": ("fraction", [e.mixture.ece for e in evaluations]),
            "accuracy of the last exit": ("fraction", [e.exits[-1].accuracy for e in evaluations]),
            "accuracy of the first exit": ("fraction", [e.exits[0].accuracy for e in evaluations]),
        }
        for figure, (unit, values) in measures.items():
            target = 0.87 if figure == "accuracy" and name.startswith("BLL") else None
            rows.append(Row(f"{name}: {figure}, mean over seeds", statistics.mean(values), unit, target=target))
            rows.append(Row(f"{name}: {figure}, standard deviation over seeds", statistics.stdev(values), unit))
    path = write(
        "method",
        "demo_network",
        "python -m benchmarks.method.demo_network",
        SEEDS,
        rows,
        "Full Fashion-MNIST: 54k train, 6k validation, 10k test, nothing chosen on test. The mixture of a single "
        "block is its exit. The test set's own standard error is about 0.003.",
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
