"""The built-in networks: their published sizes, their shapes, what they refuse, and that they learn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bll.architectures import make_layers, with_widths
from bll.architectures.efficientnet import SqueezeExcitation
from bll.config import NetworkConfig, TrainingConfig
from bll.costs import Cost, measure
from bll.errors import InvalidConfig
from bll.export import TOLERANCE, export
from bll.plain import from_dict
from bll.training import fit

IMAGES = ("residual_cnn", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_small", "conv_autoencoder")
RESNETS = IMAGES[1:5]


def costs(config: NetworkConfig, input_shape: tuple[int, ...]) -> list[Cost]:
    found: list[Cost] = []
    for layer in make_layers(config, input_shape):
        with torch.device("meta"):
            found.append(measure(layer.build(), found[-1].output_shape if found else input_shape))
    return found


@pytest.mark.parametrize(
    ("architecture", "stem_stride", "parameters", "gigaflops", "num_layers"),
    [
        ("resnet18", 4, 11_176_512, 3.63, 9),
        ("resnet34", 4, 21_284_672, 7.33, 17),
        ("resnet50", 4, 23_508_032, 8.17, 17),
        ("resnet101", 4, 42_500_160, 15.60, 34),
        ("efficientnet_small", 2, 4_007_548, 0.77, 18),
    ],
)
def test_networks_for_imagenet_have_the_published_parameters_and_flops(
    architecture: str, stem_stride: int, parameters: int, gigaflops: float, num_layers: int
) -> None:
    found = costs(NetworkConfig(architecture, stem_stride=stem_stride), (3, 224, 224))
    assert sum(cost.parameters for cost in found) == parameters
    assert sum(cost.flops for cost in found) / 1e9 == pytest.approx(gigaflops, abs=0.01)
    assert len(found) == num_layers
    assert found[-1].output_shape[1:] == (7, 7)


@pytest.mark.parametrize(
    ("architecture", "stem_stride", "sides"),
    [
        ("residual_cnn", 2, [14, 14, 14, 7, 7, 4, 4]),
        ("resnet18", 1, [28, 28, 28, 14, 14, 7, 7, 4, 4]),
        ("resnet18", 2, [14, 14, 14, 7, 7, 4, 4, 2, 2]),
        ("resnet18", 4, [7, 7, 7, 4, 4, 2, 2, 1, 1]),
        ("efficientnet_small", 1, [28, 28, *[14] * 2, *[7] * 2, *[4] * 6, *[2] * 6]),
    ],
)
def test_small_images_shrink_by_the_stem_and_the_stages(architecture: str, stem_stride: int, sides: list[int]) -> None:
    found = costs(NetworkConfig(architecture, stem_stride=stem_stride), (1, 28, 28))
    assert [cost.output_shape[1] for cost in found] == sides
    assert [cost.output_shape[2] for cost in found] == sides


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 13, 7), (1, 4, 4)])
def test_an_autoencoder_ends_at_the_size_of_its_images_behind_its_bottleneck(shape: tuple[int, ...]) -> None:
    found = costs(NetworkConfig("conv_autoencoder", widths=(4, 8, 5)), shape)
    _, height, width = shape
    half, quarter = ((-(-height // n), -(-width // n)) for n in (2, 4))
    assert [cost.output_shape for cost in found] == [
        (4, *half),
        (8, *quarter),
        (5,),
        (8, *quarter),
        (4, *half),
        (4, height, width),
    ]


@pytest.mark.parametrize("architecture", ["mlp", *IMAGES])
def test_absent_widths_are_the_architectures_own_and_are_made_explicit(architecture: str) -> None:
    config = NetworkConfig(architecture)
    explicit = with_widths(config)
    assert explicit.widths
    assert with_widths(explicit) is explicit
    assert [layer.name for layer in make_layers(config, (3, 32, 32))] == [
        layer.name for layer in make_layers(explicit, (3, 32, 32))
    ]


@pytest.mark.parametrize(
    ("values", "shape", "field", "words"),
    [
        ({"architecture": "mlp", "stem_stride": 2}, (1, 28, 28), "stem_stride", "must be 1 for 'mlp', got 2"),
        ({"stem_stride": 4}, (1, 28, 28), "stem_stride", "must be 1 or 2 for 'residual_cnn', got 4"),
        ({"architecture": "efficientnet_small", "stem_stride": 4}, (3, 99, 99), "stem_stride", "1 or 2"),
        ({"architecture": "resnet18"}, (20,), "architecture", "'resnet18' needs images"),
        ({"architecture": "efficientnet_small"}, (20,), "architecture", "'efficientnet_small' needs images"),
        ({"architecture": "resnet50", "stem_stride": 4}, (1, 16, 9), "architecture", "halves 16x9 images more often"),
        ({"architecture": "efficientnet_small"}, (1, 8, 8), "architecture", "halves 8x8 images more often"),
        ({"architecture": "resnet34", "widths": (8, 16)}, (1, 28, 28), "widths", "4 stages of 'resnet34', got [8, 16]"),
        ({"architecture": "efficientnet_small", "widths": (8,)}, (1, 28, 28), "widths", "must list 9 entries"),
        ({"architecture": "conv_autoencoder", "widths": (8,)}, (1, 28, 28), "widths", "at least 2 entries"),
        ({"architecture": "conv_autoencoder"}, (20,), "architecture", "'conv_autoencoder' needs images"),
        ({"architecture": "conv_autoencoder", "stem_stride": 2}, (1, 28, 28), "stem_stride", "must be 1"),
        ({"architecture": "conv_autoencoder"}, (1, 2, 2), "architecture", "halves 2x2 images more often"),
    ],
)
def test_what_an_architecture_cannot_be_is_refused_with_the_reason(
    values: dict[str, Any], shape: tuple[int, ...], field: str, words: str
) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(words)) as caught:
        make_layers(NetworkConfig(**values), shape)
    assert [violation.field for violation in caught.value.violations] == [f"network.{field}"]


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_every_layer_of_a_resnet_starts_as_its_shortcut(architecture: str) -> None:
    layer = make_layers(NetworkConfig(architecture, widths=(4, 8, 8, 8)), (1, 16, 16))[2].build().eval()
    assert isinstance(layer.shortcut, nn.Identity)
    channels = 4 if architecture == "resnet18" else 16
    images = torch.rand(2, channels, 16, 16)  # not negative, as behind every layer's ReLU
    torch.testing.assert_close(layer(images), images, rtol=0, atol=0)


def test_convolutions_of_a_resnet_start_from_hes_distribution() -> None:
    torch.manual_seed(0)
    stem = make_layers(NetworkConfig("resnet18"), (3, 32, 32))[0].build()
    weight = next(stem.parameters())
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_squeeze_and_excitation_scales_whole_channels() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 8, 4, 4) + 0.1
    scale_BCHW = SqueezeExcitation(8, 2)(images) / images
    torch.testing.assert_close(scale_BCHW, scale_BCHW[..., :1, :1].expand_as(scale_BCHW))
    assert 0 < scale_BCHW.min() < scale_BCHW.max() < 1


@pytest.mark.parametrize(
    "network",
    [
        {"architecture": "resnet18", "widths": [4, 4, 8, 8], "stem_stride": 4, "dropout": 0.1},
        {"architecture": "resnet50", "widths": [2, 2, 4, 4]},
        {"architecture": "efficientnet_small", "widths": [4, 4, 4, 4, 4, 4, 4, 4, 16], "dropout": 0.1},
        {"architecture": "conv_autoencoder", "widths": [4, 6, 8], "dropout": 0.1},
    ],
    ids=lambda network: network["architecture"],
)
def test_a_network_for_images_trains_in_blocks_and_exports(network: dict[str, Any], tmp_path: Path) -> None:
    targets = np.arange(60) % 2
    inputs = np.random.default_rng(0).random((60, 17, 17), dtype=np.float32)
    np.savez(tmp_path / "images.npz", x=inputs * (1 + targets[:, None, None]) / 2, y=targets)
    values = {
        "data": {"name": "npz", "path": "images.npz"},
        "network": network,
        "blocks": {"num_blocks": 2, "balance": "activation_bytes"},
        "latent": {"units": 8, "readout_units": 16},
        "epochs": 2,
        "batch_size": 16,
    }
    model = fit(from_dict(TrainingConfig, values), data_root=tmp_path)
    assert np.isfinite(model.evaluate("validation").mixture.nll_nats)
    assert export(model, tmp_path).parity <= TOLERANCE
