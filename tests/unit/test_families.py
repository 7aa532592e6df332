"""The families against autograd, quadrature and enumeration, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from bll.families import (
    Bernoulli,
    Categorical,
    ExponentialFamily,
    Family,
    Gaussian,
    Laplace,
    LaplaceScale,
    UnitGaussian,
)

EXPONENTIAL: list[ExponentialFamily] = [
    Bernoulli(),
    Categorical(3),
    Gaussian(1e-3, 1e2),
    UnitGaussian(),
    LaplaceScale(1e-3, 1e2),
]
CONTINUOUS: list[Family] = [*EXPONENTIAL[2:], Laplace(1e-3, 1e2)]
FAMILIES: list[Family] = [*EXPONENTIAL, CONTINUOUS[-1]]
reals = st.floats(-6, 6, allow_nan=False)
moderate = st.floats(-3, 3)


def named(families: Sequence[Family]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", families, ids=lambda family: type(family).__name__)


def raw_of(family: Family, values: tuple[float, ...]) -> torch.Tensor:
    """Raw numbers of shape (1, P, D): three units, as the categorical's group needs them, or one."""
    units = 3 if isinstance(family, Categorical) else 1
    return torch.tensor(values[: family.num_parameters * units], dtype=torch.float64).reshape(1, -1, units)


def density(family: Family, eta: torch.Tensor) -> Any:
    mean, variance = float(family.mean(eta)), float(family.variance(eta))
    if isinstance(family, Laplace | LaplaceScale):
        return stats.laplace(mean, math.sqrt(variance / 2))
    return stats.norm(mean, math.sqrt(variance))


def log_message(family: Family, message: torch.Tensor, z: float) -> float:
    first, *rest = message.flatten().tolist()
    match family:
        case Gaussian():
            return float(first * z + rest[0] * z * z)
        case Laplace():
            return float(-rest[0] * abs(z - first))
        case LaplaceScale():
            return float(first * abs(z))
        case _:
            return float(first * z)


def integral(function: Any, kinks: list[float], width: float) -> float:
    """Over pieces between the kinks, and a width of tail at either end."""
    edges = sorted({kinks[0], *kinks})
    edges = [edges[0] - width, *edges, edges[-1] + width]
    return float(sum(integrate.quad(function, a, b, limit=400, epsabs=1e-13)[0] for a, b in itertools.pairwise(edges)))


@named(EXPONENTIAL)
@given(values=st.tuples(reals, reals, reals))
def test_mean_parameters_are_the_gradient_of_the_log_partition(
    family: ExponentialFamily, values: tuple[float, ...]
) -> None:
    eta = family.natural(raw_of(family, values)).requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_partition(eta).sum(), eta)
    torch.testing.assert_close(gradient, family.mean_parameters(eta.detach()), rtol=1e-7, atol=1e-9)


@named([Bernoulli(), Gaussian(1e-3, 1e2), UnitGaussian()])
@given(values=st.tuples(reals, reals))
def test_variance_is_the_second_derivative_along_the_mean(family: ExponentialFamily, values: tuple[float, ...]) -> None:
    eta = family.natural(raw_of(family, values)).requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_partition(eta).sum(), eta, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient[:, 0].sum(), eta)
    torch.testing.assert_close(curvature[:, 0], family.variance(eta.detach()), rtol=1e-7, atol=1e-9)


@named(CONTINUOUS)
@settings(max_examples=25)
@given(rho=st.tuples(moderate, moderate), alpha=st.tuples(moderate, moderate))
def test_kl_matches_quadrature(family: Family, rho: tuple[float, float], alpha: tuple[float, float]) -> None:
    eta_rho, eta_alpha = family.natural(raw_of(family, rho)), family.natural(raw_of(family, alpha))
    p, q = density(family, eta_rho), density(family, eta_alpha)
    expected = integral(
        lambda z: p.pdf(z) * (p.logpdf(z) - q.logpdf(z)), [p.mean(), q.mean()], width=30 * max(p.std(), 0.1)
    )
    assert float(family.kl(eta_rho, eta_alpha)) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@named(CONTINUOUS)
