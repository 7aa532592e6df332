"""What networks say of inputs that they may not know: block-local learning beside ensembles and Monte Carlo dropout.

Shapes: B rows, C classes, K exits, members or passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.method import made
from benchmarks.method.measures import Measured, Task, log_exits, prediction_scores, scores, trained
from benchmarks.method.networks import trained_before
from benchmarks.method.paired import log_prediction
from bll import baselines, data
from bll.calibration import score_calibration, tempered_log_probs
from bll.config import DataConfig
from bll.data import Dataset
from bll.plan import Plan
from bll.selective import auroc

_UNKNOWN_ROWS = 2000

Answer = Callable[[np.ndarray], np.ndarray]
"""From inputs to log-probabilities (K, B, C)."""


def single(task: Task) -> Measured:
    """One network: its mixture of exits raw and tempered, conformal sets, and its score of unlike inputs."""
    model = trained_before(task, 0)
    dataset = data.load(model.plan.config.data, model.plan.config.seed, task.data_root)
    figures, arrays = _scored(lambda inputs: log_exits(model, inputs), dataset, model.plan)
    known, calibration = dataset.test, model.calibration
    assert calibration, "every data set of these groups has one class a row"
    temperature = calibration.mixture.temperature
    tempered_BC = tempered_log_probs(log_prediction(arrays["test_exits"], "mixture"), temperature)
    figures |= prediction_scores("tempered", tempered_BC, known.targets) | {"temperature": temperature}
    for coverage in score_calibration(calibration, "test", arrays["test_exits"], known.targets).coverages:
        figures[f"set{coverage.asked:.0%}.coverage"] = coverage.found
        figures[f"set{coverage.asked:.0%}.size"] = coverage.mean_size
    known_B = model.predict(known.inputs)["ood_score"]
    others = unknown(dataset, model.plan.config.data.path)
    found = {name: auroc(known_B, model.predict(inputs)["ood_score"]) for name, inputs in others}
    figures |= _named("evidence", found)
    figures["ood"] = figures["ood.mean.evidence"]
    return Measured(figures, arrays | {"test_tempered": tempered_BC}, model.plan.config.blocks.cuts)


def ensemble(task: Task) -> Measured:
    """The mean prediction of networks trained apart. Their mixtures are its members."""
    models = [trained_before(task, index) for index in range(len(task.bases))]
    plan = models[0].plan
    dataset = data.load(plan.config.data, plan.config.seed, task.data_root)
    figures, arrays = _scored(lambda inputs: _members(baselines.ensemble(models, inputs)), dataset, plan)
    return Measured(figures, arrays, plan.config.blocks.cuts)


def mc_dropout(task: Task) -> Measured:
    """A network of its own, trained with dropout, and its mean prediction over passes that drop units too."""
    model, costs = trained(task)
    dataset = data.load(model.plan.config.data, task.config.seed, task.data_root)
    figures, arrays = _scored(lambda inputs: _members(baselines.mc_dropout(model, inputs)), dataset, model.plan)
    return Measured(costs | figures, arrays, model.plan.config.blocks.cuts)


def _members(answered: dict[str, np.ndarray]) -> np.ndarray:
    members_BKC = answered["member_probabilities"]
    log_probs_KBC: np.ndarray = np.log(np.maximum(members_BKC, np.finfo(np.float32).tiny)).swapaxes(0, 1)
    return log_probs_KBC


def _scored(answer: Answer, dataset: Dataset, plan: Plan) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores on test rows, and how well the mixture's entropy tells unknown inputs from these."""
    known, start = dataset.test, time.process_time()
    exits_KBC = answer(known.inputs)
    figures = {"predict_us": (time.process_time() - start) / len(known) * 1e6} | scores(exits_KBC, known.targets)
    known_B = _entropy(exits_KBC)
    others = unknown(dataset, plan.config.data.path)
    figures |= _named("entropy", {name: auroc(known_B, _entropy(answer(inputs))) for name, inputs in others})
    figures["ood"] = figures["ood.mean.entropy"]
    return figures, {"test_exits": exits_KBC, "test_targets": known.targets}


def _named(score: str, found: dict[str, float]) -> dict[str, float]:
    """AUROC of `score` for each kind of unknown input, and their mean."""
    return {f"ood.{name}.{score}": value for name, value in found.items()} | {
        f"ood.mean.{score}": float(np.mean(list(found.values())))
    }


def _entropy(exits_KBC: np.ndarray) -> np.ndarray:
    log_mixture_BC = log_prediction(exits_KBC, "mixture")
    entropy_B: np.ndarray = -(np.exp(log_mixture_BC) * log_mixture_BC).sum(1)
    return entropy_B


def unknown(dataset: Dataset, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Kinds of inputs that the network was not trained on, with their names, from test rows and a fixed seed.

    `path` is that of the data set's file, if it has one: it names the classes that were held out.
    """
    draw, inputs = np.random.default_rng(0), dataset.test.inputs[:_UNKNOWN_ROWS]
    yield "noise", draw.integers(0, 256, inputs.shape, dtype=np.uint8)
    yield "inverted", 255 - inputs
    pixels = inputs.reshape(*inputs.shape[:2], -1)
    yield "shuffled", draw.permuted(pixels, axis=2).reshape(inputs.shape)
    yield "digits", _digits(inputs.shape[2])
    if held_out := made.held_out_classes(path):
        fashion = data.load(DataConfig("fashion-mnist"), 0).test
        yield "held_out", fashion.inputs[np.isin(fashion.targets, held_out)]


def _digits(size: int) -> np.ndarray:
    """scikit-learn's digits, scaled up by whole pixels and centred."""
    images = data.load(DataConfig("digits"), 0)
    rows = np.concatenate([images.train.inputs, images.validation.inputs, images.test.inputs])
    scale = size // rows.shape[2]
    large = rows.repeat(scale, axis=2).repeat(scale, axis=3)
    before = (size - large.shape[2]) // 2
    after = size - large.shape[2] - before
    return np.pad(large, ((0, 0), (0, 0), (before, after), (before, after)))
