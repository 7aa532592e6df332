"""The local losses against brute force, their own definitions and finite differences, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bll.choices import LossName, PosteriorName
from bll.config import LossConfig
from bll.families import Bernoulli, Categorical, Family, Gaussian, Laplace, LaplaceScale, UnitGaussian
from bll.losses import Objective, evidence_logits
from bll.twins import ClassTable

FAMILIES: list[Family] = [
    Bernoulli(),
    Categorical(2),
    Gaussian(1e-3, 1e2),
    UnitGaussian(),
    Laplace(1e-3, 1e2),
    LaplaceScale(1e-3, 1e2),
]


def named(families: Sequence[Family]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", families, ids=lambda family: type(family).__name__)


def objective(family: Family, name: str = "evidence", posterior: str = "coupled") -> Objective:
    return Objective(family, LossConfig(LossName(name), PosteriorName(posterior)))


def draw(
    family: Family, rows: int, classes: int, units: int, seed: int
) -> tuple[torch.Tensor, ClassTable, torch.Tensor]:
    """alpha_BPD, the class table and targets_B."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    alpha = family.natural(normal(rows, family.num_parameters, units))
    beta = family.message(normal(classes, family.num_parameters, units))
    targets = torch.randint(classes, (rows,), generator=generator)
    return alpha, ClassTable(beta, normal(classes)), targets


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3), classes=st.integers(2, 4), units=st.integers(1, 5))
def test_bernoulli_evidence_is_the_sum_over_all_latent_states(seed: int, rows: int, classes: int, units: int) -> None:
    alpha_BPD, table, _ = draw(Bernoulli(), rows, classes, units, seed)
    expected = torch.empty(rows, classes, dtype=torch.float64)
    for b, c in itertools.product(range(rows), range(classes)):
        total = 0.0
        for state in itertools.product((0.0, 1.0), repeat=units):
            z = torch.tensor(state, dtype=torch.float64)
            p = torch.sigmoid(alpha_BPD[b, 0])
            probability = torch.where(z == 1, p, 1 - p).prod()
            total += float(probability * torch.exp((table.beta_CPD[c, 0] * z).sum() + table.offset_C[c]))
        expected[b, c] = math.log(total)
    torch.testing.assert_close(evidence_logits(Bernoulli(), alpha_BPD, table), expected)


def test_gaussian_evidence_with_class_shared_precision_is_two_matrix_products() -> None:
    """method, section 4: logit_y = sum_d (v' u/v)_d b_yd + 1/2 sum_d v'_d b_yd^2 + const, 1/v' = 1/v + p."""
    family = Gaussian(1e-3, 1e2)
    alpha_BPD, table, _ = draw(family, 5, 4, 3, 7)
    beta_CPD = table.beta_CPD
    beta_CPD[:, 1] = beta_CPD[:1, 1]
    v = family.variance(alpha_BPD)
    u, p = family.mean(alpha_BPD), -2 * beta_CPD[0, 1]
    shared = 1 / (1 / v + p)
    expected = (shared * u / v) @ beta_CPD[:, 0].T + 0.5 * shared @ beta_CPD[:, 0].square().T + table.offset_C
    found = evidence_logits(family, alpha_BPD, table)
    torch.testing.assert_close(found - found[:, :1], expected - expected[:, :1])


def test_unit_gaussian_evidence_is_a_linear_classifier() -> None:
    """method, section 4: u.b_y + |b_y|^2 / 2 + d_y."""
    family = UnitGaussian()
    alpha_BPD, table, _ = draw(family, 5, 4, 3, 8)
    u, b = alpha_BPD[:, 0], table.beta_CPD[:, 0]
    torch.testing.assert_close(
        evidence_logits(family, alpha_BPD, table), u @ b.T + b.square().sum(1) / 2 + table.offset_C
    )


@named(FAMILIES)
@pytest.mark.parametrize("posterior", ["coupled", "detached"])
@pytest.mark.parametrize("mixing", [0.0, 0.3, 2.0])
def test_evidence_loss_is_its_definition(family: Family, posterior: str, mixing: float) -> None:
    """L(m) = KL(rho_m || alpha) - E_rho[log beta_y] - d_y + logsumexp_y' logit_y'."""
    alpha_BPD, table, targets_B = draw(family, 6, 5, 4, 3)
    found = objective(family, posterior=posterior).loss(alpha_BPD, table, targets_B, mixing).loss_B
    beta_BPD = table.beta_CPD[targets_B]
    rho_BPD = family.posterior(alpha_BPD, beta_BPD, mixing)
    expected = (
        family.kl(rho_BPD, alpha_BPD).sum(-1)
        - family.expected_log_message(rho_BPD, beta_BPD).sum(-1)
        - table.offset_C[targets_B]
        + evidence_logits(family, alpha_BPD, table).logsumexp(1)
    )
    torch.testing.assert_close(found, expected)


