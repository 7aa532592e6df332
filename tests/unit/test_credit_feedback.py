"""Feedback alignment and sign symmetry against autograd, and the limit in which BLL is one of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from bll.architectures.efficientnet import MBConvLayer
from bll.architectures.residual_cnn import ResidualLayer
from bll.choices import Rule
from bll.credit import make_credit
from bll.credit.feedback import FeedbackMap, RandomFeedback, SignFeedback
from bll.errors import InvalidConfig
from bll.families import Bernoulli, Categorical, ExponentialFamily, Gaussian

MAPS: dict[str, tuple[nn.Linear | _ConvNd, tuple[int, ...]]] = {
    "dense": (nn.Linear(5, 3), (5,)),
    "dense_no_bias": (nn.Linear(5, 3, bias=False), (5,)),
    "dense_positions": (nn.Linear(5, 3), (4, 5)),
    "conv1d": (nn.Conv1d(2, 3, 3, padding=1), (2, 7)),
    "conv_stride_padding": (nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 7, 6)),
    "conv_groups_dilation": (nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False), (4, 6, 5)),
    "conv_depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5)),
    "conv_same": (nn.Conv2d(2, 3, 3, padding="same"), (2, 6, 6)),
    "conv_valid": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 6, 6)),
    "conv_circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 6)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1, groups=1), (3, 4, 5)),
    "transposed_groups": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 3, 3)),
}


def gradients(module: nn.Module, inputs: Tensor, error: Tensor) -> tuple[Tensor, ...]:
    """Of the input and of each parameter, for a gradient `error` of the output."""
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(module(inputs), [inputs, *module.parameters()], error)


def problem(name: str) -> tuple[nn.Linear | _ConvNd, Tensor, Tensor]:
    torch.manual_seed(0)
    plain, shape = MAPS[name]
    plain = copy.deepcopy(plain).double()
    plain.reset_parameters()
    inputs = torch.randn(2, *shape, dtype=torch.float64)
    return plain, inputs, torch.randn_like(plain(inputs))


@pytest.mark.parametrize("name", MAPS)
def test_feedback_through_the_own_weight_is_backpropagation(name: str) -> None:
    plain, inputs, error = problem(name)
    wrapped = RandomFeedback(plain)
    wrapped.weight.copy_(plain.weight.detach())
    torch.testing.assert_close(wrapped(inputs), plain(inputs), rtol=0, atol=0)
    for found, expected in zip(gradients(wrapped, inputs, error), gradients(plain, inputs, error), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [RandomFeedback, SignFeedback])
@pytest.mark.parametrize("name", MAPS)
def test_errors_go_back_through_the_feedback_weight_and_weights_get_the_true_gradient(
    name: str, kind: type[FeedbackMap]
) -> None:
    plain, inputs, error = problem(name)
    wrapped = kind(plain)
    weight = plain.weight
    assert isinstance(weight, nn.Parameter)
    to_inputs, *to_parameters = gradients(wrapped, inputs, error)
    for found, expected in zip(to_parameters, gradients(plain, inputs, error)[1:], strict=True):
        torch.testing.assert_close(found, expected)
    feedback = wrapped.weight if isinstance(wrapped, RandomFeedback) else weight.sign() * weight.abs().mean()
    with torch.no_grad():
        weight.copy_(feedback)
    torch.testing.assert_close(to_inputs, gradients(plain, inputs, error)[0])


@pytest.mark.parametrize("rule", [Rule.FEEDBACK_ALIGNMENT, Rule.SIGN_SYMMETRY])
def test_two_dense_layers_get_the_published_gradients(rule: Rule) -> None:
    """Lillicrap et al. 2016: delta_1 = (B' delta_2) * relu'(a_1), dW_1 = delta_1 x'."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 5), nn.Linear(5, 3)
    layers = nn.Sequential(first, nn.ReLU(), second).double()
    make_credit(rule, layers, (4,), num_classes=3)
    inputs, error = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    layers(inputs).backward(error)
    wrapped = layers[2]
    assert isinstance(wrapped, FeedbackMap)
    before = first(inputs)
    delta = (error @ wrapped.feedback()) * (before > 0)
    torch.testing.assert_close(first.weight.grad, delta.T @ inputs)
    torch.testing.assert_close(first.bias.grad, delta.sum(0))
    torch.testing.assert_close(second.weight.grad, error.T @ before.relu())


@pytest.mark.parametrize("layer", [ResidualLayer(4, 6, 2, 0.0), MBConvLayer(4, 4, 3, 1, 2, 0.0)])
def test_maps_inside_a_layer_are_wrapped_at_any_depth(layer: nn.Module) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(layer).double().train()
    inputs = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    error = torch.randn_like(layers(inputs))
    expected = gradients(layers, inputs, error)
    make_credit(Rule.FEEDBACK_ALIGNMENT, layers, (4, 6, 6), num_classes=3)
    wrapped = [m for m in layers.modules() if isinstance(m, RandomFeedback)]
    assert len(wrapped) == sum(isinstance(m, nn.Conv2d) for m in layers.modules()) >= 3
    assert not torch.allclose(gradients(layers, inputs, error)[0], expected[0])
    for module in wrapped:
        module.weight.copy_(module.plain.weight.detach())
    for found, true in zip(gradients(layers, inputs, error), expected, strict=True):
        torch.testing.assert_close(found, true)


def test_random_feedback_is_as_large_as_the_initial_weight_and_drawn_anew_for_each_map() -> None:
    torch.manual_seed(0)
    first, second = (RandomFeedback(nn.Linear(200, 100)) for _ in range(2))
    size = first.plain.weight.detach().square().mean().sqrt()
    torch.testing.assert_close(first.weight.square().mean().sqrt(), size, rtol=0.05, atol=0)
    for other in (second.weight, first.plain.weight.detach()):
        assert abs(F.cosine_similarity(first.weight.flatten(), other.flatten(), dim=0)) < 0.05


def test_a_map_that_starts_at_zero_gets_feedback_all_the_same() -> None:
    plain = nn.Linear(100, 50)
    nn.init.zeros_(plain.weight)
    torch.testing.assert_close(RandomFeedback(plain).weight.std(), torch.tensor(0.1), rtol=0.05, atol=0)


def test_in_evaluation_the_plain_map_runs() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 2, 3))
    make_credit(Rule.SIGN_SYMMETRY, layers, (1, 5, 5), num_classes=2)
    inputs = torch.randn(1, 1, 5, 5, requires_grad=True)
    output = layers.eval()(inputs)
    assert "Convolution" in type(output.grad_fn).__name__
    assert "_Convolution" not in type(output.grad_fn).__name__