@settings(max_examples=25)
@given(alpha=st.tuples(moderate, moderate), beta=st.tuples(moderate, moderate), mixing=st.floats(0.1, 2))
def test_evidence_and_posterior_match_quadrature(
    family: Family, alpha: tuple[float, float], beta: tuple[float, float], mixing: float
) -> None:
    """The posterior is the tempered product, or for the Laplace the projection with its mean and variance."""
    eta, message = family.natural(raw_of(family, alpha)), family.message(raw_of(family, beta))
    prior = density(family, eta)
    kinks = [prior.mean(), float(message.flatten()[0]) if isinstance(family, Laplace) else 0.0]
    if isinstance(family, Gaussian | UnitGaussian):
        kinks = [prior.mean(), float(family.mean(family.posterior(eta, message, mixing)))]
    width = 40 * max(prior.std(), 0.1)

    def tempered(z: float, power: float) -> float:
        return float(math.exp(prior.logpdf(z) + power * log_message(family, message, z)))

    evidence = integral(lambda z: tempered(z, 1.0), kinks, width)
    assert float(family.log_evidence(eta, message)) == pytest.approx(math.log(evidence), rel=1e-6, abs=1e-7)
    rho = family.posterior(eta, message, mixing)
    mass = integral(lambda z: tempered(z, mixing), kinks, width)
    mean = integral(lambda z: z * tempered(z, mixing), kinks, width) / mass
    second = integral(lambda z: (z - mean) ** 2 * tempered(z, mixing), kinks, width) / mass
    assert float(family.mean(rho)) == pytest.approx(mean, rel=1e-5, abs=1e-6)
    assert float(family.variance(rho)) == pytest.approx(second, rel=1e-5, abs=1e-7)


@named(CONTINUOUS)
@settings(max_examples=25)
@given(rho=st.tuples(moderate, moderate), beta=st.tuples(moderate, moderate))
def test_expected_message_matches_quadrature(
    family: Family, rho: tuple[float, float], beta: tuple[float, float]
) -> None:
    eta, message = family.natural(raw_of(family, rho)), family.message(raw_of(family, beta))
    p = density(family, eta)
    kinks = [p.mean(), float(message.flatten()[0]) if isinstance(family, Laplace) else 0.0]
    expected = integral(lambda z: p.pdf(z) * log_message(family, message, z), kinks, 40 * max(p.std(), 0.1))
    assert float(family.expected_log_message(eta, message)) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@named(CONTINUOUS)
@settings(max_examples=25)
@given(values=st.tuples(moderate, moderate))
def test_entropy_matches_quadrature(family: Family, values: tuple[float, float]) -> None:
    eta = family.natural(raw_of(family, values))
    p = density(family, eta)
    expected = -integral(lambda z: p.pdf(z) * p.logpdf(z), [p.mean()], 30 * max(p.std(), 0.1))
    assert float(family.entropy(eta)) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@named([Bernoulli(), Categorical(3)])
@given(values=st.tuples(reals, reals, reals))
def test_entropy_matches_enumeration(family: Family, values: tuple[float, ...]) -> None:
    eta = family.natural(raw_of(family, values))
    mean = family.mean(eta)[0].tolist()
    p = mean if isinstance(family, Categorical) else [mean[0], 1 - mean[0]]
    assert float(family.entropy(eta)) == pytest.approx(-sum(x * math.log(x) for x in p if x), abs=1e-9)


