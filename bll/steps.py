"""A served network taken apart: a step for each block, which goes on from what the steps before it gave.

After each, the answer of the exits so far is complete; after the last it is that of the whole network. What steps pass
on are sums, maxima and lists that grow, so that an answer needs no step but the last one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bll.calibrated import Calibrated, CalibratedNetwork, tempered
from bll.manifest import INPUT, PAST
from bll.network import Network
from bll.ood import probability_below
from bll.twins import ClassTable
from bll.uncertainty import Exits, LabelledPosterior, Prediction, by_sample, exit_of, joined, labelled, prediction


class Step(nn.Module):
    """One block, its exit, and the answer of all exits so far."""

    beta_CPD: Tensor
    offset_C: Tensor

    def __init__(self, network: Network, index: int, calibrated: CalibratedNetwork | None) -> None:
        super().__init__()
        self.objective = network.objective
        self.sender = network.senders[index]
        self.layers = network.blocks[index]
        self.readout = network.readouts[index]
        self.target_shape = network.target_shape
        table = network.tables()[index]
        self.register_buffer("beta_CPD", table.beta_CPD)
        self.register_buffer("offset_C", table.offset_C)
        self.answers: tuple[str, ...] = Prediction._fields
        carried: tuple[str, ...] = ("message", *Exits._fields)
        self.boundary: nn.Module | None = None
        if calibrated is not None:
            self.temperature = calibrated.temperatures[index]
            self.boundary, self.combined = calibrated.ood.boundaries[index], calibrated.ood.combined[index]
            self.answers, carried = self.answers + Calibrated._fields, (*carried, "ood_deviation")
        self.inputs = tuple(PAST + name for name in carried) if index else (INPUT,)
        """What `forward` takes: the samples, or what the step before gives under the names without PAST."""
        self.outputs: tuple[str, ...] = (*self.answers, "alpha")
        """What it gives: what predictions have, each block's natural parameters, and what the next step takes."""
        if index + 1 < len(network.blocks):
            self.outputs += tuple(name for name in carried if name not in self.answers)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        found = self._run(dict(zip(self.inputs, values, strict=True)))
        return tuple(found[name] for name in self.outputs)

    def _run(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first = INPUT in given
        output = self.layers(given[INPUT if first else PAST + "message"])
        alpha_BPD = self.readout(output)
        exits = exit_of(self.objective, alpha_BPD, ClassTable(self.beta_CPD, self.offset_C), self.target_shape)
        if not first:
            exits = joined((Exits(*(given[PAST + name] for name in Exits._fields)), exits))
        found = exits._asdict() | prediction(exits)._asdict()
        if self.boundary is not None:
            deviation_B = self.boundary(output)
            if not first:
                deviation_B = torch.maximum(given[PAST + "ood_deviation"], deviation_B)
            found["ood_deviation"] = deviation_B
            found["ood_score"] = probability_below(self.combined(deviation_B))
            found["calibrated_probabilities"] = tempered(found["probabilities"], self.temperature)
        if "message" in self.outputs:
            found["message"] = self.sender.message(output, alpha_BPD)
        return found | {"alpha": by_sample(alpha_BPD, self.target_shape)}


class Labelled(nn.Module):
    """The posterior of every block's latent where the target is known, from what its step gives as `alpha`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.objective = network.objective
        self.target_shape = network.target_shape
        self.tables = network.tables()
        numbers = range(1, len(self.tables) + 1)
        self.inputs = ("target", *(f"alpha_{number}" for number in numbers))
        """The class of each row or position, then alpha_k of each block, counted from 1."""
        self.outputs = tuple(f"{name}_{number}" for number in numbers for name in LabelledPosterior._fields)

    def forward(self, target: Tensor, *alphas: Tensor) -> tuple[Tensor, ...]:
        found = [
            labelled(self.objective, alpha.flatten(0, len(self.target_shape)), table, target.flatten())
            for alpha, table in zip(alphas, self.tables, strict=True)
        ]
        return tuple(by_sample(values, self.target_shape) for posterior in found for values in posterior)


def run(steps: Sequence[Step], samples: Tensor) -> dict[str, Tensor]:
    """What the last of `steps` gives for samples, by name; they are the first of a network, in their order."""
    found: dict[str, Tensor] = {}
    for step in steps:
        values = [samples if name == INPUT else found[name.removeprefix(PAST)] for name in step.inputs]
        found = dict(zip(step.outputs, step(*values), strict=True))
    return found
