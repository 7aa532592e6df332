"""Targets with positions: their readouts against a loop over sites, and their way through training to predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bll import TrainingConfig, fit, resolve
from bll import data as datasets
from bll.choices import LossName, ReadoutName
from bll.config import LatentConfig, LossConfig
from bll.errors import DataError, InvalidConfig
from bll.evaluation import ScoreMeter, mean_iou
from bll.export import TOLERANCE
from bll.families import Bernoulli, Gaussian
from bll.losses import Objective
from bll.plain import from_dict
from bll.readouts import SiteReadout
from bll.sites import NearestCells
from bll.twins import ClassTable
from bll.uncertainty import Prediction, predict

FAMILY = Gaussian(1e-3, 1e2)


def config(**values: Any) -> TrainingConfig:
    base = {
        "data": {"name": "reversal", "train_rows": 128, "validation_rows": 32},
        "network": {"architecture": "transformer", "widths": [8, 8], "heads": 2},
        "blocks": {"num_blocks": 2},
        "latent": {"units": 6, "readout_units": 8},
        "executor": {"name": "sequential"},
        "batch_size": 32,
        "epochs": 1,
    }
    return from_dict(TrainingConfig, {**base, **values})


def readout(output_shape: tuple[int, ...], target_shape: tuple[int, ...], kind: ReadoutName) -> SiteReadout:
    torch.manual_seed(0)
    latent = LatentConfig(units=3, readout=kind, readout_units=5)
    return SiteReadout(output_shape, FAMILY, latent, target_shape).double().eval()


@pytest.mark.parametrize("kind", [ReadoutName.LINEAR, ReadoutName.HIDDEN])
@pytest.mark.parametrize("rows", [1, 2])
def test_each_position_is_read_alone_from_its_own_features(kind: ReadoutName, rows: int) -> None:
    found = readout((4, 7), (4,), kind)
    hidden_BTF = torch.randn(rows, 4, 7, dtype=torch.float64)
    alpha_BPD = found(hidden_BTF)
    assert alpha_BPD.shape == (rows * 4, 2, 3)
    for site, features in enumerate(hidden_BTF.reshape(-1, 7)):
        alone = found.layers[2:](F.layer_norm(features, (7,)).unsqueeze(0)).unflatten(1, (2, 3))
        torch.testing.assert_close(alpha_BPD[site], FAMILY.natural(alone)[0])


@pytest.mark.parametrize(("grid", "pixels"), [((4, 6), (4, 6)), ((2, 3), (4, 6)), ((3, 2), (7, 5)), ((1, 1), (2, 2))])
def test_linear_readout_of_pixels_is_a_1x1_convolution_scaled_up(
    grid: tuple[int, int], pixels: tuple[int, int]
) -> None:
    found = readout((5, *grid), pixels, ReadoutName.LINEAR)
    images_BCHW = torch.randn(2, 5, *grid, dtype=torch.float64)
    weight_OC, bias_O = found.layers[1].parameters()
    convolved = F.conv2d(images_BCHW, weight_OC[..., None, None], bias_O)
    alpha_BPD = found(images_BCHW)
    for b, y, x in np.ndindex(2, *pixels):
        cell = convolved[b, :, y * grid[0] // pixels[0], x * grid[1] // pixels[1]]
        expected_PD = FAMILY.natural(cell.view(1, 2, 3))[0]
        torch.testing.assert_close(alpha_BPD[(b * pixels[0] + y) * pixels[1] + x], expected_PD)


def test_hidden_readout_of_pixels_sees_the_neighbours_of_its_cell_and_no_more() -> None:
    found = readout((2, 5, 5), (5, 5), ReadoutName.HIDDEN)
    images = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    found(images)[2 * 5 + 2].sum().backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(0) > 0
    assert seen[1:4, 1:4].all()
    assert seen.sum() == 9


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_scaling_up_by_a_whole_number_is_torchs_nearest(scale: int) -> None:
    cells_BSO = torch.randn(2, 12, 3)
    images = cells_BSO.transpose(1, 2).reshape(2, 3, 3, 4)
    expected = F.interpolate(images, scale_factor=scale, mode="nearest").flatten(2).transpose(1, 2)
    torch.testing.assert_close(NearestCells((3, 4), (3 * scale, 4 * scale))(cells_BSO), expected, rtol=0, atol=0)


@pytest.mark.parametrize("target_shape", [(), (4,), (2, 3), (1,)])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_prediction_of_samples_is_that_of_its_sites_put_in_place(target_shape: tuple[int, ...], rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    objective = Objective(Bernoulli(), LossConfig(LossName.EVIDENCE))
    alphas = [torch.randn(rows, *target_shape, 1, 5, generator=generator) for _ in range(2)]
    tables = [ClassTable(torch.randn(3, 1, 5, generator=generator), torch.zeros(3)) for _ in range(2)]
    found = predict(objective, [a.view(-1, 1, 5) for a in alphas], tables, target_shape)
    assert found.exit_probabilities.shape == (rows, 2, *target_shape, 3)
    assert found.posterior_variance.shape == (rows, 2)
    for row in range(rows):
        sites = [predict(objective, [a[row][s][None] for a in alphas], tables) for s in np.ndindex(target_shape)]
        for name in Prediction._fields:
            values = torch.cat([getattr(site, name) for site in sites])
            if name == "exit_probabilities":
                expected = values.transpose(0, 1).reshape((2, *target_shape, 3))
            elif "variance" in name and name != "output_variance":
                expected = values.mean(0)
            else:
                expected = values.reshape((*target_shape, *values.shape[1:]))
            torch.testing.assert_close(getattr(found, name)[row], expected)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"network": {"architecture": "mlp", "widths": [8, 8]}},
            r"^network: must keep .* 16 positions, got shape \[8\]",
        ),
        (
            {"latent": {"readout": "identity"}},
            r"latent.readout: must be 'linear' or 'hidden' for targets of shape \[16\]",
        ),
        ({"data": {"name": "reversal", "augmentation": "shift"}}, "data.augmentation: must be 'none'"),
        ({"rule": "synthetic_gradients"}, r"^rule: must be .* of shape \[16\], got 'synthetic_gradients'"),
        ({"rule": "prototype"}, r"^rule: must be one that needs no class of the whole row .*, got 'prototype'"),
        ({"loss": {"similarity": 0.5}}, r"^loss.similarity: must be 0 for targets of shape \[16\], got 0.5"),
    ],
)
def test_what_has_no_positions_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        resolve(config(**values))


def test_every_position_is_scored_and_every_row_is_counted() -> None:
    run_config = config()
    model = fit(run_config)
    test = datasets.load(run_config.data, 0).test
    prediction = model.predict(test.inputs)
    assert prediction["probabilities"].shape == (2000, 16, 16)
    meter = ScoreMeter(16)
    meter.add(np.log(prediction["probabilities"]).reshape(-1, 16), test.targets.reshape(-1))
    evaluation = model.evaluate("test")
    assert evaluation.rows == 2000
    assert evaluation.mixture.accuracy == pytest.approx(meter.scores().accuracy)
    assert evaluation.mixture.nll_nats == pytest.approx(meter.scores().nll_nats, rel=1e-5)
    assert evaluation.mixture_gap_nats >= 0
    counts_CC = model.confusion("test")
    assert counts_CC.sum() == 2000 * 16
    assert np.trace(counts_CC) / counts_CC.sum() == pytest.approx(evaluation.mixture.accuracy)
    for exit_index, scores in enumerate(evaluation.exits):
        assert np.trace(model.confusion("test", exit_index)) / counts_CC.sum() == pytest.approx(scores.accuracy)


def test_every_position_has_latents_of_its_own() -> None:
    run_config = config()
    model = fit(run_config)
    rows = datasets.load(run_config.data, 0).test
    prediction = model.predict(rows.inputs[:3])
    for boundary, found in enumerate(model.latents(rows.inputs[:3])):
        assert found["posterior_mean"].shape == (3, 16, 6)
        variance = found["posterior_variance"].mean((1, 2))
        np.testing.assert_allclose(variance, prediction["posterior_variance"][:, boundary], rtol=1e-5)
    for found in model.score_labelled(rows.inputs[:3], rows.targets[:3]):
        assert found["kl_nats"].shape == (3, 16)
    with pytest.raises(DataError, match=r"targets: must be whole numbers of shape \[3, 16\], got int64 \[3\]"):
        model.score_labelled(rows.inputs[:3], rows.targets[:3, 0])


def test_a_model_of_sequences_is_exported_with_its_positions(tmp_path: Path) -> None:
    manifest = fit(config()).export(tmp_path)
    shapes = {output.name: output.shape for output in manifest.outputs}
    assert shapes["exit_probabilities"] == (-1, 2, 16, 16)
    assert shapes["entropy"] == (-1, 16)
    assert shapes["forward_variance"] == (-1, 2)
    assert manifest.parity <= TOLERANCE


def test_pixels_learned_on_coarser_maps_are_exported_at_their_own_size(tmp_path: Path) -> None:
    """Images of 6x6 whose blocks end with maps of 6x6 and 3x3; pixels are classed by their quadrant's brightness."""
    generator = np.random.default_rng(0)
    bright_BHW = generator.integers(0, 2, (400, 2, 2)).repeat(3, 1).repeat(3, 2)
    images = (bright_BHW * 128 + generator.integers(0, 100, bright_BHW.shape)).astype(np.uint8)
    np.savez(tmp_path / "pixels.npz", x=images, y=bright_BHW)
    run_config = config(
        data={"name": "npz", "path": "pixels.npz"},
        network={"widths": [4, 8]},
        optimizer={"learning_rate": 0.02, "backward_learning_rate": 0.02},
        epochs=6,
    )
    model = fit(run_config, data_root=tmp_path)
    assert [block.output_shape for block in model.plan.blocks] == [(4, 6, 6), (8, 3, 3)]
    evaluation = model.evaluate("validation")
    assert evaluation.mixture.accuracy > 0.9
    assert evaluation.rows == 40
    assert mean_iou(model.confusion("validation")) > 0.8
    manifest = model.export(tmp_path / "model")
    shapes = {output.name: output.shape for output in manifest.outputs}
    assert shapes["probabilities"] == (-1, 6, 6, 2)
    assert shapes["exit_probabilities"] == (-1, 2, 6, 6, 2)
    assert shapes["output_variance"] == (-1, 6, 6)
    assert shapes["posterior_variance"] == (-1, 2)
    assert manifest.parity <= TOLERANCE