@named(FAMILIES)
def test_evidence_loss_is_smallest_at_full_mixing(family: Family) -> None:
    """L(m) = L(1) + KL(rho_m || rho_1) in exponential families: any other posterior costs."""
    tensors = draw(family, 8, 3, 4, 11)
    exact = objective(family).loss(*tensors, 1.0).loss_B
    for mixing in (0.0, 0.5, 0.9, 1.1, 2.0):
        assert (objective(family).loss(*tensors, mixing).loss_B >= exact - 1e-9).all()


@named(FAMILIES[:4])
def test_coupled_and_detached_gradients_agree_at_full_mixing(family: Family) -> None:
    """At m = 1 the posterior is where the bound is stationary; compared a hair beside it, where both are computed."""
    gradients = []
    for posterior in ("coupled", "detached"):
        alpha_BPD, table, targets_B = draw(family, 4, 3, 4, 2)
        leaves = (alpha_BPD.requires_grad_(), table.beta_CPD.requires_grad_(), table.offset_C.requires_grad_())
        loss = objective(family, posterior=posterior).loss(alpha_BPD, table, targets_B, 1 + 1e-9).loss_B.sum()
        gradients.append(torch.autograd.grad(loss, leaves))
    for coupled, detached in zip(*gradients, strict=True):
        torch.testing.assert_close(coupled, detached, rtol=1e-6, atol=1e-7)


@named(FAMILIES[:4])
def test_evidence_gradients_are_those_of_the_method(family: Any) -> None:
    """dL/da = sum_y' p(y') mu(a + b_y') - mu(a + b_y); dL/db_y' = (p(y') - [y'=y]) mu(a + b_y')."""
    alpha_BPD, table, targets_B = draw(family, 1, 4, 4, 5)
    alpha_BPD.requires_grad_()
    table.beta_CPD.requires_grad_()
    loss = objective(family).loss(alpha_BPD, table, targets_B, 1.0).loss_B.sum()
    by_alpha, by_beta = torch.autograd.grad(loss, (alpha_BPD, table.beta_CPD))
    with torch.no_grad():
        p_C = objective(family).exit_log_probs(alpha_BPD, table)[0].exp()
        mu_CPD = family.mean_parameters(alpha_BPD + table.beta_CPD)
        truth_C = torch.nn.functional.one_hot(targets_B[0], 4)
        torch.testing.assert_close(by_alpha[0], (p_C[:, None, None] * mu_CPD).sum(0) - mu_CPD[targets_B[0]])
        torch.testing.assert_close(by_beta, (p_C - truth_C)[:, None, None] * mu_CPD)