@pytest.mark.parametrize(
    ("family", "raw", "expected"),
    [
        (Bernoulli(), [[-7.0, -6.9, 0.0, 6.9, 7.0]], [True, False, False, False, True]),
        (Categorical(3), [[8.0, 0.0, 0.0, 1.0, 0.0, 0.0]], [True, True, True, False, False, False]),
        (UnitGaussian(), [[-1e6, 1e6]], [False, False]),
        (Gaussian(1e-3, 1e2), [[0.0] * 3, [-30.0, 0.0, 1e6]], [True, False, True]),
        (Laplace(1e-3, 1e2), [[0.0] * 3, [-30.0, 0.0, 1e6]], [True, False, True]),
        (LaplaceScale(1e-3, 1e2), [[-30.0, 0.0, 1e6]], [True, False, True]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_unit_is_saturated_at_its_bounds_and_nowhere_else(
    family: Family, raw: list[list[float]], expected: list[bool]
) -> None:
    assert family.saturated(family.natural(torch.tensor([raw]))).tolist() == [expected]


@given(rho=reals, alpha=reals)
def test_bernoulli_kl_matches_enumeration(rho: float, alpha: float) -> None:
    p, q = 1 / (1 + math.exp(-rho)), 1 / (1 + math.exp(-alpha))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    family = Bernoulli()
    found = family.kl(torch.tensor([[[rho]]], dtype=torch.float64), torch.tensor([[[alpha]]], dtype=torch.float64))
    assert float(found) == pytest.approx(expected, abs=1e-12)


@given(alpha=st.tuples(reals, reals, reals), beta=st.tuples(reals, reals, reals))
def test_categorical_matches_enumeration(alpha: tuple[float, ...], beta: tuple[float, ...]) -> None:
    family = Categorical(3)
    eta, message = family.natural(raw_of(family, alpha)), family.message(raw_of(family, beta))
    p_G = eta.flatten().softmax(0)
    b_G = message.flatten()
    assert float(family.log_evidence(eta, message)) == pytest.approx(float((p_G * b_G.exp()).sum().log()), abs=1e-9)
    rho_G = (p_G * b_G.exp()) / (p_G * b_G.exp()).sum()
    rho = family.posterior(eta, message)
    torch.testing.assert_close(family.mean(rho)[0], rho_G)
    torch.testing.assert_close(family.variance(rho)[0], rho_G * (1 - rho_G))
    assert float(family.kl(rho, eta)) == pytest.approx(float((rho_G * (rho_G / p_G).log()).sum()), abs=1e-9)
    assert float(family.expected_log_message(rho, message)) == pytest.approx(float(rho_G @ b_G), abs=1e-9)


@given(values=st.tuples(reals, reals, reals), shift=st.floats(-50, 50))
def test_a_constant_added_to_a_group_changes_nothing(values: tuple[float, ...], shift: float) -> None:
    family = Categorical(3)
    raw = raw_of(family, values)
    torch.testing.assert_close(family.natural(raw + shift), family.natural(raw))
    torch.testing.assert_close(family.message(raw + shift), family.message(raw))


@named(FAMILIES)
@given(alpha=st.tuples(reals, reals, reals), beta=st.tuples(reals, reals, reals), mixing=st.floats(0, 2))
def test_kl_is_never_negative_and_zero_without_a_message(
    family: Family, alpha: tuple[float, ...], beta: tuple[float, ...], mixing: float
) -> None:
    eta, message = family.natural(raw_of(family, alpha)), family.message(raw_of(family, beta))
    assert float(family.kl(family.posterior(eta, message, mixing), eta).sum()) >= -1e-10
    assert float(family.kl(family.posterior(eta, message, 0.0), eta).sum()) == pytest.approx(0.0, abs=1e-9)


@named([Gaussian(1e-3, 1e2), Laplace(1e-3, 1e2), LaplaceScale(1e-3, 1e2)])
@given(raw=st.floats(-1e4, 1e4))
def test_learned_variance_stays_within_its_bounds(family: Family, raw: float) -> None:
    variance = float(family.variance(family.natural(raw_of(family, (raw, raw)))))
    assert 1e-3 * (1 - 1e-9) <= variance <= 1e2 * (1 + 1e-9)


@named([Gaussian(1e-3, 1e2), Laplace(1e-3, 1e2)])
def test_learned_variance_has_a_gradient_over_its_whole_range(family: Family) -> None:
    for raw in (-8.0, 0.0, 100.0, 1e4):
        raw_BPD = torch.tensor([[[0.0], [raw]]], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(family.natural(raw_BPD)[:, 1].sum(), raw_BPD)
        assert gradient[0, 1, 0] != 0


@named(FAMILIES)
def test_gradients_match_finite_differences(family: Family) -> None:
    raw = torch.tensor([0.3, -0.7, 1.1, 0.2, 0.9, -0.4, 0.05, 0.6, -0.2], dtype=torch.float64)
    alpha, beta = raw_of(family, tuple(raw.tolist())), raw_of(family, tuple(raw.flip(0).tolist()))

    def evidence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return family.log_evidence(family.natural(a), family.message(b))

    def divergence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        eta = family.natural(a)
        return family.kl(family.posterior(eta, family.message(b), 0.7), eta)

    for function in (evidence, divergence):
        assert torch.autograd.gradcheck(function, (alpha.requires_grad_(), beta.requires_grad_()))


def test_laplace_posterior_is_exact_where_the_two_rates_nearly_agree() -> None:
    """A rate difference of 5e-4 gave a variance of 524 for 0.667 in float32 (method, section 2)."""
    family = Laplace(1e-3, 1e2)
    alpha, beta = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1.0], [1.0005]]])
    exact = family.variance(family.posterior(alpha.double(), torch.tensor([[[1.0], [1.0]]], dtype=torch.float64)))
    found = family.variance(family.posterior(alpha, beta))
    assert float(found) == pytest.approx(float(exact), rel=1e-2)
    assert 0.3 < float(found) < 0.8