@pytest.mark.parametrize("rule", [Rule.FEEDBACK_ALIGNMENT, Rule.SIGN_SYMMETRY])
def test_weight_matrices_that_cannot_be_wrapped_are_refused(rule: Rule) -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.MultiheadAttention(4, 2)))
    with pytest.raises(InvalidConfig, match=f"'{rule.value}'.*MultiheadAttention") as caught:
        make_credit(rule, layers, (3, 4), num_classes=2)
    assert [violation.field for violation in caught.value.violations] == ["network"]


FAMILIES = [Bernoulli(), Categorical(3), Gaussian(1e-3, 1e2)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_bll_with_a_small_detached_posterior_sends_back_the_fisher_information_times_b(
    family: ExponentialFamily,
) -> None:
    """(mu(a) - mu(a + m b)) / m -> -F(a) b, F = hess A (method, section 6)."""
    alpha_PD, beta_PD, mixing = *messages(family), 1e-6
    fisher = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
        lambda eta_PD: family.log_partition(eta_PD).sum(), alpha_PD
    )
    expected_PD = -torch.einsum("pdqe,qe->pd", fisher, beta_PD)
    means_PD = family.mean_parameters(alpha_PD) - family.mean_parameters(alpha_PD + mixing * beta_PD)
    torch.testing.assert_close(means_PD / mixing, expected_PD, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(local_gradient(family, alpha_PD, beta_PD, mixing), expected_PD, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_in_that_limit_the_transposed_weight_times_the_error_as_message_is_backpropagation(
    family: ExponentialFamily,
) -> None:
    """b = -W' delta, where the next layer takes W E[T(z)] and delta is the error at its output."""
    alpha_PD, _ = messages(family)
    alpha_PD.requires_grad_()
    weight = torch.randn(4, alpha_PD.numel(), dtype=torch.float64)
    above = weight @ family.mean_parameters(alpha_PD).flatten()
    loss = F.cross_entropy(above, torch.tensor(2))
    true_PD, delta = torch.autograd.grad(loss, (alpha_PD, above))
    beta_PD = -(weight.T @ delta).reshape(alpha_PD.shape)
    found_PD = local_gradient(family, alpha_PD.detach(), beta_PD, 1e-6)
    torch.testing.assert_close(found_PD, true_PD, rtol=1e-4, atol=1e-6)


def messages(family: ExponentialFamily) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    raw_PD, other_PD = torch.randn(2, family.num_parameters, 6, dtype=torch.float64)
    return family.natural(raw_PD), family.message(other_PD)


def local_gradient(family: ExponentialFamily, alpha_PD: Tensor, beta_PD: Tensor, mixing: float) -> Tensor:
    """Gradient of KL(rho || alpha) / m with respect to alpha, rho detached."""
    alpha_PD = alpha_PD.clone().requires_grad_()
    rho_PD = family.posterior(alpha_PD, beta_PD, mixing).detach()
    (found_PD,) = torch.autograd.grad(family.kl(rho_PD, alpha_PD).sum() / mixing, alpha_PD)
    return found_PD
