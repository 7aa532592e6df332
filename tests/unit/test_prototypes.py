"""The terms of rule `prototype` against loops over samples and classes, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from bll.auxiliary import Auxiliary
from bll.choices import LossName
from bll.config import LatentConfig, LossConfig
from bll.losses import LocalLoss
from bll.prototypes import Prototypes, correlation, regression, similarity

TARGETS_B = torch.tensor([0, 2, 0, 2, 2, 3])
"""Of five classes two are missing."""


def draw(rows: int = 6, features: int = 4, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, features, generator=generator, dtype=torch.float64),
        torch.randn(classes, features, generator=generator, dtype=torch.float64),
    )


def corr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(stats.pearsonr(a.numpy(), b.numpy()).statistic)


def test_prototypes_are_regressed_on_the_class_means_of_the_batch() -> None:
    features_BF, table_CF = draw()
    distances = []
    for c in (0, 2, 3):
        mean = torch.stack([f for f, y in zip(features_BF, TARGETS_B, strict=True) if y == c]).mean(0)
        distances.append(float((table_CF[c] - mean).square().mean()))
    assert float(regression(features_BF, table_CF, TARGETS_B)) == pytest.approx(sum(distances) / 3)


def test_a_class_that_is_not_in_the_batch_gives_no_target() -> None:
    features_BF, table_CF = draw()
    table_CF.requires_grad_()
    (gradient,) = torch.autograd.grad(regression(features_BF, table_CF, TARGETS_B), table_CF)
    assert gradient.abs().sum(1).ne(0).tolist() == [True, False, True, True, False]


def test_correlation_is_pearsons_with_the_prototype_of_the_samples_class() -> None:
    features_BF, table_CF = draw()
    expected = sum(1 - corr(f, table_CF[y]) for f, y in zip(features_BF, TARGETS_B, strict=True)) / 6
    assert float(correlation(features_BF, table_CF, TARGETS_B)) == pytest.approx(expected)


def test_similarity_is_the_mean_over_pairs_of_one_class() -> None:
    features_BF, _ = draw()
    pairs = [(i, j) for i, j in itertools.permutations(range(6), 2) if TARGETS_B[i] == TARGETS_B[j]]
    expected = sum(1 - corr(features_BF[i], features_BF[j]) for i, j in pairs) / len(pairs)
    assert float(similarity(features_BF, TARGETS_B)) == pytest.approx(expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_without_a_pair_there_is_no_similarity(rows: int) -> None:
    assert float(similarity(draw(rows)[0], torch.arange(rows))) == 0.0


def test_similarity_attracts_samples_of_one_class() -> None:
    features_BF = draw()[0].requires_grad_()
    (gradient,) = torch.autograd.grad(similarity(features_BF, TARGETS_B), features_BF)
    before = corr(features_BF[0].detach(), features_BF[2].detach())
    moved = (features_BF - 0.01 * gradient).detach()
    assert corr(moved[0], moved[2]) > before
    assert torch.equal(gradient[5], torch.zeros_like(gradient[5]))  # alone in its class


def made(output_shape: tuple[int, ...] = (4,)) -> Auxiliary:
    loss = LossConfig(LossName.PROTOTYPE)
    return Auxiliary((3,), output_shape, 5, loss, LatentConfig(readout_grid=2), 0).double()


def test_the_rule_is_the_sum_of_its_five_terms() -> None:
    auxiliary, (output, _) = made(), draw()
    received = torch.randn(6, 3, dtype=torch.float64)
    local = LocalLoss(torch.rand(6, dtype=torch.float64), torch.zeros(6, 5))
    found = auxiliary(local, received, output, TARGETS_B, torch.Generator().manual_seed(7))
    assert auxiliary.prototypes is not None
    assert auxiliary.decoder is not None
    table_CF = auxiliary.prototypes.table.view(5, 4)
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    noisy = output + 0.1 * output.square().mean().sqrt() * noise
    expected = (
        local.loss_B.mean()
        + regression(output, table_CF, TARGETS_B)
        + correlation(output, table_CF, TARGETS_B)
        + similarity(output, TARGETS_B)
        + F.mse_loss(auxiliary.decoder(noisy), received)
    )
    torch.testing.assert_close(found, expected)


def test_the_table_learns_from_regression_alone_and_the_block_from_the_rest() -> None:
    prototypes, (output, _) = Prototypes((4,), 5, 1).double(), draw()
    output.requires_grad_()
    by_table, by_output = torch.autograd.grad(prototypes(output, TARGETS_B), (prototypes.table, output))
    table_CF = prototypes.table.view(5, 4)
    (expected,) = torch.autograd.grad(regression(output.detach(), table_CF, TARGETS_B), table_CF)
    torch.testing.assert_close(by_table.view(5, 4), expected)
    rest = correlation(output, table_CF.detach(), TARGETS_B) + similarity(output, TARGETS_B)
    torch.testing.assert_close(by_output, torch.autograd.grad(rest, output)[0])


def test_features_of_images_are_the_means_of_a_grid() -> None:
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    found = Prototypes((3, 4, 6), 5, 2).double().features(images)
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(images, 2).flatten(1), rtol=1e-6, atol=1e-6)
