"""Real-valued targets: the local decoder's loss, the evidence among a batch's targets, the mixture of the exits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, MixtureSameFamily, Normal, kl_divergence

from bll.blocks import build_block, make_objective
from bll.choices import FamilyName, LossName
from bll.config import LatentConfig, LossConfig, TrainingConfig
from bll.data import as_float, load
from bll.errors import InvalidConfig
from bll.evaluation import rank_correlation
from bll.export import TOLERANCE
from bll.families import make_family
from bll.manifest import MANIFEST_FILE, read_manifest
from bll.partition import resolve
from bll.plain import from_dict
from bll.regression.decoders import MAX_VARIANCE, MIN_VARIANCE, Decoder, decoder_nll, normal_nll
from bll.regression.objective import RegressionObjective, predict
from bll.regression.scores import RegressionMeter
from bll.training import fit, fit_regression
from bll.twins import ClassTable

FAMILIES = ("bernoulli", "categorical", "gaussian", "unit_gaussian", "laplace")
BASE: dict[str, Any] = {
    "data": {"name": "digits", "target": "inputs"},
    "network": {"architecture": "conv_autoencoder", "widths": [4, 6, 8]},
    "blocks": {"num_blocks": 2},
    "latent": {"units": 8, "readout_units": 16},
    "loss": {"name": "decoder"},
    "mixing": {"schedule": "linear", "start": 1.0, "end": 0.0, "ramp_epochs": 1},
    "epochs": 1,
    "batch_size": 64,
}


def config(**changes: Any) -> TrainingConfig:
    return from_dict(TrainingConfig, {**BASE, **changes})


def log_prob(distribution: Any, values: Tensor) -> Tensor:
    found: Tensor = distribution.log_prob(values)
    return found


def random_decoder(units: int = 6, shape: tuple[int, ...] = (2, 3)) -> Decoder:
    torch.manual_seed(0)
    return Decoder(units, 5, shape, torch.full(shape, 0.3), torch.full(shape, 0.5)).double()


def objective_of(family: str, loss: LossConfig, decoder: Decoder) -> RegressionObjective:
    latent = make_family(LatentConfig(FamilyName(family), units=6, group_size=3))
    return RegressionObjective(latent, loss, decoder)


def messages(objective: RegressionObjective, rows: int, *, scale: float = 1.0) -> tuple[Tensor, ClassTable]:
    """Random alpha and table in float64, both leaves' functions with a gradient."""
    family = objective.family
    torch.manual_seed(2)
    raw_alpha, raw_beta = (torch.randn(rows, family.num_parameters, 6, dtype=torch.float64) for _ in range(2))
    alpha_BPD = family.natural(raw_alpha.requires_grad_())
    return alpha_BPD, ClassTable(family.message(scale * raw_beta.requires_grad_()), torch.randn(rows).double())


