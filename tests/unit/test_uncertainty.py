"""Predictions and variances against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from bll.choices import LossName
from bll.config import LossConfig
from bll.families import Bernoulli, Categorical, Family, Gaussian, Laplace, LaplaceScale, UnitGaussian
from bll.losses import Objective
from bll.twins import ClassTable
from bll.uncertainty import marginal_posterior, predict

FAMILIES: list[Family] = [
    Bernoulli(),
    Categorical(2),
    Gaussian(1e-3, 1e2),
    UnitGaussian(),
    Laplace(1e-3, 1e2),
    LaplaceScale(1e-3, 1e2),
]


def draw(family: Family, rows: int, classes: int, units: int, seed: int) -> tuple[torch.Tensor, ClassTable]:
    generator = torch.Generator().manual_seed(seed)
    shape = (family.num_parameters, units)
    alpha = family.natural(torch.randn(rows, *shape, generator=generator, dtype=torch.float64))
    beta = family.message(torch.randn(classes, *shape, generator=generator, dtype=torch.float64))
    return alpha, ClassTable(beta, torch.randn(classes, generator=generator, dtype=torch.float64))


def test_bernoulli_posterior_variance_is_that_of_the_enumerated_mixture() -> None:
    alpha_BPD, table = draw(Bernoulli(), 3, 4, 2, 0)
    found = marginal_posterior(Objective(Bernoulli(), LossConfig()), alpha_BPD, table)
    for b in range(3):
        p_C = found.log_probs_BC[b].exp()
        joint = torch.zeros(2, 2, dtype=torch.float64)  # p(z_0, z_1)
        for c, state in itertools.product(range(4), itertools.product((0, 1), repeat=2)):
            q = torch.sigmoid(alpha_BPD[b, 0] + table.beta_CPD[c, 0])
            joint[state] += p_C[c] * math.prod(float(q[d]) if state[d] else 1 - float(q[d]) for d in range(2))
        for d in range(2):
            mean = float(joint.sum(1 - d)[1])
            assert float(found.variance_BD[b, d]) == pytest.approx(mean * (1 - mean))


def test_gaussian_posterior_variance_is_that_of_the_mixture_of_gaussians() -> None:
    family = Gaussian(1e-3, 1e2)
    alpha_BPD, table = draw(family, 1, 3, 1, 4)
    found = marginal_posterior(Objective(family, LossConfig()), alpha_BPD, table)
    p_C = found.log_probs_BC[0].exp()
    eta = alpha_BPD + table.beta_CPD
    parts = [stats.norm(float(m), float(v) ** 0.5) for m, v in zip(family.mean(eta), family.variance(eta), strict=True)]
    first = sum(float(p) * part.moment(1) for p, part in zip(p_C, parts, strict=True))
    second = sum(float(p) * part.moment(2) for p, part in zip(p_C, parts, strict=True))
    assert float(found.variance_BD) == pytest.approx(second - first**2)
    assert 0 <= float(found.between_BD) <= float(found.variance_BD)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("loss", [LossName.EVIDENCE, LossName.DISCRIMINATIVE])
def test_every_field_of_a_prediction_follows_from_its_exits(family: Family, loss: LossName) -> None:
    objective = Objective(family, LossConfig(loss))
    drawn = [draw(family, 5, 3, 4, seed) for seed in range(3)]
    alphas, tables = [a for a, _ in drawn], [t for _, t in drawn]
    found = predict(objective, alphas, tables)
    exits_BNC = torch.stack([objective.exit_log_probs(a, t) for a, t in drawn], 1).exp()
    torch.testing.assert_close(found.exit_probabilities, exits_BNC)
    torch.testing.assert_close(found.probabilities, exits_BNC.mean(1))
    product_BC = exits_BNC.prod(1)
    torch.testing.assert_close(found.product_probabilities, product_BC / product_BC.sum(1, keepdim=True))
    entropy = stats.entropy(found.probabilities.numpy(), axis=-1)
    exit_entropy = stats.entropy(exits_BNC.numpy(), axis=-1).mean(1)
    torch.testing.assert_close(found.entropy, torch.from_numpy(entropy))
    torch.testing.assert_close(found.exit_disagreement, torch.from_numpy(entropy - exit_entropy))
    torch.testing.assert_close(found.output_variance, 1 - (found.probabilities**2).sum(1))
    torch.testing.assert_close(found.forward_variance[:, 1], family.variance(alphas[1]).mean(-1))
    assert (found.exit_disagreement >= -1e-12).all()
    assert (found.posterior_variance >= found.posterior_variance_between).all()


def test_a_certain_prediction_has_no_entropy_and_no_nan() -> None:
    alpha = torch.full((1, 1, 1), 10.0)
    table = ClassTable(torch.zeros(2, 1, 1), torch.tensor([0.0, -1e4]))
    found = predict(Objective(Bernoulli(), LossConfig()), [alpha], [table])
    assert found.entropy.item() == 0.0
    assert found.output_variance.item() == 0.0
    assert all(torch.isfinite(field).all() for field in found)
