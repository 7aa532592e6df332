"""Forward networks as lists of layers, which the partitioner cuts into blocks.

An `Architecture` makes the layers of a config. It is found by name among the built-in ones and the entry points of
group `bll.architectures`. Layers are built one by one, each from its own seed, so that a layer's initial weights do
not depend on where the network is cut. Skip connections live inside a layer: none crosses a cut.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points

from bll.architectures.conv_autoencoder import CONV_AUTOENCODER
from bll.architectures.efficientnet import EFFICIENTNET_SMALL
from bll.architectures.layers import Architecture, Layer
from bll.architectures.mlp import MLP
from bll.architectures.residual_cnn import RESIDUAL_CNN
from bll.architectures.resnet import RESNET18, RESNET34, RESNET50, RESNET101
from bll.architectures.transformer import TRANSFORMER
from bll.config import NetworkConfig
from bll.errors import InvalidConfig, Violation

_BUILT_IN = {
    "mlp": MLP,
    "residual_cnn": RESIDUAL_CNN,
    "resnet18": RESNET18,
    "resnet34": RESNET34,
    "resnet50": RESNET50,
    "resnet101": RESNET101,
    "efficientnet_small": EFFICIENTNET_SMALL,
    "conv_autoencoder": CONV_AUTOENCODER,
    "transformer": TRANSFORMER,
}
_GROUP = "bll.architectures"


def with_widths(config: NetworkConfig) -> NetworkConfig:
    """`config` with the architecture's own widths where it names none.

    Raises InvalidConfig if the architecture is unknown.
    """
    return config if config.widths else replace(config, widths=_architecture(config.architecture).widths)


def make_layers(config: NetworkConfig, input_shape: tuple[int, ...]) -> list[Layer]:
    """The layers that `config` names, for samples of `input_shape`.

    Raises InvalidConfig if the architecture is unknown or does not fit the samples.
    """
    architecture = _architecture(config.architecture)
    if config.stem_stride not in architecture.stem_strides:
        allowed = " or ".join(map(str, architecture.stem_strides))
        rule = f"must be {allowed} for {config.architecture!r}, got {config.stem_stride}"
        raise InvalidConfig([Violation("network.stem_stride", rule)])
    if config.heads != NetworkConfig().heads and not architecture.has_heads:
        rule = f"says nothing about {config.architecture!r}, which has none: leave it out, got {config.heads}"
        raise InvalidConfig([Violation("network.heads", rule)])
    return architecture.layers(with_widths(config), input_shape)


def _architecture(name: str) -> Architecture:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    plugins = {entry.name: entry for entry in entry_points(group=_GROUP)}
    if name in plugins:
        architecture: Architecture = plugins[name].load()
        return architecture
    rule = f"must be one of {', '.join(sorted({*_BUILT_IN, *plugins}))}, got {name!r}"
    raise InvalidConfig([Violation("network.architecture", rule)])


__all__ = ["Architecture", "Layer", "make_layers", "with_widths"]