def test_the_decoders_loss_is_the_kl_less_the_log_density_of_torch_distributions() -> None:
    decoder = random_decoder()
    objective = objective_of("bernoulli", LossConfig(LossName.DECODER), decoder)
    alpha_BPD, table = messages(objective, 4)
    targets = torch.rand(4, 2, 3, dtype=torch.float64)
    logits = (alpha_BPD + 0.7 * table.beta_CPD).squeeze(1)
    mean, variance = decoder(torch.sigmoid(logits)).unbind(1)
    kl = kl_divergence(Bernoulli(logits=logits), Bernoulli(logits=alpha_BPD.squeeze(1))).sum(1)
    expected = kl - log_prob(Independent(Normal(mean, variance.sqrt()), 2), targets)
    torch.testing.assert_close(objective.loss(alpha_BPD, table, targets, 0.7).loss_B, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_mixing_the_loss_is_the_exits_negative_log_likelihood(family: str) -> None:
    objective = objective_of(family, LossConfig(LossName.DECODER), random_decoder())
    alpha_BPD, table = messages(objective, 3)
    targets = torch.rand(3, 2, 3, dtype=torch.float64)
    local = objective.loss(alpha_BPD, table, targets, 0.0)
    torch.testing.assert_close(local.loss_B, normal_nll(objective.exit(alpha_BPD), targets).sum((1, 2)))
    # It is also what the loss at m -> 0 tends to.
    torch.testing.assert_close(local.loss_B, objective.loss(alpha_BPD, table, targets, 1e-9).loss_B, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_exceeds_the_posteriors_negative_log_density_by_a_kl_that_is_never_negative(family: str) -> None:
    objective = objective_of(family, LossConfig(LossName.DECODER), random_decoder())
    alpha_BPD, table = messages(objective, 50, scale=2.0)
    targets = torch.rand(50, 2, 3, dtype=torch.float64)
    rho_BPD = objective.family.posterior(alpha_BPD, table.beta_CPD, 1.3)
    nll_B = normal_nll(objective.exit(rho_BPD), targets).sum((1, 2))
    kl_B = objective.loss(alpha_BPD, table, targets, 1.3).loss_B - nll_B
    assert (kl_B > 0).all()


def test_samples_of_the_latent_average_to_the_expectation_over_all_its_states() -> None:
    decoder = random_decoder(units=6)
    objective = objective_of("bernoulli", LossConfig(LossName.DECODER, samples=64), decoder)
    alpha_BPD, table = messages(objective, 2)
    targets = torch.rand(2, 2, 3, dtype=torch.float64)
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    log_prob_BS = log_prob(Independent(Bernoulli(logits=alpha_BPD), 1), states)
    nll_BS = torch.stack([normal_nll(decoder(states), y.expand(64, 2, 3)).sum((1, 2)) for y in targets])
    expected_B = (log_prob_BS.exp() * nll_BS).sum(1)
    deviation_B = ((log_prob_BS.exp() * nll_BS.square()).sum(1) - expected_B.square()).sqrt()
    generator = torch.Generator().manual_seed(1)
    losses = [objective.loss(alpha_BPD, table, targets, 0.0, generator).loss_B for _ in range(20)]
    found_B = torch.stack(losses).mean(0)
    assert ((found_B - expected_B).abs() < 4 * deviation_B / math.sqrt(20 * 64)).all()


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_evidence_among_the_batchs_targets_is_the_brute_force_sum_over_states(rows: int) -> None:
    decoder = random_decoder()
    objective = objective_of("bernoulli", LossConfig(LossName.IN_BATCH), decoder)
    alpha_BPD, table = messages(objective, rows)
    targets = torch.rand(rows, 2, 3, dtype=torch.float64)
    states_SD = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    prob_BS = log_prob(Independent(Bernoulli(logits=alpha_BPD), 1), states_SD).exp()
    beta_CS = (table.beta_CPD.squeeze(1) @ states_SD.T + table.offset_C.unsqueeze(1)).exp()
    posterior_BC = prob_BS @ beta_CS.T / (prob_BS @ beta_CS.sum(0)).unsqueeze(1)
    decoder_B = normal_nll(objective.exit(alpha_BPD), targets).sum((1, 2))
    expected_B = -posterior_BC.diagonal().log() + decoder_B
    torch.testing.assert_close(objective.loss(alpha_BPD, table, targets, 1.0).loss_B, expected_B)


@pytest.mark.parametrize("mixing", [0.0, 0.5])
def test_other_mixings_of_the_in_batch_evidence_cost_the_divergence_from_its_exact_posterior(mixing: float) -> None:
    """L(m) = L(1) + KL(rho_m || rho_1) (method, section 4)."""
    objective = objective_of("gaussian", LossConfig(LossName.IN_BATCH), random_decoder())
    alpha_BPD, table = messages(objective, 6)
    targets = torch.rand(6, 2, 3, dtype=torch.float64)
    family = objective.family
    rho_m, rho_1 = (family.posterior(alpha_BPD, table.beta_CPD, m) for m in (mixing, 1.0))
    found_B, least_B = (objective.loss(alpha_BPD, table, targets, m).loss_B for m in (mixing, 1.0))
    torch.testing.assert_close(found_B - least_B, family.kl(rho_m, rho_1).sum(-1))


def test_the_in_batch_decoder_trains_beside_the_latent_and_not_through_it() -> None:
    decoder = random_decoder()
    objective = objective_of("gaussian", LossConfig(LossName.IN_BATCH), decoder)
    alpha_BPD, table = messages(objective, 4)
    targets = [torch.rand(4, 2, 3, dtype=torch.float64) for _ in range(2)]
    gradients = [
        torch.autograd.grad(objective.loss(alpha_BPD, table, y, 1.0).loss_B.sum(), alpha_BPD, retain_graph=True)[0]
        for y in targets
    ]
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    torch.autograd.backward(objective.loss(alpha_BPD, table, targets[0], 1.0).loss_B.sum())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_weighting_the_decoders_gradient_leaves_its_value() -> None:
    exit_B2Y = torch.rand(3, 2, 7, dtype=torch.float64).add(0.01).requires_grad_()
    targets = torch.rand(3, 7, dtype=torch.float64)
    torch.testing.assert_close(decoder_nll(exit_B2Y, targets), normal_nll(exit_B2Y, targets).sum(1))
    plain, weighted = (
        torch.autograd.grad(loss, exit_B2Y)[0]
        for loss in (normal_nll(exit_B2Y, targets).sum(), decoder_nll(exit_B2Y, targets).sum())
    )
    deviation_BY = exit_B2Y[:, 1].detach().sqrt()
    weight_BY = deviation_BY / deviation_BY.mean(1, keepdim=True)
    torch.testing.assert_close(weighted, plain * weight_BY.unsqueeze(1))
    torch.testing.assert_close(weight_BY.mean(1), torch.ones(3, dtype=torch.float64))


def test_a_decoders_variance_stays_within_its_bounds_of_the_targets_own() -> None:
    decoder = random_decoder()
    for raw, bound in ((-1e6, MIN_VARIANCE), (1e6, MAX_VARIANCE)):
        nn.init.constant_(decoder.variance.bias, raw)
        variance = decoder(torch.zeros(1, 6, dtype=torch.float64))[:, 1]
        torch.testing.assert_close(variance, torch.full_like(variance, bound * 0.25), rtol=1e-4, atol=0)


@pytest.mark.parametrize("exits", [1, 4])
def test_output_variance_is_that_of_the_mixture_of_the_exits(exits: int) -> None:
    torch.manual_seed(0)
    answers = [torch.rand(3, 2, 2, 2, dtype=torch.float64) + 0.01 for _ in range(exits)]
    family = make_family(LatentConfig(FamilyName.GAUSSIAN))
    alphas = [family.natural(torch.randn(3, 2, 5, dtype=torch.float64)) for _ in range(exits)]
    found = predict(family, answers, alphas, alphas)
    parts = Normal(found.exit_means.moveaxis(1, -1), found.exit_variances.sqrt().moveaxis(1, -1))
    mixture = MixtureSameFamily(torch.distributions.Categorical(torch.ones(exits).double()), parts)
    torch.testing.assert_close(found.mean, mixture.mean)
    torch.testing.assert_close(found.output_variance, mixture.variance)
    torch.testing.assert_close(found.posterior_variance, found.forward_variance)


def scores_of(exits_KB2X: np.ndarray, targets_BX: np.ndarray) -> Any:
    meter = RegressionMeter("test", len(exits_KB2X))
    for start in range(0, len(targets_BX), 7000):
        meter.add(exits_KB2X[:, start : start + 7000], targets_BX[start : start + 7000])
    return meter.evaluation(0, 0)


def test_a_calibrated_decoder_covers_nine_tenths_and_scores_its_own_entropy() -> None:
    generator = np.random.default_rng(0)
    mean_BX, deviation_BX = generator.normal(size=(20_000, 5)), generator.uniform(0.1, 2.0, (20_000, 5))
    targets_BX = (mean_BX + deviation_BX * generator.normal(size=mean_BX.shape)).astype(np.float32)
    found = scores_of(np.stack((mean_BX, deviation_BX**2), 1)[None], targets_BX)
    values = targets_BX.size
    assert found.mixture == found.exits[0]
    assert found.mixture.coverage == pytest.approx(0.9, abs=3 * math.sqrt(0.9 * 0.1 / values))
    entropy = 0.5 * math.log(2 * math.pi * math.e) + np.log(deviation_BX).mean()
    assert found.mixture.nll_nats == pytest.approx(entropy, abs=3 * math.sqrt(0.5 / values))
    assert found.mixture.mse == pytest.approx((deviation_BX**2).mean(), rel=0.03)


def test_a_mixture_is_scored_as_the_mixture_of_densities_that_it_is() -> None:
    generator = np.random.default_rng(1)
    exits_KB2X = np.stack((generator.normal(size=(3, 200, 4)), generator.uniform(0.2, 1.0, (3, 200, 4))), 2)
    targets_BX = generator.normal(size=(200, 4)).astype(np.float32)
    found = scores_of(exits_KB2X, targets_BX)
    means, deviations = torch.from_numpy(exits_KB2X[:, :, 0]), torch.from_numpy(exits_KB2X[:, :, 1]).sqrt()
    weights = torch.distributions.Categorical(torch.ones(3).double())
    rows = MixtureSameFamily(weights, Independent(Normal(means.movedim(0, 1), deviations.movedim(0, 1)), 1))
    values: Any = MixtureSameFamily(weights, Normal(means.movedim(0, -1), deviations.movedim(0, -1)))
    targets = torch.from_numpy(targets_BX).double()
    assert found.mixture.nll_nats == pytest.approx(-float(log_prob(rows, targets).mean()) / 4)
    below = values.cdf(targets)
    assert found.mixture.coverage == pytest.approx(float(((below > 0.05) & (below < 0.95)).double().mean()))
    squared = (targets - values.mean).square()
    assert found.mixture.mse == pytest.approx(float(squared.mean()))
    assert found.mixture.rank_correlation == pytest.approx(spearmanr(values.variance.flatten(), squared.flatten())[0])
    by_row = spearmanr(values.variance.mean(1), squared.mean(1))[0]
    assert found.mixture.sample_rank_correlation == pytest.approx(by_row)
    by_place = spearmanr(squared.mean(0).expand(200, 4).flatten(), squared.flatten())[0]
    assert found.mixture.map_rank_correlation == pytest.approx(by_place)
    assert found.mixture_gap_nats == pytest.approx(sum(e.nll_nats for e in found.exits) / 3 - found.mixture.nll_nats)
    assert found.mixture_gap_nats > 0


def test_of_long_targets_an_even_part_of_every_place_is_ranked() -> None:
    """Variances that rank errors perfectly within a place and wrongly between places: all places must count."""
    rows, places = 400, 130
    error_BX = np.arange(places, 0, -1)[None, :] * 1000 + np.arange(rows)[:, None]
    variance_BX = np.arange(places)[None, :] * 1000 + np.arange(rows)[:, None] + 1
    exits = np.stack((np.zeros((rows, places)), variance_BX), 1)[None]
    found = scores_of(exits, np.sqrt(error_BX).astype(np.float32)).mixture
    expected = spearmanr(variance_BX.flatten(), error_BX.flatten())[0]
    assert found.rank_correlation == pytest.approx(expected, abs=0.01)
    assert found.sample_rank_correlation == pytest.approx(1.0)


@pytest.mark.parametrize("levels", [3, 1000])
def test_rank_correlation_is_scipys_with_and_without_ties(levels: int) -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, levels, 500).astype(float)
    second = first + generator.normal(size=500) * levels
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second)[0], abs=1e-12)


