"""The evidence loss against brute force, its own definition and finite differences, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from bll.families import Bernoulli, Family, Gaussian, UnitGaussian, kl_divergence, product
from bll.losses import evidence_logits, evidence_loss, exit_log_probs

FAMILIES: list[Family] = [Bernoulli(), Gaussian(1e-3, 1e2), UnitGaussian()]
named = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: type(f).__name__)


def draw(
    family: Family, rows: int, classes: int, units: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """alpha_BPD, beta_CPD, offset_C and targets_B."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    alpha = family.natural(normal(rows, family.num_parameters, units))
    beta = family.message(normal(classes, family.num_parameters, units))
    targets = torch.randint(classes, (rows,), generator=generator)
    return alpha, beta, normal(classes), targets


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3), classes=st.integers(2, 4), units=st.integers(1, 5))
def test_bernoulli_evidence_is_the_sum_over_all_latent_states(seed: int, rows: int, classes: int, units: int) -> None:
    alpha_BPD, beta_CPD, offset_C, _ = draw(Bernoulli(), rows, classes, units, seed)
    expected = torch.empty(rows, classes, dtype=torch.float64)
    for b, c in itertools.product(range(rows), range(classes)):
        total = 0.0
        for state in itertools.product((0.0, 1.0), repeat=units):
            z = torch.tensor(state, dtype=torch.float64)
            p = torch.sigmoid(alpha_BPD[b, 0])
            probability = torch.where(z == 1, p, 1 - p).prod()
            total += float(probability * torch.exp((beta_CPD[c, 0] * z).sum() + offset_C[c]))
        expected[b, c] = math.log(total)
    torch.testing.assert_close(evidence_logits(Bernoulli(), alpha_BPD, beta_CPD, offset_C), expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_gaussian_evidence_matches_quadrature(seed: int) -> None:
    family = Gaussian(1e-3, 1e2)
    alpha_BPD, beta_CPD, offset_C, _ = draw(family, 1, 2, 1, seed)
    mean, std = float(family.mean(alpha_BPD)), float(family.variance(alpha_BPD)) ** 0.5
    logits = evidence_logits(family, alpha_BPD, beta_CPD, offset_C)[0]
    for c in range(2):
        b1, b2 = beta_CPD[c, :, 0].tolist()

        def integrand(z: float, b1: float = b1, b2: float = b2) -> float:
            log_density = -0.5 * ((z - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
            return math.exp(log_density + b1 * z + b2 * z * z)

        value, _ = integrate.quad(integrand, mean - 30 * std, mean + 30 * std, points=[mean], limit=400)
        assert float(logits[c]) == pytest.approx(math.log(value) + float(offset_C[c]), abs=1e-6)


def test_gaussian_evidence_with_class_shared_precision_is_two_matrix_products() -> None:
    """method, section 4: logit_y = sum_d (v' u/v)_d b_yd + 1/2 sum_d v'_d b_yd^2 + const, 1/v' = 1/v + p."""
    family = Gaussian(1e-3, 1e2)
    alpha_BPD, beta_CPD, offset_C, _ = draw(family, 5, 4, 3, 7)
    beta_CPD[:, 1] = beta_CPD[:1, 1]
    v = family.variance(alpha_BPD)
    u, p = family.mean(alpha_BPD), -2 * beta_CPD[0, 1]
    shared = 1 / (1 / v + p)
    expected = (shared * u / v) @ beta_CPD[:, 0].T + 0.5 * shared @ beta_CPD[:, 0].square().T + offset_C
    found = evidence_logits(family, alpha_BPD, beta_CPD, offset_C)
    torch.testing.assert_close(found - found[:, :1], expected - expected[:, :1])


@named
@pytest.mark.parametrize("mixing", [0.0, 0.3, 1.0, 2.0])
def test_loss_is_its_definition(family: Family, mixing: float) -> None:
    """L(m) = KL(rho_m || alpha) - <b_y, mu(a + m b_y)> - d_y + logsumexp_y' logit_y'."""
    alpha_BPD, beta_CPD, offset_C, targets_B = draw(family, 6, 5, 4, 3)
    found = evidence_loss(family, alpha_BPD, beta_CPD, offset_C, targets_B, mixing).loss_B
    beta_BPD = beta_CPD[targets_B]
    rho_BPD = product(alpha_BPD, beta_BPD, mixing)
    expected = (
        kl_divergence(family, rho_BPD, alpha_BPD).sum(-1)
        - (beta_BPD * family.mean_parameters(rho_BPD)).sum((-2, -1))
        - offset_C[targets_B]
        + evidence_logits(family, alpha_BPD, beta_CPD, offset_C).logsumexp(1)
    )
    torch.testing.assert_close(found, expected)


@named
def test_loss_is_smallest_at_full_mixing(family: Family) -> None:
    """L(m) = L(1) + KL(rho_m || rho_1): any other m costs."""
    tensors = draw(family, 8, 3, 4, 11)
    exact = evidence_loss(family, *tensors, 1.0).loss_B
    for mixing in (0.0, 0.5, 0.9, 1.1, 2.0):
        assert (evidence_loss(family, *tensors, mixing).loss_B >= exact - 1e-12).all()


@named
def test_gradients_are_those_of_the_method(family: Family) -> None:
    """dL/da = sum_y' p(y') mu(a + b_y') - mu(a + b_y); dL/db_y' = (p(y') - [y'=y]) mu(a + b_y')."""
    alpha_BPD, beta_CPD, offset_C, targets_B = draw(family, 1, 4, 3, 5)
    alpha_BPD.requires_grad_()
    beta_CPD.requires_grad_()
    loss = evidence_loss(family, alpha_BPD, beta_CPD, offset_C, targets_B, 1.0).loss_B.sum()
    by_alpha, by_beta = torch.autograd.grad(loss, (alpha_BPD, beta_CPD))
    with torch.no_grad():
        p_C = exit_log_probs(family, alpha_BPD, beta_CPD, offset_C)[0].exp()
        mu_CPD = family.mean_parameters(alpha_BPD + beta_CPD)
        truth_C = torch.nn.functional.one_hot(targets_B[0], 4)
        torch.testing.assert_close(by_alpha[0], (p_C[:, None, None] * mu_CPD).sum(0) - mu_CPD[targets_B[0]])
        torch.testing.assert_close(by_beta, (p_C - truth_C)[:, None, None] * mu_CPD)


@named
@pytest.mark.parametrize("mixing", [0.4, 1.0])
def test_gradients_match_finite_differences(family: Family, mixing: float) -> None:
    alpha_BPD, beta_CPD, offset_C, targets_B = draw(family, 2, 3, 2, 9)

    def loss(alpha: torch.Tensor, beta: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return evidence_loss(family, alpha, beta, offset, targets_B, mixing).loss_B

    assert torch.autograd.gradcheck(loss, tuple(t.requires_grad_() for t in (alpha_BPD, beta_CPD, offset_C)))


@named
@given(seed=st.integers(0, 2**31), exits=st.integers(1, 5), mixing=st.floats(0, 2))
def test_mean_local_loss_bounds_the_likelihood_of_the_mixture(
    family: Family, seed: int, exits: int, mixing: float
) -> None:
    """method, section 3: -log mean_k p_k(y|x) <= mean_k L_k, row by row."""
    losses, log_probs = [], []
    for k in range(exits):
        alpha_BPD, beta_CPD, offset_C, _ = draw(family, 4, 3, 2, seed + k)
        targets_B = torch.arange(4) % 3
        local = evidence_loss(family, alpha_BPD, beta_CPD, offset_C, targets_B, mixing)
        losses.append(local.loss_B)
        log_probs.append(local.log_probs_BC.gather(1, targets_B[:, None])[:, 0])
    mixture_nll_B = math.log(exits) - torch.stack(log_probs).logsumexp(0)
    assert (mixture_nll_B <= torch.stack(losses).mean(0) + 1e-9).all()


@named
def test_unit_messages_give_the_smallest_case(family: Family) -> None:
    alpha_BPD, beta_CPD, offset_C, _ = draw(family, 1, 2, 1, 1)
    log_probs = exit_log_probs(family, alpha_BPD, torch.zeros_like(beta_CPD), torch.zeros_like(offset_C))
    torch.testing.assert_close(log_probs.exp(), torch.full((1, 2), 0.5, dtype=torch.float64))
