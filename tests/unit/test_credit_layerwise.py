"""Rules that cut the graph at every layer, against backpropagation and against what they promise."""

from __future__ import annotations

import copy
import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bll.architectures.layers import KeyedDropout
from bll.choices import Rule
from bll.credit import Credit, make_credit
from bll.credit.direct import DirectFeedback
from bll.credit.shapes import linear_between, with_classes
from bll.credit.synthetic import SyntheticGradients
from bll.credit.targets import STEP, TargetPropagation

LAYERWISE = (Rule.DIRECT_FEEDBACK_ALIGNMENT, Rule.TARGET_PROPAGATION, Rule.SYNTHETIC_GRADIENTS)
every_rule = pytest.mark.parametrize("rule", LAYERWISE)
CLASSES = 3


class Problem(NamedTuple):
    """Layers with a linear exit, and one batch."""

    layers: nn.Sequential
    exit: nn.Linear
    inputs: Tensor
    targets_B: Tensor

    def step(self, credit: Credit) -> Tensor:
        """Leave the gradients of one training step; returns the batch's mean loss."""
        for parameter in [*self.layers.parameters(), *self.exit.parameters(), *credit.parameters()]:
            parameter.grad = None
        log_probs_BC = self.exit(credit(self.layers, self.inputs).flatten(1)).log_softmax(1)
        loss = F.nll_loss(log_probs_BC, self.targets_B)
        credit.backward(loss, log_probs_BC, self.targets_B)
        return loss.detach()

    def gradients(self, credit: Credit) -> list[Tensor]:
        self.step(credit)
        parameters = [*self.layers.parameters(), *self.exit.parameters()]
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


def problem(*layers: nn.Module, shape: tuple[int, ...] = (4,), rows: int = 5) -> Problem:
    torch.manual_seed(0)
    stack = nn.Sequential(*layers).double()
    for module in stack.modules():  # they were made before the seed was set
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()
    inputs = torch.randn(rows, *shape, dtype=torch.float64)
    features = stack(inputs).flatten(1).shape[1]
    return Problem(stack, nn.Linear(features, CLASSES).double(), inputs, torch.arange(rows) % CLASSES)


def linear_problem() -> Problem:
    return problem(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 5))


def made(rule: Rule, of: Problem) -> Credit:
    torch.manual_seed(1)
    credit = make_credit(rule, copy.deepcopy(of.layers).float(), tuple(of.inputs.shape[1:]), CLASSES).double()
    credit.generator = torch.Generator().manual_seed(2)
    return credit


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


# Direct feedback alignment --------------------------------------------------------------------------------------


def test_direct_feedback_through_the_true_jacobians_of_a_linear_network_is_backpropagation() -> None:
    of = linear_problem()
    credit = made(Rule.DIRECT_FEEDBACK_ALIGNMENT, of)
    assert isinstance(credit, DirectFeedback)
    jacobian_CU = of.exit.weight.detach()
    for layer, feedback_CU in reversed(list(zip(list(of.layers)[1:], credit.feedback(), strict=True))):
        assert isinstance(layer, nn.Linear)
        jacobian_CU = jacobian_CU @ layer.weight.detach()
        feedback_CU.copy_(jacobian_CU)
    assert_same(of.gradients(credit), of.gradients(Credit()))