def test_a_constant_ranks_nothing() -> None:
    assert rank_correlation(np.ones(5), np.arange(5.0)) == 0.0


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"loss": {}}, "loss.name", "must be 'decoder' or 'in_batch'"),
        ({"data": {"name": "digits"}}, "loss.name", "goes with data.target 'inputs'"),
        ({"loss": {"name": "in_batch"}, "batch_size": 31}, "batch_size", "must be at least 32"),
        ({"loss": {"name": "decoder", "posterior": "detached"}}, "loss.posterior", "must be 'coupled'"),
        ({"loss": {"name": "decoder", "similarity": 0.5}}, "loss.similarity", "must be 0"),
        ({"backward": {"twin": "chain"}}, "backward.twin", "must be 'direct'"),
        ({"latent": {"family": "laplace_scale"}}, "latent.family", "must have a mean to decode"),
        ({"data": {**BASE["data"], "label_noise": 0.1}}, "data.label_noise", "must be 0"),
        *[
            ({"rule": rule}, "data.target", "must be 'labels' for rule")
            for rule in (
                "local_classifiers",
                "predsim",
                "prototype",
                "feedback_alignment",
                "direct_feedback_alignment",
                "sign_symmetry",
                "target_propagation",
                "synthetic_gradients",
            )
        ],
    ],
)
def test_what_real_valued_targets_cannot_have_is_refused_with_the_reason(
    changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidConfig, match=words) as caught:
        resolve(config(**changes))
    assert [violation.field for violation in caught.value.violations] == [field]


