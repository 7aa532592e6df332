"""What a block sends on: against the family's own moments, and counted draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bll import TrainingConfig, fit
from bll.errors import InvalidConfig
from bll.export import export
from bll.families import make_family
from bll.partition import resolve
from bll.plain import from_dict
from bll.sending import Sender, bootstrap_probability


def config(family: str = "bernoulli", *, normalize: bool = False, **latent: Any) -> TrainingConfig:
    values = {
        "blocks": {"normalize_messages": normalize},
        "latent": {"family": family, "group_size": 2, "readout": "identity", **latent},
    }
    return from_dict(TrainingConfig, values)


def sender(run_config: TrainingConfig, block: int = 0) -> Sender:
    return Sender(make_family(run_config.latent), run_config, block)


def draw(made: Sender, rows: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A block's output of shape (B, 2, 1, 3), alpha_BPD and beta_BPD."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, made.family.num_parameters, 6)
    alpha_BPD = made.family.natural(torch.randn(shape, generator=generator))
    beta_BPD = made.family.message(torch.randn(shape, generator=generator))
    return torch.randn(rows, 2, 1, 3, generator=generator), alpha_BPD, beta_BPD


FAMILIES = ["bernoulli", "categorical", "gaussian", "unit_gaussian", "laplace"]


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_message_is_the_mean_of_alpha_in_the_shape_of_the_output(family: str) -> None:
    made = sender(config(family, message="mean"))
    output, alpha_BPD, beta_BPD = draw(made)
    found = made.message(output, alpha_BPD)
    assert found.shape == output.shape
    torch.testing.assert_close(found.flatten(1), made.family.mean(alpha_BPD))
    assert torch.equal(made.training_message(output, alpha_BPD, beta_BPD, 1.0, 0, 0), found)


@pytest.mark.parametrize(("family", "channels"), [("bernoulli", 2), ("gaussian", 4)])
def test_natural_message_has_a_channel_for_each_parameter(family: str, channels: int) -> None:
    made = sender(config(family, message="natural"))
    output, alpha_BPD, _ = draw(made)
    found = made.message(output, alpha_BPD)
    assert found.shape == (3, channels, 1, 3)
    torch.testing.assert_close(found.flatten(1), alpha_BPD.flatten(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_messages_are_draws_from_alpha_in_training_and_its_mean_in_evaluation(family: str) -> None:
    made = sender(config(family, message="sample"))
    output, alpha_BPD, beta_BPD = draw(made, rows=1)
    rows = 20_000
    many = (output.expand(rows, -1, -1, -1), alpha_BPD.expand(rows, -1, -1), beta_BPD.expand(rows, -1, -1))
    draws_BD = made.training_message(*many, 1.0, 0, 5).flatten(1)
    error = 5 * (made.family.variance(alpha_BPD) / rows).sqrt()
    assert ((draws_BD.mean(0) - made.family.mean(alpha_BPD)).abs() < error).all()
    torch.testing.assert_close(made.message(output, alpha_BPD).flatten(1), made.family.mean(alpha_BPD))


def test_draws_are_keyed_by_seed_block_and_step() -> None:
    run_config = config(message="sample")
    output, alpha_BPD, beta_BPD = draw(sender(run_config), rows=8)

    def message(block: int, step: int) -> torch.Tensor:
        return sender(run_config, block).training_message(output, alpha_BPD, beta_BPD, 1.0, 0, step)

    assert torch.equal(message(1, 7), message(1, 7))
    assert not torch.equal(message(1, 7), message(1, 8))
    assert not torch.equal(message(1, 7), message(2, 7))


def test_bootstrapping_falls_linearly_to_nothing() -> None:
    latent = config(message="mean", bootstrap=0.8, bootstrap_epochs=4).latent
    found = [bootstrap_probability(latent, epoch) for epoch in range(6)]
    assert found == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    assert bootstrap_probability(config(message="mean").latent, 0) == 0.0


@pytest.mark.parametrize("mixing", [0.5, 1.0])
def test_bootstrapped_samples_send_the_mean_of_their_posterior_and_the_others_that_of_alpha(mixing: float) -> None:
    made = sender(config(message="mean", bootstrap=0.5, bootstrap_epochs=2))
    output, alpha_BPD, beta_BPD = draw(made, rows=2000)
    rho_BPD = made.family.posterior(alpha_BPD, beta_BPD, mixing)
    forward_BD, posterior_BD = made.family.mean(alpha_BPD), made.family.mean(rho_BPD)
    for epoch, expected in ((0, 0.5), (1, 0.25), (2, 0.0)):
        found_BD = made.training_message(output, alpha_BPD, beta_BPD, mixing, epoch, epoch).flatten(1)
        chosen_B = (found_BD == posterior_BD).all(1)
        torch.testing.assert_close(found_BD, torch.where(chosen_B[:, None], posterior_BD, forward_BD))
        assert float(chosen_B.float().mean()) == pytest.approx(expected, abs=0.05)
    torch.testing.assert_close(made.message(output, alpha_BPD).flatten(1), forward_BD)


@pytest.mark.parametrize("message", ["output", "mean", "natural", "sample"])
def test_normalised_messages_have_unit_mean_square_in_training_and_evaluation(message: str) -> None:
    made = sender(config("gaussian", normalize=True, message=message))
    output, alpha_BPD, beta_BPD = draw(made)
    for found in (
        made.message(output, alpha_BPD),
        made.of_output(output) if message == "output" else made.training_message(output, alpha_BPD, beta_BPD, 1, 0, 0),
    ):
        torch.testing.assert_close(found.square().flatten(1).mean(1), torch.ones(3), rtol=1e-3, atol=0)
    assert torch.equal(made.of_output(torch.zeros(1, 2)), torch.zeros(1, 2))


@pytest.mark.parametrize("message", ["mean", "sample"])
def test_a_family_of_mean_zero_has_no_mean_to_send(message: str) -> None:
    with pytest.raises(InvalidConfig, match=r"latent\.message: must be 'output' or 'natural' for a family of mean 0"):
        config("laplace_scale", message=message)


def test_natural_messages_of_two_parameters_need_a_layer_that_takes_them() -> None:
    values = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [12, 10]},
        "blocks": {"num_blocks": 2},
        "latent": {"family": "gaussian", "readout": "identity", "message": "natural"},
    }
    words = r"latent\.message: .* 2 parameters: layer 1, 'dense 12->10', cannot take messages of shape \[24\]"
    with pytest.raises(InvalidConfig, match=words):
        resolve(from_dict(TrainingConfig, values))


class ChannelMean(nn.Module):
    """Takes images of any number of channels."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return images_BCHW.mean(1).flatten(1)


