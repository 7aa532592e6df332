"""What others get an uncertainty from: several networks, or several passes through one with its dropout on.

The third, one softmax, needs no code: it is `TrainedModel.predict` of a network trained by `rule: backprop`.
Shapes: B batch, C classes, M members of an ensemble, or passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bll.architectures.layers import KeyedDropout
from bll.errors import InvalidConfig, Violation
from bll.model import TrainedModel
from bll.seeding import derive
from bll.uncertainty import mixture


def ensemble(models: Sequence[TrainedModel], inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The prediction of a deep ensemble (Lakshminarayanan et al. 2017): the mean of the members' probabilities.

    The fields of `bll.uncertainty.Mixture` by name, over the members, and `member_probabilities` of shape (B, M, C).
    Raises InvalidConfig if there is no member or they predict different classes, DataError for wrong inputs.
    """
    if len({model.plan.class_names for model in models}) != 1:
        rule = f"must be one or more, all of the same classes, got {len(models)}"
        raise InvalidConfig([Violation("models", rule)])
    return _of_members([model.probabilities(inputs) for model in models])


def mc_dropout(model: TrainedModel, inputs: np.ndarray, passes: int = 30, seed: int = 0) -> dict[str, np.ndarray]:
    """The prediction of MC dropout (Gal and Ghahramani 2016): the mean over passes with dropout on, all else as it is.

    The masks depend on seed, pass and the inputs' shape alone; fields as of `ensemble`, with passes for members. Not
    for use in two threads at once. Raises InvalidConfig without a pass or a dropout layer, DataError for wrong inputs.
    """
    if passes < 1:
        raise InvalidConfig([Violation("passes", f"must be at least 1, got {passes}")])
    layers = [module for module in model.network.modules() if isinstance(module, KeyedDropout)]
    if not layers:
        raise InvalidConfig([Violation("model", "must have layers of bll.KeyedDropout, has none")])
    generators = dict.fromkeys(layer.generator for layer in layers)  # one for each block
    members = []
    try:
        for layer in layers:
            layer.train()
        for number in range(passes):
            for block, generator in enumerate(generators):
                assert generator is not None, "a block gives its dropout layers a generator"
                generator.manual_seed(derive(seed, "mc_dropout", block, number))
            members.append(model.probabilities(inputs))
    finally:
        for layer in layers:
            layer.eval()
    return _of_members(members)


def _of_members(probabilities: list[np.ndarray]) -> dict[str, np.ndarray]:
    members_BMC = np.stack(probabilities, axis=1)
    fields = mixture(torch.from_numpy(members_BMC))._asdict()
    return {name: values.numpy() for name, values in fields.items()} | {"member_probabilities": members_BMC}
