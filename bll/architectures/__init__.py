"""Forward networks as lists of layers, which the partitioner cuts into blocks.

An architecture is a function `(config, input_shape) -> list[Layer]`, found by name among the built-in ones and the
entry points of group `bll.architectures`. Layers are built one by one, each from its own seed, so that a layer's
initial weights do not depend on where the network is cut. Skip connections live inside a layer: none crosses a cut.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from bll.architectures.layers import Layer
from bll.architectures.mlp import mlp
from bll.architectures.residual_cnn import residual_cnn
from bll.config import NetworkConfig
from bll.errors import InvalidConfig, Violation

Architecture = Callable[[NetworkConfig, tuple[int, ...]], list[Layer]]

_BUILT_IN: dict[str, Architecture] = {"mlp": mlp, "residual_cnn": residual_cnn}
_GROUP = "bll.architectures"


def make_layers(config: NetworkConfig, input_shape: tuple[int, ...]) -> list[Layer]:
    """The layers that `config` names, for samples of `input_shape`.

    Raises InvalidConfig if the architecture is unknown or does not fit the samples.
    """
    plugins = {entry.name: entry for entry in entry_points(group=_GROUP)}
    if config.architecture in _BUILT_IN:
        architecture = _BUILT_IN[config.architecture]
    elif config.architecture in plugins:
        architecture = plugins[config.architecture].load()
    else:
        known = ", ".join(sorted({*_BUILT_IN, *plugins}))
        rule = f"must be one of {known}, got {config.architecture!r}"
        raise InvalidConfig([Violation("network.architecture", rule)])
    return architecture(config, input_shape)


__all__ = ["Architecture", "Layer", "make_layers"]