def test_direct_feedback_is_the_published_rule() -> None:
    """Nokland 2016: delta_l = (e B_l) * f'(a_l), dW_l = delta_l' h_{l-1}, for layers that are children of their own."""
    of = problem(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
    credit = made(Rule.DIRECT_FEEDBACK_ALIGNMENT, of)
    assert isinstance(credit, DirectFeedback)
    first = of.layers[0]
    assert isinstance(first, nn.Linear)
    of.step(credit)
    (feedback_CU,) = credit.feedback()
    probs_BC = of.exit(of.layers(of.inputs)).softmax(1)
    error_BC = (probs_BC - F.one_hot(of.targets_B)) / len(of.inputs)
    delta = (error_BC @ feedback_CU) * (1 - first(of.inputs).tanh() ** 2)
    torch.testing.assert_close(first.weight.grad, delta.T @ of.inputs)
    torch.testing.assert_close(first.bias.grad, delta.sum(0))


def test_direct_feedback_keeps_the_length_of_an_error() -> None:
    of = problem(nn.Linear(4, 3000), nn.Linear(3000, 2))
    credit = made(Rule.DIRECT_FEEDBACK_ALIGNMENT, of)
    assert isinstance(credit, DirectFeedback)
    (feedback_CU,) = credit.feedback()
    torch.testing.assert_close(feedback_CU @ feedback_CU.T, torch.eye(CLASSES, dtype=torch.float64), rtol=0, atol=0.1)


# Target propagation ---------------------------------------------------------------------------------------------


def set_inverses(credit: TargetPropagation, layers: nn.Sequential) -> None:
    """The exact inverse of each linear layer but the first."""
    for inverse, layer in zip(credit.inverses, list(layers)[1:], strict=True):
        dense = inverse.get_submodule("1")
        assert isinstance(dense, nn.Linear)
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            dense.weight.copy_(torch.linalg.inv(layer.weight))
            dense.bias.copy_(-dense.weight @ layer.bias)


def test_targets_through_exact_inverses_are_inputs_that_give_the_target_above() -> None:
    of = problem(*(nn.Linear(4, 4) for _ in range(4)))
    credit = made(Rule.TARGET_PROPAGATION, of)
    assert isinstance(credit, TargetPropagation)
    set_inverses(credit, of.layers)
    outputs = list(itertools.accumulate(of.layers, lambda hidden, layer: layer(hidden), initial=of.inputs))[1:]
    targets = credit.targets(outputs, torch.randn(5, 4, dtype=torch.float64))
    for layer, target, above in zip(list(of.layers)[1:], targets, targets[1:], strict=False):
        torch.testing.assert_close(layer(target), above)


def test_the_difference_correction_leaves_no_error_where_there_is_none_above() -> None:
    """However wrong the inverses are: t_L = h_L makes every t_l = h_l (Lee et al. 2015, section 2.3)."""
    of = problem(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    credit = made(Rule.TARGET_PROPAGATION, of)
    assert isinstance(credit, TargetPropagation)
    outputs = [torch.randn(5, *shape, dtype=torch.float64) for shape in credit.shapes]
    assert_same(credit.targets(outputs, outputs[-1]), outputs)


def test_target_propagation_through_orthogonal_layers_is_backpropagation() -> None:
    """There the inverse is the transpose. It also fixes the scale: the last layer's gradient is the true one."""
    of = problem(*(nn.Linear(4, 4) for _ in range(3)))
    for layer in list(of.layers)[1:]:
        assert isinstance(layer, nn.Linear)
        nn.init.orthogonal_(layer.weight)
    credit = made(Rule.TARGET_PROPAGATION, of)
    assert isinstance(credit, TargetPropagation)
    set_inverses(credit, of.layers)
    assert_same(of.gradients(credit), of.gradients(Credit()))


def test_a_layer_descends_its_distance_to_its_target() -> None:
    of = problem(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3), nn.Tanh())
    credit = made(Rule.TARGET_PROPAGATION, of)
    assert isinstance(credit, TargetPropagation)
    found = of.gradients(credit)
    stages = [nn.Sequential(*list(of.layers)[i : i + 2]) for i in (0, 2, 4)]
    hidden, losses, outputs = of.inputs, [], []
    for stage in stages:
        outputs.append(stage(hidden))
        hidden = outputs[-1].detach()
    top = hidden.requires_grad_()
    loss_B = F.cross_entropy(of.exit(top), of.targets_B, reduction="none")
    (gradient,) = torch.autograd.grad(loss_B.sum(), top)
    targets = credit.targets([output.detach() for output in outputs], (top - STEP * gradient).detach())
    for output, target in zip(outputs, targets, strict=True):
        losses.append((output - target).square().flatten(1).sum(1).mean() / (2 * STEP))
    expected = torch.autograd.grad(sum(losses), list(of.layers.parameters()))
    assert_same(found[: len(expected)], list(expected))


def test_inverses_learn_to_undo_their_layers() -> None:
    of = problem(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6), rows=64)
    credit = made(Rule.TARGET_PROPAGATION, of)
    assert isinstance(credit, TargetPropagation)
    below = of.layers[:2](of.inputs).detach()
    above = of.layers[2:](below).detach()
    (inverse,) = credit.inverses
    optimizer = torch.optim.Adam(credit.parameters(), 0.05)
    before = F.mse_loss(inverse(above), below).item()
    for _ in range(150):
        of.step(credit)
        optimizer.step()
    assert F.mse_loss(inverse(above), below).item() < before / 20