def test_backprop_of_real_valued_targets_is_one_block_of_plain_negative_log_likelihood() -> None:
    plan = resolve(config(rule="backprop"))
    assert (plan.num_blocks, plan.config.loss.name, plan.config.mixing.start) == (1, LossName.DECODER, 0.0)
    twin = build_block(plan, 0).twin
    assert list(twin.parameters()) == []


@pytest.mark.parametrize("loss", ["decoder", "in_batch"])
def test_the_plan_counts_what_a_block_trains(loss: str) -> None:
    plan = resolve(config(loss={"name": loss}))
    for index, block_plan in enumerate(plan.blocks):
        block = build_block(plan, index)
        assert block_plan.parameters == sum(p.numel() for p in block.parameters())
    assert plan.class_names == ()


@pytest.mark.parametrize("loss", ["decoder", "in_batch"])
def test_every_parameter_of_a_block_learns_and_no_gradient_reaches_what_it_received(loss: str) -> None:
    plan = resolve(config(loss={"name": loss}))
    dataset = load(plan.config.data, 0)
    inputs = torch.from_numpy(as_float(dataset.train.inputs[:64]))
    received = inputs
    for index in range(plan.num_blocks):
        block = build_block(plan, index, (np.array([0.3], "f4"), np.array([0.4], "f4")))
        received = received.detach().requires_grad_()
        output = block.layers(received)
        local = make_objective(block, plan.config.loss).loss(block.readout(output), block.twin(inputs), inputs, 1.0)
        torch.autograd.backward(local.loss_B.mean())
        assert [name for name, p in block.named_parameters() if p.grad is None] == []
        assert inputs.grad is None
        received = output


