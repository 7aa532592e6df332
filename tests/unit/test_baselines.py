"""Ensembles and MC dropout against the models that they are made of."""

from __future__ import annotations

import numpy as np
import pytest

from bll import TrainedModel, TrainingConfig, fit
from bll import data as datasets
from bll.baselines import ensemble, mc_dropout
from bll.config import DataConfig
from bll.errors import InvalidConfig
from bll.plain import from_dict
from bll.uncertainty import Mixture

INPUTS = datasets.load(DataConfig("digits"), 0).test.inputs[:20]


def train(rule: str, dropout: float) -> TrainedModel:
    values = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [32, 32], "dropout": dropout},
        "blocks": {"num_blocks": 2},
        "rule": rule,
        "epochs": 3,
        "batch_size": 64,
        "executor": {"name": "sequential"},
    }
    return fit(from_dict(TrainingConfig, values))


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return train("bll", 0.0)


@pytest.fixture(scope="module")
def dropping() -> TrainedModel:
    return train("backprop", 0.3)


def test_an_ensemble_of_one_is_the_model_and_one_of_two_its_mean(model: TrainedModel, dropping: TrainedModel) -> None:
    alone = dropping.predict(INPUTS)
    one = ensemble([dropping], INPUTS)
    for name in Mixture._fields:
        np.testing.assert_array_equal(one[name], alone[name])
    both = ensemble([dropping, model], INPUTS)
    mean = (alone["probabilities"] + model.predict(INPUTS)["probabilities"]) / 2
    np.testing.assert_allclose(both["probabilities"], mean, rtol=1e-6)
    np.testing.assert_allclose(both["output_variance"], 1 - (mean**2).sum(1), rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidConfig, match="models: must be one or more"):
        ensemble([], INPUTS)


def test_mc_dropout_without_dropout_is_the_model(model: TrainedModel) -> None:
    found = mc_dropout(model, INPUTS, passes=3)
    np.testing.assert_allclose(found["probabilities"], model.predict(INPUTS)["probabilities"], rtol=1e-6)
    np.testing.assert_allclose(found["exit_disagreement"], 0, atol=1e-5)


def test_mc_dropout_depends_on_its_seed_alone_and_leaves_the_model_as_it_was(dropping: TrainedModel) -> None:
    before = dropping.predict(INPUTS)["probabilities"]
    first, second = (mc_dropout(dropping, INPUTS, passes=4, seed=1) for _ in range(2))
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
    other = mc_dropout(dropping, INPUTS, passes=4, seed=2)
    assert not np.array_equal(other["probabilities"], first["probabilities"])
    members = first["member_probabilities"]
    assert members.shape == (20, 4, 10)
    assert len({members[:, m].tobytes() for m in range(4)}) == 4
    np.testing.assert_array_equal(dropping.predict(INPUTS)["probabilities"], before)
    with pytest.raises(InvalidConfig, match="passes: must be at least 1, got 0"):
        mc_dropout(dropping, INPUTS, passes=0)
