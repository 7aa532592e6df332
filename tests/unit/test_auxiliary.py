"""The terms beside L_k against direct implementations, in float64 where it is sums."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bll import TrainingConfig, fit
from bll.auxiliary import Auxiliary, make_decoder
from bll.blocks import Normalize, build_block
from bll.choices import LossName
from bll.config import LatentConfig, LossConfig
from bll.errors import InvalidConfig
from bll.losses import LocalLoss, Objective
from bll.partition import resolve
from bll.plain import from_dict
from bll.similarity import SimilarityMatching, similarity_matrix


def config(**values: Any) -> TrainingConfig:
    base = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [24, 16]},
        "blocks": {"num_blocks": 2},
        "optimizer": {"learning_rate": 5e-3, "backward_learning_rate": 1e-2},
        "epochs": 8,
        "batch_size": 32,
    }
    return from_dict(TrainingConfig, {**base, **values})


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine_of_centred(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_similarities_of_vectors_are_cosines_of_centred_features(rows: int) -> None:
    features = normal(rows, 7)
    expected = [[cosine_of_centred(a, b) for b in features] for a in features]
    torch.testing.assert_close(similarity_matrix(features), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "size", "spread"), [(4, 3, True), (3, 3, False), (6, 1, False)])
def test_images_are_compared_by_the_spread_of_their_channels_as_published(
    channels: int, size: int, spread: bool
) -> None:
    images = normal(4, channels, size, size)
    features = images.flatten(2).std(2) if spread else images.flatten(1)
    torch.testing.assert_close(similarity_matrix(images), similarity_matrix(features))


def test_a_constant_sample_is_like_no_other_and_has_a_gradient() -> None:
    features = torch.ones(2, 3, requires_grad=True)
    matrix = similarity_matrix(features)
    (gradient,) = torch.autograd.grad(matrix.sum(), features)
    assert torch.equal(matrix, torch.zeros(2, 2))
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(6,), (5, 4, 4)])
def test_similarity_matching_is_the_squared_error_between_outputs_and_one_hot_targets(shape: tuple[int, ...]) -> None:
    term = SimilarityMatching(shape, 3).double()
    output, targets_B = normal(5, *shape), torch.tensor([0, 1, 0, 2, 1])
    found = float(term(output, targets_B).detach())
    features = term.network(output).detach()
    if len(shape) == 3:
        features = features.flatten(2).std(2)
    one_hot = torch.eye(3, dtype=torch.float64)[targets_B]
    total = 0.0
    for i in range(5):
        for j in range(5):
            total += (cosine_of_centred(features[i], features[j]) - cosine_of_centred(one_hot[i], one_hot[j])) ** 2
    assert found == pytest.approx(total / 25)


@pytest.mark.parametrize(
    ("output", "received"),
    [((4, 2, 2), (3, 8, 8)), ((4, 4, 4), (2, 4, 4)), ((6,), (1, 8, 8)), ((5,), (7,)), ((3, 2, 2), (9,))],
)
def test_a_decoder_gives_what_was_received_its_shape(output: tuple[int, ...], received: tuple[int, ...]) -> None:
    assert make_decoder(output, received)(torch.zeros(2, *output)).shape == (2, *received)


def auxiliary(loss: LossConfig, block: int = 0) -> Auxiliary:
    return Auxiliary((3,), (4,), 3, loss, LatentConfig(), block).double()


def test_weights_of_the_terms_are_those_of_the_config() -> None:
    made = auxiliary(LossConfig(similarity=0.3, reconstruction=2.0, block_weights=(1.0, 0.5)), block=1)
    received, output, targets_B = normal(5, 3), normal(5, 4, seed=1), torch.tensor([0, 1, 2, 0, 0])
    local = LocalLoss(normal(5, seed=2), torch.zeros(5, 3))
    assert made.similarity is not None
    assert made.decoder is not None
    expected = 0.7 * local.loss_B.mean() + 0.3 * made.similarity(output, targets_B)
    expected = 0.5 * (expected + 2.0 * (made.decoder(output) - received).square().mean())
    torch.testing.assert_close(made(local, received, output, targets_B, torch.Generator()), expected)


def test_without_terms_the_mean_local_loss_is_left_as_it_is() -> None:
    loss_B = torch.tensor([1.0, 2.5])
    made = auxiliary(LossConfig())
    found = made(LocalLoss(loss_B, torch.zeros(2, 3)), normal(2, 3), normal(2, 4), torch.zeros(2), torch.Generator())
    assert torch.equal(found, loss_B.mean())
    assert not list(made.parameters())


def test_no_gradient_of_reconstruction_reaches_what_was_received() -> None:
    made, received = auxiliary(LossConfig(reconstruction=1.0)), normal(2, 3).requires_grad_()
    local = LocalLoss(torch.zeros(2, dtype=torch.float64), torch.zeros(2, 3))
    loss = made(local, received, normal(2, 4).requires_grad_(), torch.zeros(2), torch.Generator())
    (gradient,) = torch.autograd.grad(loss, received, allow_unused=True, materialize_grads=True)
    assert not gradient.any()


def test_the_first_block_reconstructs_samples_after_normalisation() -> None:
    plan = resolve(config(loss={"reconstruction": 1.0}))
    block = build_block(plan, 0)
    first = block.layers[0]
    assert isinstance(first, Normalize)
    first.mean.fill_(0.5)
    first.std.fill_(0.1)
    samples, output = torch.rand(3, 1, 8, 8), torch.rand(3, 24)
    local = LocalLoss(torch.zeros(3), torch.zeros(3, 10))
    assert block.auxiliary.decoder is not None
    expected = F.mse_loss(block.auxiliary.decoder(output), (samples - 0.5) / 0.1)
    torch.testing.assert_close(block.objective(local, samples, output, torch.zeros(3), torch.Generator()), expected)


@pytest.mark.parametrize("rule", ["bll", "predsim", "prototype"])
def test_plan_counts_what_the_terms_train(rule: str) -> None:
    values = {"loss": {"reconstruction": 0.1, "similarity": 0.5}} if rule == "bll" else {}
    plan = resolve(config(rule=rule, network={"widths": [4]}, **values))
    plain = resolve(config(rule="local_classifiers", network={"widths": [4]}))
    for index, (block_plan, without) in enumerate(zip(plan.blocks, plain.blocks, strict=True)):
        block = build_block(plan, index)
        assert block_plan.parameters == sum(p.numel() for p in block.parameters())
        assert {id(p) for p in block.forward_parameters()} | {id(p) for p in block.twin.parameters()} == {
            id(p) for p in block.parameters()
        }
        assert block_plan.flops > without.flops
        assert block_plan.activation_bytes > without.activation_bytes


def test_local_classifiers_have_the_gradients_of_plain_cross_entropy_with_a_linear_head() -> None:
    """At m = 0 with a unit Gaussian latent: layers, readout, then a linear map to the classes (method, section 6)."""
    plan = resolve(config(rule="local_classifiers", latent={"family": "unit_gaussian"}))
    block = build_block(plan, 0, None).train()
    received, targets_B = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 9, 9, 4])
    output = block.layers(received)
    table = block.twin(None)
    objective = Objective(block.readout.family, plan.config.loss)
    local = objective.loss(block.readout(output), table, targets_B, plan.config.mixing.start)
    found = torch.autograd.grad(
        block.objective(local, received, output, targets_B, torch.Generator()), list(block.parameters())
    )
    head = nn.Linear(block.readout.units, 10)
    with torch.no_grad():
        head.weight.copy_(block.twin.table[:, 0])  # type: ignore[index]
        head.bias.copy_(block.twin.offset)  # type: ignore[arg-type]
    loss = F.cross_entropy(head(block.readout.layers(block.layers(received))), targets_B)  # type: ignore[operator]
    forward = block.forward_parameters()
    expected = torch.autograd.grad(loss, [*forward, head.weight, head.bias])
    torch.testing.assert_close(found[: len(forward)], expected[: len(forward)])
    torch.testing.assert_close(found[len(forward)].squeeze(1), expected[-2])
    torch.testing.assert_close(found[-1], expected[-1])


def test_predsim_is_the_published_loss() -> None:
    """(1 - 0.99) cross-entropy + 0.99 similarity matching, written out from the authors' description."""
    plan = resolve(config(rule="predsim", latent={"family": "unit_gaussian"}))
    block = build_block(plan, 0, None).eval()
    received, targets_B = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 9, 9, 4])
    output = block.layers(received)
    alpha_BPD, table = block.readout(output), block.twin(None)
    local = Objective(block.readout.family, plan.config.loss).loss(alpha_BPD, table, targets_B, 0.0)
    found = block.objective(local, received, output, targets_B, torch.Generator())

    def similarities(x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(dim=1).unsqueeze(1)
        unit = centred / (1e-8 + torch.sqrt(torch.sum(centred**2, dim=1))).unsqueeze(1)
        return unit.matmul(unit.transpose(1, 0)).clamp(-1, 1)

    assert block.auxiliary.similarity is not None
    weight = next(block.auxiliary.similarity.network.parameters())
    match = F.mse_loss(similarities(output @ weight.T), similarities(torch.eye(10)[targets_B]))
    logits_BC = alpha_BPD[:, 0] @ table.beta_CPD[:, 0].T + table.offset_C
    torch.testing.assert_close(found, 0.01 * F.cross_entropy(logits_BC, targets_B) + 0.99 * match)


MLP = {"architecture": "mlp", "widths": [24, 16]}


@pytest.mark.parametrize(
    ("rule", "network"),
    [("local_classifiers", MLP), ("predsim", MLP), ("prototype", MLP), ("prototype", {"widths": [4]})],
)
def test_local_rules_learn_and_their_exits_are_distributions(rule: str, network: dict[str, Any]) -> None:
    model = fit(config(rule=rule, network=network, epochs=6))
    test = model.evaluate("test")
    assert min(scores.accuracy for scores in test.exits) > 0.8
    exits_BNC = model.predict(model.validation_inputs(20))["exit_probabilities"]
    assert exits_BNC.shape == (20, 2, 10)
    assert exits_BNC.sum(2) == pytest.approx(1, abs=1e-5)
    assert math.exp(-test.exits[-1].nll_nats) > 0.5


def test_samples_are_refused_where_none_are_drawn() -> None:
    with pytest.raises(InvalidConfig, match=r"loss\.samples: must be 0 for loss .*evidence.*, got 4"):
        config(loss={"samples": 4})


def test_prototypes_belong_to_their_rule() -> None:
    with pytest.raises(InvalidConfig, match=r"loss\.name: must be another for rule 'bll'"):
        resolve(config(loss={"name": LossName.PROTOTYPE}))