def test_extreme_logits_give_finite_values_and_gradients_in_float32() -> None:
    family = Bernoulli()
    raw = torch.tensor([[[-1e6, -20.0, 0.0, 20.0, 1e6]]], requires_grad=True)
    eta = family.natural(raw)
    kl = family.kl(eta, torch.zeros_like(eta)).sum()
    (gradient,) = torch.autograd.grad(kl, raw)
    assert torch.isfinite(kl)
    assert torch.isfinite(gradient).all()


@named(CONTINUOUS)
@given(values=st.tuples(moderate, moderate), z=moderate)
def test_log_message_is_its_definition(family: Family, values: tuple[float, float], z: float) -> None:
    message = family.message(raw_of(family, values))
    found = family.log_message(torch.tensor([[z]], dtype=torch.float64), message)
    assert float(found) == pytest.approx(log_message(family, message, z), abs=1e-12)


@named(FAMILIES)
def test_draws_have_the_moments_of_their_density(family: Family) -> None:
    eta = family.natural(raw_of(family, (0.8, -0.6, 0.3)))
    rows = 40_000
    draws = family.sample(eta.expand(rows, -1, -1), torch.Generator().manual_seed(0))
    mean, variance = family.mean(eta)[0], family.variance(eta)[0]
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / rows).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.06, atol=0)
    if isinstance(family, Categorical):
        assert torch.equal(draws.sum(1), torch.ones(rows, dtype=torch.float64))
    if isinstance(family, Bernoulli | Categorical):
        assert set(draws.flatten().tolist()) == {0.0, 1.0}


@named(CONTINUOUS)
def test_gradient_of_a_draw_is_exact(family: Family) -> None:
    raw = raw_of(family, (0.7, -0.4)).requires_grad_()

    def draw(raw: torch.Tensor) -> torch.Tensor:
        return family.sample(family.natural(raw), torch.Generator().manual_seed(3))

    assert torch.autograd.gradcheck(draw, raw)


@named([Bernoulli(), Categorical(3)])
def test_gradient_of_a_discrete_draw_is_that_of_its_mean(family: Family) -> None:
    eta = family.natural(raw_of(family, (0.7, -0.4, 0.2))).requires_grad_()
    weight = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)[: eta.shape[-1]]
    found = torch.autograd.grad((weight * family.sample(eta, torch.Generator().manual_seed(1))).sum(), eta)
    torch.testing.assert_close(found, torch.autograd.grad((weight * family.mean(eta)).sum(), eta))
