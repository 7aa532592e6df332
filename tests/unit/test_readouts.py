"""Readouts: what each is made of, against the operators that they stand for, and which block can have which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bll import TrainingConfig, fit
from bll.choices import FamilyName, ReadoutName
from bll.config import LatentConfig
from bll.errors import InvalidConfig
from bll.export import export
from bll.families import make_family
from bll.partition import resolve
from bll.plain import from_dict
from bll.readouts import GridPool, IdentityReadout, latent_units, make_readout


def config(**latent: Any) -> LatentConfig:
    return from_dict(LatentConfig, {"units": 6, "readout_units": 5, "readout_grid": 2, **latent})


@pytest.mark.parametrize("readout", ["identity", "linear", "hidden", "deep", "conv"])
@pytest.mark.parametrize("family", ["bernoulli", "gaussian", "laplace"])
def test_readout_gives_parameters_of_the_family_for_every_unit(readout: str, family: str) -> None:
    latent, shape = config(readout=readout, family=family), (3, 4, 4)
    module = make_readout(shape, make_family(latent), latent)
    alpha_BPD = module(torch.randn(2, *shape))
    assert alpha_BPD.shape == (2, module.family.num_parameters, latent_units(shape, latent))
    assert module.units == latent_units(shape, latent) == (48 if readout == "identity" else 6)
    assert (module.family.variance(alpha_BPD) > 0).all()


@pytest.mark.parametrize(("size", "grid"), [((14, 14), (3, 3)), ((7, 5), (3, 2)), ((4, 4), (4, 4)), ((1, 1), (1, 1))])
def test_grid_pool_is_adaptive_average_pooling(size: tuple[int, int], grid: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pool = GridPool(size, grid).double()
    expected = F.adaptive_avg_pool2d(images, grid)
    torch.testing.assert_close(pool(images), expected, rtol=1e-6, atol=1e-6)  # the cells' weights are float32


@pytest.mark.parametrize(("readout", "layers"), [("linear", 1), ("hidden", 2), ("deep", 3), ("conv", 2)])
def test_readouts_differ_by_their_hidden_layers(readout: str, layers: int) -> None:
    latent = config(readout=readout)
    module = make_readout((3, 4, 4), make_family(latent), latent)
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert len(linear) == layers
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convolutions] == (
        [(3, 5, (3, 3))] if readout == "conv" else []
    )
    assert linear[0].in_features == (5 if readout == "conv" else 3) * 2 * 2


def test_identity_readout_is_the_output_itself_with_a_scale_and_shift_for_each_parameter() -> None:
    latent = config(readout="identity", family="gaussian")
    module = IdentityReadout((2, 3), make_family(latent))
    hidden = torch.randn(4, 2, 3)
    torch.testing.assert_close(module(hidden)[:, 0], hidden.flatten(1))
    torch.testing.assert_close(module.family.variance(module(hidden)), torch.ones(4, 6), rtol=2e-2, atol=0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    scale_PD, shift_PD = (parameter.view(2, 6) for parameter in (module.scale, module.shift))
    expected = module.family.natural(hidden.flatten(1)[:, None] * scale_PD + shift_PD)
    torch.testing.assert_close(module(hidden), expected)
    jacobian = torch.autograd.functional.jacobian(lambda x: module(x)[0, :, :], hidden[:1])  # type: ignore[no-untyped-call]
    by_unit = jacobian.reshape(2, 6, 6)
    assert torch.equal(by_unit.ne(0), torch.eye(6).ne(0).expand(2, 6, 6))  # no unit sees another's number


def test_groups_must_divide_the_outputs_of_every_block() -> None:
    values = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [12, 10]},
        "blocks": {"num_blocks": 2},
        "latent": {"readout": "identity", "family": "categorical"},
    }
    with pytest.raises(InvalidConfig, match=r"latent\.group_size: must divide a block's 10 outputs .*, got 4"):
        resolve(from_dict(TrainingConfig, values))


def test_convolution_reads_images_alone() -> None:
    values = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [12]},
        "blocks": {"num_blocks": 1},
        "latent": {"readout": "conv"},
    }
    with pytest.raises(InvalidConfig, match=r"latent\.readout: must be another than 'conv' .* no image but \[12\]"):
        resolve(from_dict(TrainingConfig, values))


@pytest.mark.timeout(300)  # tracing the graph takes most of it
@pytest.mark.parametrize(("readout", "network"), [("deep", {"architecture": "mlp", "widths": [16]}), ("conv", {})])
def test_readouts_learn_and_are_exported(readout: str, network: dict[str, Any], tmp_path: Path) -> None:
    values = {
        "data": {"name": "digits"},
        "network": network or {"widths": [4]},
        "blocks": {"num_blocks": 1},
        "latent": {"readout": readout, "readout_units": 32, "units": 16},
        "optimizer": {"learning_rate": 5e-3, "backward_learning_rate": 2e-2},
        "epochs": 8,
        "batch_size": 32,
    }
    model = fit(from_dict(TrainingConfig, values))
    assert model.evaluate("test").mixture.accuracy > 0.9
    assert export(model, tmp_path).parity <= 1e-4


def test_every_family_has_an_identity_readout() -> None:
    for family in FamilyName:
        latent = config(family=family, readout=ReadoutName.IDENTITY, group_size=2)
        alpha_BPD = make_readout((4,), make_family(latent), latent)(torch.randn(2, 4))
        assert torch.isfinite(make_family(latent).variance(alpha_BPD)).all()
