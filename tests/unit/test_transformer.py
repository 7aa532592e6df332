"""The transformer against torch's own encoder layer, its costs, and how its signal grows with depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bll.architectures import make_layers, with_widths
from bll.architectures.layers import KeyedDropout
from bll.architectures.transformer import EncoderLayer
from bll.config import NetworkConfig
from bll.costs import measure
from bll.errors import InvalidConfig


@pytest.mark.parametrize("heads", [1, 4])
def test_an_encoder_layer_is_torchs_pre_norm_layer_without_a_mask(heads: int) -> None:
    torch.manual_seed(0)
    ours = EncoderLayer(8, heads, depth=3, dropout=0.0).double()
    theirs = nn.TransformerEncoderLayer(
        8, heads, dim_feedforward=32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    names = {
        "self_attn.in_proj_weight": "query_key_value.weight",
        "self_attn.in_proj_bias": "query_key_value.bias",
        "self_attn.out_proj": "attended",
        "linear1": "hidden",
        "linear2": "output",
    }
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    state = {}
    for name in theirs.state_dict():
        new = name
        for old, own in names.items():
            new = new.replace(old, own)
        state[name] = ours.state_dict()[new]
    theirs.load_state_dict(state)
    inputs_BTW = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(inputs_BTW), theirs(inputs_BTW))


def test_a_position_is_told_from_another_by_what_is_learned_of_it() -> None:
    embedding = make_layers(NetworkConfig("transformer", (8,), heads=2), (3, 4))[0].build()
    embedded_TW = embedding(torch.ones(1, 3, 4))[0]
    assert not torch.allclose(embedded_TW[0], embedded_TW[1])


@pytest.mark.parametrize("depth", [2, 20, 80])
def test_signal_and_gradient_stay_of_one_order_at_any_depth(depth: int) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        *(layer.build() for layer in make_layers(NetworkConfig("transformer", (64,) * depth), (16, 16)))
    )
    inputs = torch.randn(8, 16, 16)
    embedded = layers[0](inputs).detach().requires_grad_()
    output = layers[1:](embedded)
    assert 1.0 < (output.std() / embedded.std()).item() < 2.0
    direction = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, embedded, direction)
    assert 0.5 < (gradient.std() / direction.std()).item() < 2.0


def test_costs_are_those_of_the_formula() -> None:
    """Multiply-adds of T tokens: 12 W^2 each for the linear maps, 2 T W each for the attention."""
    config = NetworkConfig("transformer", (8,), heads=2)
    embedding, encoder = make_layers(config, (5, 3))
    with torch.device("meta"):
        first, second = measure(embedding.build(), (5, 3)), measure(encoder.build(), (5, 8))
    assert first.flops == 2 * 5 * 3 * 8
    assert first.parameters == 3 * 8 + 8 + 5 * 8
    assert second.flops == 2 * 5 * (12 * 8**2 + 2 * 5 * 8)
    assert second.parameters == 12 * 8**2 + 13 * 8
    assert first.output_shape == second.output_shape == (5, 8)


def test_without_widths_it_has_twenty_layers() -> None:
    config = with_widths(NetworkConfig("transformer"))
    assert config.widths == (64,) * 20
    assert [layer.name for layer in make_layers(config, (16, 9))] == ["embedding 9->64", *["encoder 64"] * 20]


def test_dropout_is_keyed() -> None:
    modules = list(EncoderLayer(8, 2, 1, 0.3).modules())
    assert [m.probability for m in modules if isinstance(m, KeyedDropout)] == [0.3]
    assert not [m for m in modules if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize(
    ("config", "shape", "words"),
    [
        (
            NetworkConfig("transformer"),
            (1, 8, 8),
            r"architecture: .* needs sequences .*, got samples of shape \[1, 8, 8\]",
        ),
        (NetworkConfig("transformer"), (8,), r"got samples of shape \[8\]"),
        (NetworkConfig("transformer", (8, 16)), (4, 3), r"widths: must be equal for 'transformer', got \[8, 16\]"),
        (NetworkConfig("transformer", (6,)), (4, 3), "heads: must divide the width, 6, got 4"),
        (NetworkConfig("transformer", stem_stride=2), (4, 3), "stem_stride: must be 1 for 'transformer', got 2"),
        (NetworkConfig("mlp", heads=2), (4, 3), "heads: says nothing about 'mlp'"),
    ],
)
def test_what_does_not_fit_is_refused(config: NetworkConfig, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        make_layers(config, shape)