@named(FAMILIES)
@pytest.mark.parametrize("name", ["evidence", "discriminative", "divergence"])
@pytest.mark.parametrize("mixing", [0.4, 1.0])
def test_gradients_match_finite_differences(family: Family, name: str, mixing: float) -> None:
    alpha_BPD, table, targets_B = draw(family, 2, 3, 2, 9)

    def loss(alpha: torch.Tensor, beta: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return objective(family, name).loss(alpha, ClassTable(beta, offset), targets_B, mixing).loss_B

    assert torch.autograd.gradcheck(loss, tuple(t.requires_grad_() for t in (alpha_BPD, *table)))


def test_discriminative_loss_is_its_definition() -> None:
    """KL(rho || alpha) - log softmax_y(<b_y, mu(rho)> + d_y), and the exit is that of mu(alpha)."""
    family = Bernoulli()
    alpha_BPD, table, targets_B = draw(family, 4, 3, 5, 1)
    local = objective(family, "discriminative").loss(alpha_BPD, table, targets_B, 0.5)
    rho_BPD = alpha_BPD + 0.5 * table.beta_CPD[targets_B]
    logits_BC = torch.sigmoid(rho_BPD[:, 0]) @ table.beta_CPD[:, 0].T + table.offset_C
    nll_B = torch.nn.functional.cross_entropy(logits_BC, targets_B, reduction="none")
    torch.testing.assert_close(local.loss_B, family.kl(rho_BPD, alpha_BPD).sum(-1) + nll_B)
    exit_BC = torch.sigmoid(alpha_BPD[:, 0]) @ table.beta_CPD[:, 0].T + table.offset_C
    torch.testing.assert_close(local.log_probs_BC, exit_BC.log_softmax(1))


def test_discriminative_loss_without_mixing_is_a_local_classifier() -> None:
    """m = 0: rho = alpha, and what is left is cross-entropy of a linear head on the mean (method, section 6)."""
    family = UnitGaussian()
    alpha_BPD, table, targets_B = draw(family, 4, 3, 5, 1)
    local = objective(family, "discriminative").loss(alpha_BPD, table, targets_B, 0.0)
    logits_BC = alpha_BPD[:, 0] @ table.beta_CPD[:, 0].T + table.offset_C
    torch.testing.assert_close(local.loss_B, torch.nn.functional.cross_entropy(logits_BC, targets_B, reduction="none"))


@named(FAMILIES)
def test_sampled_loss_is_its_definition(family: Family) -> None:
    """KL(rho || alpha) less the mean over draws z from rho of log softmax_y(log beta(z; y) + d_y), one by one."""
    alpha_BPD, table, targets_B = draw(family, 2, 3, 4, 6)
    sampled = Objective(family, LossConfig(LossName.DISCRIMINATIVE, samples=3))
    found_B = sampled.loss(alpha_BPD, table, targets_B, 0.5, torch.Generator().manual_seed(0)).loss_B
    rho_BPD = family.posterior(alpha_BPD, table.beta_CPD[targets_B], 0.5)
    draws_SBD = family.sample(rho_BPD.expand(3, *rho_BPD.shape), torch.Generator().manual_seed(0))
    for b in range(2):
        total = 0.0
        for z_D in draws_SBD[:, b]:
            logits = [float(family.log_message(z_D[None], beta[None]).sum()) for beta in table.beta_CPD]
            logits_C = torch.tensor(logits, dtype=torch.float64) + table.offset_C
            total += float(logits_C.log_softmax(0)[targets_B[b]])
        expected = float(family.kl(rho_BPD[b : b + 1], alpha_BPD[b : b + 1]).sum()) - total / 3
        assert float(found_B[b]) == pytest.approx(expected)


@named(FAMILIES[2:])
def test_gradients_of_sampled_losses_match_finite_differences(family: Family) -> None:
    alpha_BPD, table, targets_B = draw(family, 2, 3, 2, 9)
    sampled = Objective(family, LossConfig(LossName.DISCRIMINATIVE, samples=2))

    def loss(alpha: torch.Tensor, beta: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(2)
        return sampled.loss(alpha, ClassTable(beta, offset), targets_B, 0.4, generator).loss_B

    assert torch.autograd.gradcheck(loss, tuple(t.requires_grad_() for t in (alpha_BPD, *table)))


@named(FAMILIES)
@given(seed=st.integers(0, 2**31), exits=st.integers(1, 5), mixing=st.floats(0, 2))
@settings(max_examples=30)
def test_mean_evidence_loss_bounds_the_likelihood_of_the_mixture(
    family: Family, seed: int, exits: int, mixing: float
) -> None:
    """method, section 3: -log mean_k p_k(y|x) <= mean_k L_k, row by row."""
    losses, log_probs = [], []
    targets_B = torch.arange(4) % 3
    for k in range(exits):
        alpha_BPD, table, _ = draw(family, 4, 3, 2, seed + k)
        local = objective(family).loss(alpha_BPD, table, targets_B, mixing)
        losses.append(local.loss_B)
        log_probs.append(local.log_probs_BC.gather(1, targets_B[:, None])[:, 0])
    mixture_nll_B = math.log(exits) - torch.stack(log_probs).logsumexp(0)
    assert (mixture_nll_B <= torch.stack(losses).mean(0) + 1e-9).all()


@named(FAMILIES[:4])
def test_messages_that_say_nothing_leave_the_classes_even(family: Family) -> None:
    alpha_BPD, table, _ = draw(family, 1, 2, 2, 1)
    silent = ClassTable(torch.zeros_like(table.beta_CPD), torch.zeros_like(table.offset_C))
    log_probs = objective(family).exit_log_probs(alpha_BPD, silent)
    torch.testing.assert_close(log_probs.exp(), torch.full((1, 2), 0.5, dtype=torch.float64))