def test_a_network_that_takes_natural_messages_of_two_parameters_is_trained_with_them() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), ChannelMean(), nn.Linear(64, 8))
    values = {
        "data": {"name": "digits"},
        "blocks": {"num_blocks": 2, "cuts": [1]},
        "latent": {"family": "gaussian", "readout": "identity", "message": "natural"},
        "epochs": 1,
    }
    model = fit(from_dict(TrainingConfig, values), network=network)
    assert model.predict(np.zeros((2, 1, 8, 8), "f4"))["posterior_variance"].shape == (2, 2)


CHAINED_MEAN = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [48, 32]},
    "blocks": {"num_blocks": 2, "normalize_messages": True},
    "latent": {"readout": "identity", "message": "mean", "bootstrap": 0.5, "bootstrap_epochs": 4},
    "backward": {"twin": "chain"},
    "optimizer": {"learning_rate": 5e-3, "backward_learning_rate": 1e-2},
    "epochs": 10,
    "batch_size": 32,
}


@pytest.fixture(scope="module")
def chained_mean() -> Any:
    return fit(from_dict(TrainingConfig, CHAINED_MEAN))


def test_the_papers_network_learns(chained_mean: Any) -> None:
    """Outputs as natural parameters, means as messages, a chain as backward network, posterior bootstrapping."""
    test = chained_mean.evaluate("test")
    assert test.mixture.accuracy > 0.9
    assert min(scores.accuracy for scores in test.exits) > 0.85
    assert test.mixture_gap_nats >= 0


@pytest.mark.timeout(300)
def test_the_exported_graph_sends_the_same_messages(chained_mean: Any, tmp_path: Any) -> None:
    assert export(chained_mean, tmp_path).parity <= 1e-4
