"""The families against autograd, quadrature and enumeration, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from bll.families import Bernoulli, Family, Gaussian, UnitGaussian, kl_divergence, product

FAMILIES: list[Family] = [Bernoulli(), Gaussian(1e-3, 1e2), UnitGaussian()]
reals = st.floats(-6, 6, allow_nan=False)


def eta_of(family: Family, *raw: float) -> torch.Tensor:
    """Natural parameters of one unit, shape (1, P, 1)."""
    return family.natural(torch.tensor(raw[: family.num_parameters], dtype=torch.float64).reshape(1, -1, 1))


def density(family: Family, eta: torch.Tensor) -> stats.rv_continuous:
    return stats.norm(float(family.mean(eta)), float(family.variance(eta)) ** 0.5)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: type(f).__name__)
@given(first=reals, second=reals)
def test_mean_parameters_are_the_gradient_of_the_log_partition(family: Family, first: float, second: float) -> None:
    eta = eta_of(family, first, second).requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_partition(eta).sum(), eta)
    torch.testing.assert_close(gradient, family.mean_parameters(eta.detach()), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: type(f).__name__)
@given(first=reals, second=reals)
def test_variance_is_the_second_derivative_along_the_mean(family: Family, first: float, second: float) -> None:
    eta = eta_of(family, first, second).requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_partition(eta).sum(), eta, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient[:, 0].sum(), eta)
    torch.testing.assert_close(curvature[:, 0], family.variance(eta.detach()), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES[1:], ids=lambda f: type(f).__name__)
@settings(max_examples=25)
@given(rho=st.tuples(reals, st.floats(-3, 3)), alpha=st.tuples(reals, st.floats(-3, 3)))
def test_gaussian_kl_matches_quadrature(family: Family, rho: tuple[float, float], alpha: tuple[float, float]) -> None:
    eta_rho, eta_alpha = eta_of(family, *rho), eta_of(family, *alpha)
    p, q = density(family, eta_rho), density(family, eta_alpha)
    width = 12 * p.std()
    expected, _ = integrate.quad(
        lambda z: p.pdf(z) * (p.logpdf(z) - q.logpdf(z)), p.mean() - width, p.mean() + width, limit=200
    )
    assert float(kl_divergence(family, eta_rho, eta_alpha)) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@given(rho=reals, alpha=reals)
def test_bernoulli_kl_matches_enumeration(rho: float, alpha: float) -> None:
    p, q = 1 / (1 + math.exp(-rho)), 1 / (1 + math.exp(-alpha))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    family = Bernoulli()
    assert float(kl_divergence(family, eta_of(family, rho), eta_of(family, alpha))) == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: type(f).__name__)
@given(alpha=st.tuples(reals, reals), beta=st.tuples(reals, reals), mixing=st.floats(0, 2))
def test_kl_is_never_negative_and_zero_without_a_message(
    family: Family, alpha: tuple[float, float], beta: tuple[float, float], mixing: float
) -> None:
    eta = eta_of(family, *alpha)
    message = family.message(torch.tensor(beta[: family.num_parameters], dtype=torch.float64).reshape(1, -1, 1))
    assert float(kl_divergence(family, product(eta, message, mixing), eta)) >= -1e-10
    assert float(kl_divergence(family, product(eta, message, 0.0), eta)) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=25)
@given(alpha=st.tuples(reals, st.floats(-3, 3)), beta=st.tuples(reals, st.floats(-3, 3)), mixing=st.floats(0.1, 2))
def test_gaussian_product_is_the_normalised_product_of_the_densities(
    alpha: tuple[float, float], beta: tuple[float, float], mixing: float
) -> None:
    family = Gaussian(1e-3, 1e2)
    eta = eta_of(family, *alpha)
    message = family.message(torch.tensor(beta, dtype=torch.float64).reshape(1, 2, 1))
    rho = density(family, product(eta, message, mixing))
    prior = density(family, eta)
    b1, b2 = message.flatten().tolist()

    def tempered(z: float) -> float:
        return float(prior.pdf(z) * math.exp(mixing * (b1 * z + b2 * z * z)))

    low, high = rho.mean() - 10 * rho.std(), rho.mean() + 10 * rho.std()
    normaliser, _ = integrate.quad(tempered, low, high, limit=200)
    for quantile in (0.1, 0.5, 0.9):
        z = float(rho.ppf(quantile))
        assert tempered(z) / normaliser == pytest.approx(float(rho.pdf(z)), rel=1e-5)


@given(raw=st.floats(-1e4, 1e4))
def test_learned_variance_stays_within_its_bounds(raw: float) -> None:
    family = Gaussian(1e-3, 1e2)
    variance = float(family.variance(eta_of(family, 0.0, raw)))
    assert 1e-3 * (1 - 1e-9) <= variance <= 1e2 * (1 + 1e-9)


def test_learned_variance_has_a_gradient_over_its_whole_range() -> None:
    family = Gaussian(1e-3, 1e2)
    for raw in (-8.0, 0.0, 100.0, 1e4):
        raw_BPD = torch.tensor([[[0.0], [raw]]], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(family.natural(raw_BPD)[:, 1].sum(), raw_BPD)
        assert gradient[0, 1, 0] != 0


def test_extreme_logits_give_finite_values_and_gradients_in_float32() -> None:
    family = Bernoulli()
    raw = torch.tensor([[[-1e6, -20.0, 0.0, 20.0, 1e6]]], requires_grad=True)
    eta = family.natural(raw)
    kl = kl_divergence(family, eta, torch.zeros_like(eta)).sum()
    (gradient,) = torch.autograd.grad(kl, raw)
    assert torch.isfinite(kl)
    assert torch.isfinite(gradient).all()
