"""Whether a chain twin's weights come to look like the transposed forward weights beside it.

The chain from the table of boundary k+1 to that of boundary k runs against the dense layer from the latent of
boundary k to that of k+1, where readouts are the identity. Shapes: C classes, I and O units of boundaries k and k+1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.method.measures import Measured, Task
from benchmarks.method.networks import trained_blocks
from bll.blocks import Block
from bll.twins import ChainTwin


def alignment(task: Task) -> Measured:
    """The cosine between the chain's mean Jacobian over classes and the transposed weight, at each inner boundary.

    Beside it the same with the weight's rows and columns shuffled, which is what chance gives.
    """
    blocks, tables, cuts = trained_blocks(task, 0)
    figures: dict[str, float] = {}
    draw = np.random.default_rng(0)
    for k, (block, following, right_CPD) in enumerate(zip(blocks, blocks[1:], tables[1:], strict=False), 1):
        jacobian_IO = _mean_jacobian(block, right_CPD)
        weight_IO = _weight(following).T
        shuffled_IO = weight_IO[draw.permutation(len(weight_IO))][:, draw.permutation(weight_IO.shape[1])]
        figures[f"boundary{k}.alignment"] = _cosine(jacobian_IO, weight_IO)
        figures[f"boundary{k}.alignment_by_chance"] = _cosine(jacobian_IO, shuffled_IO)
    inner = [figures[f"boundary{k}.alignment"] for k in range(1, len(blocks))]
    return Measured(figures | {"alignment": float(np.mean(inner))}, {}, cuts)


def _mean_jacobian(block: Block, right_CPD: Tensor) -> Tensor:
    twin = block.twin
    assert isinstance(twin, ChainTwin)
    of_each_CIO: Tensor = torch.func.vmap(torch.func.jacrev(twin.layers))(right_CPD.flatten(1))
    return of_each_CIO.mean(0).detach()


def _weight(block: Block) -> Tensor:
    """That of the block's first dense layer, (O, I)."""
    layer = next(module for module in block.layers.modules() if isinstance(module, nn.Linear))
    return layer.weight.detach()


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))
