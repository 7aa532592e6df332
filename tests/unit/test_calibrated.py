"""A trained model's calibrated answers, and its latents."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from bll import TrainedModel, TrainingConfig, fit
from bll import data as datasets
from bll.calibration import tempered_log_probs
from bll.config import LatentConfig
from bll.errors import DataError, InvalidConfig
from bll.events import BlockProgress
from bll.manifest import MODEL_FILE, read_manifest
from bll.partition import resolve
from bll.plain import from_dict
from bll.selective import auroc
from bll.training import Training


def config(**values: Any) -> TrainingConfig:
    base = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [32, 600]},  # the second has its features projected
        "blocks": {"num_blocks": 2},
        "epochs": 6,
        "batch_size": 64,
        "executor": {"name": "sequential"},
    }
    return from_dict(TrainingConfig, base | values)


DIGITS = datasets.load(config().data, 0)
TEST = DIGITS.test


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return fit(config())


def test_a_calibrated_model_keeps_its_prediction_and_tempers_the_mixture(model: TrainedModel) -> None:
    found = model.predict(TEST.inputs[:50])
    with torch.no_grad():
        plain = model.network(torch.from_numpy(datasets.as_float(TEST.inputs[:50])))
    for name, values in plain._asdict().items():
        np.testing.assert_array_equal(found[name], values.numpy())
    assert model.calibration is not None
    tempered = np.exp(tempered_log_probs(np.log(found["probabilities"]), model.calibration.mixture.temperature))
    np.testing.assert_allclose(found["calibrated_probabilities"], tempered, rtol=1e-4, atol=1e-7)
    validation = model.evaluate_calibration("validation")
    assert validation is not None
    assert validation.tempered.nll_nats <= model.evaluate("validation").mixture.nll_nats


def test_unlike_images_get_a_high_score(model: TrainedModel) -> None:
    known = model.predict(TEST.inputs)["ood_score"]
    noise = np.random.default_rng(0).integers(0, 256, TEST.inputs.shape).astype(np.uint8)
    for unknown in (noise, 255 - TEST.inputs):
        found = model.predict(unknown)["ood_score"]
        assert found.shape == (len(unknown),)
        assert ((found >= 0) & (found <= 1)).all()
        assert auroc(known, found) > 0.9


def test_conformal_sets_cover_and_are_nested(model: TrainedModel) -> None:
    sets = [model.conformal_set(TEST.inputs, coverage) for coverage in (0.9, 0.95, 0.99)]
    for smaller, larger in pairwise(sets):
        assert (smaller <= larger).all()
    scores = model.evaluate_calibration("test")
    assert scores is not None
    assert [c.asked for c in scores.coverages] == [0.9, 0.95]
    for coverage, found in zip(scores.coverages, sets, strict=False):
        assert coverage.found == pytest.approx(found[np.arange(len(TEST)), TEST.targets].mean())
        assert coverage.mean_size == pytest.approx(found.sum(1).mean())
        assert coverage.found > coverage.asked - 0.1
    exits = [model.conformal_set(TEST.inputs, 0.95, exit_index) for exit_index in range(2)]
    assert model.calibration is not None
    for k, by_exit in enumerate(exits):
        threshold = model.calibration.exits[k].threshold(0.95)
        np.testing.assert_array_equal(by_exit, model.predict(TEST.inputs)["exit_probabilities"][:, k] >= threshold)
    with pytest.raises(InvalidConfig, match="coverage: must be between"):
        model.conformal_set(TEST.inputs, 1.0)


def test_calibration_is_the_same_after_a_resumed_run(model: TrainedModel, tmp_path: Path) -> None:
    plan = resolve(config())
    training = Training(plan, tmp_path)
    for event in training.events():
        if isinstance(event, BlockProgress) and event.step >= 30:
            training.pause()
    again = Training(plan, tmp_path)
    list(again.events())
    resumed = again.model()
    assert resumed.calibration == model.calibration
    np.testing.assert_array_equal(
        resumed.predict(TEST.inputs[:9])["ood_score"], model.predict(TEST.inputs[:9])["ood_score"]
    )


def test_the_graph_answers_what_calibration_adds_and_the_manifest_holds_it(model: TrainedModel, tmp_path: Path) -> None:
    manifest = model.export(tmp_path)
    assert [t.name for t in manifest.outputs][-2:] == ["calibrated_probabilities", "ood_score"]
    read = read_manifest(tmp_path)
    assert read == manifest
    assert read.calibration == model.calibration
    assert read.calibration_scores == model.evaluate_calibration("test")
    session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE, providers=["CPUExecutionProvider"])
    known = datasets.as_float(TEST.inputs[:40])
    unknown = np.random.default_rng(1).random(known.shape, dtype=np.float32) * 3
    for inputs in (known, unknown, known[:1]):
        expected = model.predict(inputs)
        found = session.run(["calibrated_probabilities", "ood_score"], {"input": inputs})
        np.testing.assert_allclose(found[0], expected["calibrated_probabilities"], atol=1e-4)
        np.testing.assert_allclose(found[1], expected["ood_score"], atol=1e-4)


def test_latents_are_the_units_behind_the_mean_variances(model: TrainedModel) -> None:
    inputs = TEST.inputs[:7]
    prediction, latents = model.predict(inputs), model.latents(inputs)
    assert len(latents) == 2
    for k, found in enumerate(latents):
        assert found["posterior_mean"].shape == (7, LatentConfig().units)
        for name in ("forward_variance", "posterior_variance", "posterior_variance_between"):
            np.testing.assert_allclose(found[name].mean(1), prediction[name][:, k], rtol=1e-5)
        mean = found["posterior_mean"]  # a Bernoulli's variance follows from its mean, whatever is marginalised
        np.testing.assert_allclose(found["posterior_variance"], mean * (1 - mean), atol=1e-5)


def test_posterior_of_labelled_samples_is_that_of_the_product_with_their_message(model: TrainedModel) -> None:
    inputs, targets = TEST.inputs[:6], TEST.targets[:6]
    with torch.no_grad():
        _, alphas = model.network.boundaries(torch.from_numpy(datasets.as_float(inputs)))
    for found, alpha, table in zip(model.score_labelled(inputs, targets), alphas, model.network.tables(), strict=True):
        before = torch.sigmoid(alpha[:, 0]).double()
        after = torch.sigmoid(alpha[:, 0] + table.beta_CPD[targets, 0]).double()
        np.testing.assert_allclose(found["mean"], after, rtol=1e-5)
        np.testing.assert_allclose(found["variance"], after * (1 - after), rtol=1e-3, atol=1e-6)
        kl = after * (after / before).log() + (1 - after) * ((1 - after) / (1 - before)).log()
        np.testing.assert_allclose(found["kl_nats"], kl.sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("targets", [np.array([0, 10]), np.array([-1, 0]), np.array([0.0, 1.0]), np.array([0])])
def test_labels_that_are_no_classes_are_refused(model: TrainedModel, targets: np.ndarray) -> None:
    with pytest.raises(DataError, match="targets: must be"):
        model.score_labelled(TEST.inputs[:2], targets)