def test_noise_for_the_inverses_leaves_running_statistics_and_the_masks_of_dropout_alone() -> None:
    of = problem(
        *(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), KeyedDropout(0.5)),
        *(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), KeyedDropout(0.5)),
    )
    plain = of._replace(layers=copy.deepcopy(of.layers))
    for one, credit in ((of, made(Rule.TARGET_PROPAGATION, of)), (plain, Credit())):
        generator = torch.Generator().manual_seed(3)
        for module in one.layers:
            if isinstance(module, KeyedDropout):
                module.generator = generator
        credit.generator = generator
        one.step(credit)
    for name, buffer in plain.layers.named_buffers():
        torch.testing.assert_close(of.layers.get_buffer(name), buffer, rtol=0, atol=0)


# Synthetic gradients --------------------------------------------------------------------------------------------


class Given(nn.Module):
    """A synthesiser that knows the answer."""

    def __init__(self, gradient: Tensor) -> None:
        super().__init__()
        self.gradient = nn.Parameter(gradient)

    def forward(self, hidden: Tensor, one_hot_BC: Tensor) -> Tensor:
        return self.gradient


def true_gradients(of: Problem) -> list[Tensor]:
    """dL/dh of a sample, for the output of every layer but the last."""
    outputs = list(itertools.accumulate(of.layers, lambda hidden, layer: layer(hidden), initial=of.inputs))[1:]
    loss = F.cross_entropy(of.exit(outputs[-1]), of.targets_B, reduction="sum")
    return list(torch.autograd.grad(loss, outputs[:-1]))


def test_perfect_synthesisers_give_backpropagation_and_have_nothing_to_learn() -> None:
    of = linear_problem()
    credit = made(Rule.SYNTHETIC_GRADIENTS, of)
    assert isinstance(credit, SyntheticGradients)
    credit.synthesisers = nn.ModuleList(Given(gradient) for gradient in true_gradients(of))
    assert_same(of.gradients(credit), of.gradients(Credit()))
    of.step(credit)
    for parameter in credit.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter))


def test_synthetic_gradients_start_at_zero() -> None:
    of = linear_problem()
    found = of.gradients(made(Rule.SYNTHETIC_GRADIENTS, of))
    assert [bool(gradient.any()) for gradient in found] == [False] * 4 + [True] * 4


def test_bootstrapped_synthetic_gradients_become_the_true_ones_where_layers_stand_still() -> None:
    """Two layers below the only one that is told the truth."""
    of = problem(nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 5), rows=6)
    credit = made(Rule.SYNTHETIC_GRADIENTS, of)
    optimizer = torch.optim.Adam(credit.parameters(), 0.003)
    for _ in range(400):
        of.step(credit)
        optimizer.step()
    for found, true in zip(of.gradients(credit), of.gradients(Credit()), strict=True):
        assert (found - true).norm() < 0.1 * true.norm()


# What all keep --------------------------------------------------------------------------------------------------