@pytest.fixture(scope="module")
def model() -> Any:
    changes: dict[str, Any] = {
        "network": {"architecture": "mlp", "widths": [48, 32]},
        "latent": {"units": 24, "readout_units": 48},
        "mixing": {**BASE["mixing"], "ramp_epochs": 6},
        "optimizer": {"learning_rate": 1e-2},
    }
    return fit_regression(config(epochs=9, **changes))


def test_blocks_learn_to_reconstruct(model: Any) -> None:
    found = model.evaluate("test")
    dataset = load(model.plan.config.data, model.plan.config.seed)
    baseline = as_float(dataset.test.inputs).var(0).mean()
    assert all(exit_scores.mse < 0.6 * baseline for exit_scores in found.exits)
    assert found.mixture.nll_nats < 0.5 * math.log(2 * math.pi * math.e * baseline)
    assert found.mixture_gap_nats > 0


def test_predictions_have_the_shapes_of_the_inputs_for_one_sample_too(model: Any) -> None:
    for rows in (1, 3):
        prediction = model.predict(model.validation_inputs(rows))
        shapes = {name: values.shape for name, values in prediction.items()}
        assert shapes == {
            "mean": (rows, 1, 8, 8),
            "output_variance": (rows, 1, 8, 8),
            "exit_means": (rows, 2, 1, 8, 8),
            "exit_variances": (rows, 2, 1, 8, 8),
            "forward_variance": (rows, 2),
            "posterior_variance": (rows, 2),
            "calibrated_variance": (rows, 1, 8, 8),
        }
        np.testing.assert_allclose(prediction["mean"], prediction["exit_means"].mean(1), atol=1e-6)


