"""The score of unlike inputs against numpy, scikit-learn and a density worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf_shrinkage

from bll.ood import ClassDistance, Features, NormalScore, OodScore, fit_ood_score, shrunk_covariance
from bll.selective import auroc

LEVELS = np.arange(-3, 3.25, 0.5)


def two_clouds(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 2, rows)
    return generator.normal(size=(rows, 5)) * [1, 2, 3, 0.1, 1] + 4 * targets[:, None], targets


def fitted(blocks: Callable[[torch.Tensor], list[torch.Tensor]], rows: int = 4000) -> OodScore:
    values, targets = two_clouds(rows)
    return fit_ood_score(blocks, torch.split(torch.from_numpy(values).float(), 300), targets, seed=0)


@given(st.lists(st.floats(-100, 100, width=16), min_size=30, max_size=80, unique=True), st.integers(0, 2**16))
def test_lookup_is_numpys_interpolation_between_training_quantiles(values: list[float], seed: int) -> None:
    knots = np.quantile(values, stats.norm.cdf(LEVELS))
    if np.diff(knots).min() < 1e-3:  # then the floor under the widths shows
        return
    inside = np.random.default_rng(seed).uniform(knots[0], knots[-1], 50)
    found = NormalScore(np.array(values), 1e-9).double()(torch.from_numpy(inside))
    np.testing.assert_allclose(found.numpy(), np.interp(inside, knots, LEVELS), atol=1e-2)


def test_lookup_goes_on_rising_beyond_the_training_values() -> None:
    score = NormalScore(np.random.default_rng(0).normal(size=20_000), 0.01)
    found = score(torch.tensor([-20.0, -8.0, -4.0, 0.0, 4.0, 8.0, 20.0]))
    assert (found.diff() > 0).all()
    assert found[3].item() == pytest.approx(0, abs=0.05)
    assert found[4].item() == pytest.approx(4, abs=0.5)


def test_distance_is_mahalanobis_to_the_nearest_class() -> None:
    values, targets = two_clouds(60)
    distance = ClassDistance(values, targets)
    means = np.stack([values[targets == c].mean(0) for c in range(2)])
    precision = np.linalg.inv(shrunk_covariance(values - means[targets]))
    expected = [min(mahalanobis(row, mean, precision) ** 2 for mean in means) for row in values * 3]
    np.testing.assert_allclose(distance(torch.from_numpy(values * 3).float()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "width"), [(2, 4), (3, 40), (50, 5), (5000, 3), (20, 1)])
def test_covariance_is_shrunk_as_scikit_learn_shrinks_it_and_never_singular(rows: int, width: int) -> None:
    residuals = np.random.default_rng(rows).normal(size=(rows, width)) * np.arange(1, width + 1)
    shrinkage = ledoit_wolf_shrinkage(residuals, assume_centered=True)
    covariance = residuals.T @ residuals / rows
    scale = np.trace(covariance) / width
    expected = (1 - shrinkage) * covariance + shrinkage * scale * np.eye(width)
    np.testing.assert_allclose(shrunk_covariance(residuals), expected, atol=3e-6 * scale)
    for degenerate in (residuals * 0, np.ones((rows, width))):
        np.linalg.cholesky(shrunk_covariance(degenerate))


def test_score_of_new_rows_of_the_training_distribution_is_uniform_and_unlike_rows_stand_out() -> None:
    score = fitted(lambda inputs: [inputs, inputs.relu(), inputs[:, :2]])
    known = score(blocks_of(two_clouds(4000, seed=1)[0]))
    assert known.shape == (4000,)
    assert stats.kstest(known.numpy(), "uniform").statistic < 0.05
    far = two_clouds(500, seed=2)[0] + [0, 0, 0, 1.0, 0]
    unknown = score(blocks_of(far))
    assert auroc(known.numpy(), unknown.numpy()) > 0.99
    assert float(min(known.min(), unknown.min())) >= 0
    assert float(max(known.max(), unknown.max())) <= 1


def blocks_of(values: np.ndarray) -> list[torch.Tensor]:
    inputs = torch.from_numpy(values).float()
    return [inputs, inputs.relu(), inputs[:, :2]]


def test_one_boundary_that_finds_a_row_unlike_is_enough() -> None:
    score = fitted(lambda inputs: [inputs[:, :1], inputs[:, 3:4]])
    usual = torch.zeros(1, 1)
    assert score([usual, usual]).item() < 0.9
    assert score([usual + 1e3, usual]).item() == score([usual, usual + 1e3]).item() == 1.0


@pytest.mark.parametrize("value", [1e20, 3e38, -3e38])
@pytest.mark.parametrize("width", [1, 200])
def test_no_finite_output_makes_the_score_not_a_number(value: float, width: int) -> None:
    score = fitted(lambda inputs: [inputs.repeat(1, width)], rows=600)
    assert score([torch.full((2, 5 * width), value)]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_few_rows_and_missing_classes_are_enough(rows: int) -> None:
    score = fitted(lambda inputs: [inputs, torch.zeros(len(inputs), 3)], rows)
    found = score([torch.randn(9, 5), torch.zeros(9, 3)])
    assert ((found >= 0) & (found <= 1)).all()


def test_fitting_again_gives_the_same_bits_and_many_features_are_projected() -> None:
    def wide(inputs: torch.Tensor) -> list[torch.Tensor]:
        return [torch.sin(inputs @ torch.linspace(-1, 1, 5 * 600).reshape(5, 600))]

    first, second = fitted(wide, 1200), fitted(wide, 1200)
    assert first.state_dict()["boundaries.0.0.directions"].shape == (600, 512)
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, second.state_dict()[name], rtol=0, atol=0)


def test_features_of_images_are_their_means_over_a_grid() -> None:
    images = torch.randn(2, 3, 7, 2)
    expected = torch.nn.functional.adaptive_avg_pool2d(images, (3, 2)).flatten(1)
    torch.testing.assert_close(Features((3, 7, 2), 0)(images), expected)
    torch.testing.assert_close(Features((3, 4), 0)(torch.ones(2, 3, 4)), torch.ones(2, 12))