@every_rule
def test_no_gradient_passes_from_layer_to_layer(rule: Rule) -> None:
    of = problem(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
    credit = made(rule, of)
    exit_inputs = credit(of.layers, of.inputs)
    assert exit_inputs.is_leaf
    stages = ([0, 1], [2, 3], [4])
    passes = credit._trace[1]  # type: ignore[index]
    assert len(passes) == len(stages)
    for stage, each in zip(stages, passes, strict=True):
        parameters = [(name, p) for name, p in of.layers.named_parameters()]
        reached = torch.autograd.grad(each.output.sum(), [p for _, p in parameters], allow_unused=True)
        own = [int(name.split(".")[0]) in stage for name, _ in parameters]
        assert [gradient is not None for gradient in reached] == own


@every_rule
def test_the_exit_and_the_last_layer_get_their_true_gradients(rule: Rule) -> None:
    of = problem(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
    found, true = of.gradients(made(rule, of)), of.gradients(Credit())
    assert_same(found[4:], true[4:])
    assert not torch.allclose(found[2], true[2])


@every_rule
def test_one_layer_alone_learns_by_backpropagation(rule: Rule) -> None:
    of = problem(nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), rows=2)
    assert_same(of.gradients(made(rule, of)), of.gradients(Credit()))


@every_rule
def test_frozen_layers_stay_as_they_are(rule: Rule) -> None:
    of = problem(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 5))
    for parameter in of.layers[0].parameters():
        parameter.requires_grad_(False)
    of.step(made(rule, of))
    assert all(p.grad is None for p in of.layers[0].parameters())
    assert all(p.grad is not None for p in of.layers[1].parameters())


@every_rule
@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((2, 6, 5), [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 8, 1)]),
        ((2, 4, 4), [nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Conv2d(2, 3, 3)]),
        ((2, 4, 4), [nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 4)]),
        ((7, 4), [nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)]),
    ],
    ids=["images", "decoder", "images_to_vectors", "sequences"],
)
def test_layers_of_any_shape_are_given_credit(rule: Rule, shape: tuple[int, ...], layers: list[nn.Module]) -> None:
    of = problem(*copy.deepcopy(layers), shape=shape)
    credit = made(rule, of)
    optimizer = torch.optim.Adam([*of.layers.parameters(), *of.exit.parameters(), *credit.parameters()], 0.005)
    first = of.step(credit)
    for _ in range(120):
        of.step(credit)
        optimizer.step()
    assert of.step(credit) < first / 2
    assert all(p.grad is not None for p in of.layers.parameters())


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((3,), (5,)),
        ((4, 3), (4, 5)),
        ((4, 3), (2, 5)),
        ((2, 3, 3), (4, 5, 7)),
        ((2, 7, 3), (1, 3, 5)),
        ((2, 2), (5,)),
    ],
)
def test_maps_between_shapes_are_affine_and_reach_every_unit(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    between = linear_between(source, target).double()
    one, other = torch.randn(2, 3, *source, dtype=torch.float64)
    assert between(one).shape == (3, *target)
    torch.testing.assert_close(between(0.3 * one + 0.7 * other), 0.3 * between(one) + 0.7 * between(other))
    moved = between(one) - between(torch.zeros_like(one))
    assert (moved != 0).all()


def test_classes_are_features_of_every_position() -> None:
    one_hot_BC = F.one_hot(torch.tensor([1, 0]), 2)
    images = with_classes(torch.zeros(2, 3, 4, 4), one_hot_BC)
    assert images.shape == (2, 5, 4, 4)
    assert images[:, 3:].amin((2, 3)).tolist() == images[:, 3:].amax((2, 3)).tolist() == [[0, 1], [1, 0]]
    assert with_classes(torch.zeros(2, 6, 3), one_hot_BC)[:, :, 3:].sum(1).tolist() == [[0, 6], [6, 0]]
    assert with_classes(torch.zeros(2, 3), one_hot_BC)[:, 3:].tolist() == [[0, 1], [1, 0]]
