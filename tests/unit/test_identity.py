"""The identity that the method rests on (method, section 3), on Markov chains small enough to enumerate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bll.choices import LossName, PosteriorName
from bll.config import LossConfig
from bll.families import Bernoulli, Categorical, Family
from bll.losses import Objective
from bll.twins import ClassTable

CLASSES = 3


class Chain:
    """x -> z_1 -> ... -> z_N -> y with random tables, for one x; every z has `states` states."""

    def __init__(self, states: int, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1)

        self.first = random(states)
        self.steps = [random(states, states) for _ in range(length - 1)]
        self.last = random(states, CLASSES)
        self.length = length
        self.states = states

    def joint(self) -> dict[tuple[int, ...], float]:
        """p(z_1, ..., z_N, y | x) of every outcome."""
        found = {}
        for outcome in itertools.product(*[range(self.states)] * self.length, range(CLASSES)):
            p = float(self.first[outcome[0]]) * float(self.last[outcome[-2], outcome[-1]])
            for step, (a, b) in zip(self.steps, itertools.pairwise(outcome[:-1]), strict=True):
                p *= float(step[a, b])
            found[outcome] = p
        return found

    def marginals(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """p(z_k | x), shape (states,), and p(z_k, y | x), shape (states, classes), by summing over all outcomes."""
        together = torch.zeros(self.states, CLASSES, dtype=torch.float64)
        for outcome, p in self.joint().items():
            together[outcome[k], outcome[-1]] += p
        return together.sum(1), together


def messages(family: Family, density_Z: torch.Tensor, likelihood_ZC: torch.Tensor) -> tuple[torch.Tensor, ClassTable]:
    """alpha_k = p(z_k | x) and log beta_k(z; y) = log p(y | z), exactly, in the family's parameters."""
    log_likelihood_CZ = likelihood_ZC.log().T
    if isinstance(family, Bernoulli):
        alpha = (density_Z[1] / density_Z[0]).log().reshape(1, 1, 1)
        beta = (log_likelihood_CZ[:, 1] - log_likelihood_CZ[:, 0]).reshape(-1, 1, 1)
        return alpha, ClassTable(beta, log_likelihood_CZ[:, 0])
    offset_C = log_likelihood_CZ.mean(1)
    return density_Z.log()[None, None], ClassTable((log_likelihood_CZ - offset_C[:, None])[:, None], offset_C)


@pytest.mark.parametrize(
    ("family", "states"), [(Bernoulli(), 2), (Categorical(3), 3)], ids=["bernoulli", "categorical"]
)
@pytest.mark.parametrize("mixing", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_local_loss_is_the_likelihood_and_the_distance_to_the_true_posterior(
    family: Family, states: int, mixing: float, length: int
) -> None:
    """L_k = -log p(y|x) + KL(rho_k || p(z_k | x, y)), whatever rho_k is; their mean is the paper's bound."""
    chain = Chain(states, length, seed=4)
    losses = []
    for k in range(length):
        density_Z, together_ZC = chain.marginals(k)
        likelihood_ZC = together_ZC / density_Z[:, None]
        alpha_1PD, table = messages(family, density_Z, likelihood_ZC)
        targets_B = torch.arange(CLASSES)
        objective = Objective(family, LossConfig(LossName.EVIDENCE, PosteriorName.COUPLED))
        local = objective.loss(alpha_1PD.expand(CLASSES, -1, -1), table, targets_B, mixing)
        losses.append(local.loss_B)
        for y in range(CLASSES):
            likelihood = float(together_ZC[:, y].sum())
            rho_Z = density_Z * likelihood_ZC[:, y] ** mixing
            rho_Z = rho_Z / rho_Z.sum()
            true_Z = together_ZC[:, y] / likelihood
            expected = -math.log(likelihood) + float((rho_Z * (rho_Z / true_Z).log()).sum())
            assert float(local.loss_B[y]) == pytest.approx(expected, abs=1e-10)
            assert float(local.log_probs_BC[y, y]) == pytest.approx(math.log(likelihood), abs=1e-10)
    bound_B = torch.stack(losses).mean(0)
    assert (bound_B >= -chain.marginals(0)[1].sum(0).log() - 1e-12).all()


def enumerated(alpha_D: torch.Tensor, table: ClassTable) -> tuple[torch.Tensor, torch.Tensor]:
    """All states of Bernoulli units, shape (Z, D), and log p(y|z) at each, shape (Z, C)."""
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(alpha_D))), dtype=torch.float64)
    return states, (states @ table.beta_CPD[:, 0].T + table.offset_C).log_softmax(1)


def probabilities(eta_D: torch.Tensor, states_ZD: torch.Tensor) -> torch.Tensor:
    p_D = torch.sigmoid(eta_D)
    return torch.where(states_ZD == 1, p_D, 1 - p_D).prod(1)


def random_exit(seed: int, units: int = 3) -> tuple[torch.Tensor, ClassTable]:
    generator = torch.Generator().manual_seed(seed)
    alpha_D = torch.randn(units, generator=generator, dtype=torch.float64)
    beta = 2 * torch.randn(CLASSES, 1, units, generator=generator, dtype=torch.float64)
    return alpha_D, ClassTable(beta, torch.randn(CLASSES, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("mixing", [0.0, 0.5, 1.0])
def test_sampled_discriminative_loss_has_the_enumerated_expectation(mixing: float) -> None:
    alpha_D, table = random_exit(0)
    rows, target = 4000, 1
    objective = Objective(Bernoulli(), LossConfig(LossName.DISCRIMINATIVE, samples=4))
    alpha_BPD, targets_B = alpha_D.expand(rows, 1, -1), torch.full((rows,), target)
    found_B = objective.loss(alpha_BPD, table, targets_B, mixing, torch.Generator().manual_seed(1)).loss_B
    states_ZD, log_probs_ZC = enumerated(alpha_D, table)
    rho_D = alpha_D + mixing * table.beta_CPD[target, 0]
    kl = float(Bernoulli().kl(rho_D[None, None], alpha_D[None, None]).sum())
    expected = kl - float(probabilities(rho_D, states_ZD) @ log_probs_ZC[:, target])
    assert float(found_B.mean()) == pytest.approx(expected, abs=5 * float(found_B.std()) / math.sqrt(rows))
    assert float(found_B.std()) > 0


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), exits=st.integers(1, 4), mixing=st.floats(0, 2))
def test_expected_discriminative_loss_bounds_the_likelihood_of_the_mixture(
    seed: int, exits: int, mixing: float
) -> None:
    """method, section 3, against E_alpha p(y|z): -log mean_k E_alpha_k p(y|z_k) <= mean_k L_k."""
    losses, likelihoods = [], []
    for k in range(exits):
        alpha_D, table = random_exit(seed + k)
        states_ZD, log_probs_ZC = enumerated(alpha_D, table)
        rho_D = alpha_D + mixing * table.beta_CPD[0, 0]
        kl = float(Bernoulli().kl(rho_D[None, None], alpha_D[None, None]).sum())
        losses.append(kl - float(probabilities(rho_D, states_ZD) @ log_probs_ZC[:, 0]))
        likelihoods.append(float(probabilities(alpha_D, states_ZD) @ log_probs_ZC[:, 0].exp()))
    assert -math.log(sum(likelihoods) / exits) <= sum(losses) / exits + 1e-9