@pytest.mark.parametrize("exit_index", [None, 0, 1])
def test_intervals_are_nested_around_the_mean_and_hold_what_was_asked(model: Any, exit_index: int | None) -> None:
    dataset = load(model.plan.config.data, model.plan.config.seed)
    targets = as_float(dataset.test.inputs)
    intervals = [model.interval(dataset.test.inputs, c, exit_index) for c in (0.5, 0.8, 0.9)]
    for (low, high), (wider_low, wider_high) in pairwise(intervals):
        assert ((wider_low <= low) & (low <= high) & (high <= wider_high)).all()
    for (low, high), coverage in zip(intervals, (0.5, 0.8, 0.9), strict=True):
        found_B = ((low <= targets) & (targets <= high)).mean((1, 2, 3))
        deviation = found_B.std() * math.sqrt(1 / len(dataset.test) + 1 / len(dataset.validation))
        assert found_B.mean() == pytest.approx(coverage, abs=4 * deviation)
    prediction = model.predict(dataset.test.inputs[:3])
    low, high = model.interval(dataset.test.inputs[:3], 0.9, exit_index)
    mean = prediction["mean"] if exit_index is None else prediction["exit_means"][:, exit_index]
    np.testing.assert_allclose((low + high) / 2, mean, atol=1e-6)


def test_calibration_leaves_the_prediction_and_scales_its_variance(model: Any) -> None:
    inputs = model.validation_inputs(20)
    found = model.predict(inputs)
    with torch.no_grad():
        plain = model.network(torch.from_numpy(inputs))
    for name, values in plain._asdict().items():
        np.testing.assert_array_equal(found[name], values.numpy())
    scale = model.calibration.mixture.variance_scale
    np.testing.assert_allclose(found["calibrated_variance"], scale * found["output_variance"], rtol=1e-6)
    scores = model.evaluate_calibration("test")
    test = load(model.plan.config.data, model.plan.config.seed).test.inputs
    low, high = model.interval(test, 0.9)
    within = (low <= as_float(test)) & (as_float(test) <= high)
    assert scores.coverages[2].asked == 0.9
    assert scores.coverages[2].found == pytest.approx(within.mean(), abs=1e-4)
    assert scores.coverages[2].mean_width == pytest.approx((high - low).mean(), rel=1e-4)


def test_the_exported_graph_answers_as_the_network(tmp_path: Path) -> None:
    trained = fit_regression(config(latent={**BASE["latent"], "family": "gaussian"}, loss={"name": "in_batch"}))
    manifest = trained.export(tmp_path)
    assert manifest.parity <= TOLERANCE
    assert [info.name for info in manifest.outputs] == list(trained.output_names)
    assert manifest.evaluations == ()
    assert manifest.regression_evaluations[1] == trained.evaluate("test")
    assert manifest.regression_calibration == trained.calibration
    assert manifest.regression_calibration_scores == trained.evaluate_calibration("test")
    assert read_manifest(tmp_path) == manifest
    prediction = trained.predict(trained.validation_inputs(20))
    assert (prediction["posterior_variance"] < prediction["forward_variance"]).all()  # the target narrows the latent


def test_a_manifest_from_before_calibration_is_read(model: Any, tmp_path: Path) -> None:
    manifest = model.export(tmp_path)
    path = tmp_path / MANIFEST_FILE
    values = json.loads(path.read_text())
    del values["regression_calibration"], values["regression_calibration_scores"]
    path.write_text(json.dumps(values))
    expected = replace(manifest, regression_calibration=None, regression_calibration_scores=None)
    assert read_manifest(tmp_path) == expected


def test_each_kind_of_target_has_a_fit_of_its_own() -> None:
    with pytest.raises(InvalidConfig, match="fit_regression takes real-valued targets"):
        fit(config())
    with pytest.raises(InvalidConfig, match="fit takes labels"):
        fit_regression(TrainingConfig())
