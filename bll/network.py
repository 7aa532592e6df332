"""A trained network: forward blocks, their readouts, and the class tables that the backward twin has come to.

Shapes: B batch, P natural parameters per unit, D units.
"""

from __future__ import annotations

from torch import Tensor, nn

from bll.losses import Objective
from bll.readouts import Readout
from bll.sending import Sender
from bll.twins import ClassTable
from bll.uncertainty import Prediction, predict


class Network(nn.Module):
    """All forward blocks in a row, with an exit at each boundary. The backward network is folded into its tables."""

    def __init__(
        self,
        objective: Objective,
        senders: list[Sender],
        layers: list[nn.Sequential],
        readouts: list[Readout],
        tables: list[ClassTable],
        target_shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.target_shape = target_shape
        self.objective = objective
        self.senders = senders
        self.blocks = nn.ModuleList(layers)
        self.readouts = nn.ModuleList(readouts)
        for index, (beta_CPD, offset_C) in enumerate(tables):
            self.register_buffer(f"beta{index}", beta_CPD)
            self.register_buffer(f"offset{index}", offset_C)

    def tables(self) -> list[ClassTable]:
        """The class table of each boundary."""
        return [
            ClassTable(self.get_buffer(f"beta{index}"), self.get_buffer(f"offset{index}"))
            for index in range(len(self.blocks))
        ]

    def forward(self, inputs: Tensor) -> Prediction:
        """The prediction for plain samples, images in [0, 1]."""
        return self.prediction(self.boundaries(inputs)[1])

    def boundaries(self, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Output and alpha_k, of shape (B, P, D), of every block for plain samples."""
        received, outputs, alphas = inputs, [], []
        for sender, layers, readout in zip(self.senders, self.blocks, self.readouts, strict=True):
            outputs.append(layers(received))
            alphas.append(readout(outputs[-1]))
            received = sender.message(outputs[-1], alphas[-1])
        return outputs, alphas

    def prediction(self, alphas: list[Tensor]) -> Prediction:
        """What follows from every block's alpha_k."""
        return predict(self.objective, alphas, self.tables(), self.target_shape)
