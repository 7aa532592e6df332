"""What goes on inside a block: measured at a few steps an epoch, from tensors that the step has made anyway.

Nothing here draws a random number or writes to what it reads, so a run's weights are the same with it and without.
Shapes: B batch, C classes, F factors, P parameters per unit, D units, X = P * D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bll.blocks import Block
from bll.events import BlockDiagnostics
from bll.losses import LocalLoss, Objective
from bll.plan import Plan
from bll.regression.objective import RegressionLoss, RegressionObjective
from bll.twins import ClassTable
from bll.uncertainty import posterior_variance

MAX_ROWS = 256
"""Rows of a batch that are looked at: what an eigendecomposition costs a small block's step at most."""


class Step(NamedTuple):
    """The tensors of one training step, with their graph or without."""

    number: int
    """Steps done, this one included."""
    output: Tensor
    """The block's output, shape (B, ...)."""
    alpha_BPD: Tensor
    table: ClassTable
    targets_B: Tensor
    local: LocalLoss | RegressionLoss
    mixing: float
    loss: Tensor
    """What the step descends, a scalar: L_k and the terms beside it."""

    def first_rows(self, count: int) -> Step:
        """The same step, of at most `count` rows."""
        if len(self.targets_B) <= count:
            return self
        return self._replace(
            output=self.output[:count],
            alpha_BPD=self.alpha_BPD[:count],
            targets_B=self.targets_B[:count],
            local=type(self.local)(*(rows[:count] for rows in self.local)),
        )


class Standing(NamedTuple):
    """Where a block stands among its neighbours."""

    staleness_steps: int
    queue_depth: int


class Examiner:
    """Looks at one block `diagnostics.per_epoch` times an epoch."""

    def __init__(self, index: int, plan: Plan, block: Block, objective: Objective | RegressionObjective) -> None:
        self.index = index
        self.plan = plan
        self.objective = objective
        self.theta = block.forward_parameters()
        self.phi = list(block.backward_parameters().values())

    def is_due(self, step: int) -> bool:
        """Whether to look at the step that makes them `step`: at equal distances, the last one an epoch's last."""
        times, steps = self.plan.config.diagnostics.per_epoch, self.plan.steps_per_epoch
        in_epoch = (step - 1) % steps + 1
        return in_epoch * times // steps > (in_epoch - 1) * times // steps

    @contextmanager
    def around_step(self, step: Step, standing: Standing, emit: Callable[[BlockDiagnostics], None]) -> Iterator[None]:
        """Emits what `step` was like. Wraps the optimizers' step: gradients are there before it, updates after."""
        with torch.no_grad():
            # A table can be a parameter itself, which the optimizer is about to change: all else is measured first.
            measured = _measured(step.first_rows(MAX_ROWS), self.objective)
            groups, device = {"theta": self.theta, "phi": self.phi}, step.loss.device
            for name, group in groups.items():
                measured[f"{name}_gradient"] = _norm((p.grad for p in group if p.grad is not None), device)
            before = {name: [p.clone() for p in group] for name, group in groups.items()}
        yield
        with torch.no_grad():
            for name, group in groups.items():
                changes = (b - a for b, a in zip(before[name], group, strict=True))
                measured |= {f"{name}_size": _norm(before[name], device), f"{name}_change": _norm(changes, device)}
            found = dict(zip(measured, read(measured.values()), strict=True))
        for name in groups:
            size, change = found.pop(f"{name}_size"), found.pop(f"{name}_change")
            found[f"{name}_update"] = change / size if size else 0.0
        emit(
            BlockDiagnostics(
                block=self.index,
                epoch=(step.number - 1) // self.plan.steps_per_epoch,
                step=step.number,
                **found,
                mixing=step.mixing,
                staleness_steps=standing.staleness_steps,
                queue_depth=standing.queue_depth,
            )
        )


def agreement(alpha_BPD: Tensor, table: ClassTable, targets_B: Tensor) -> Tensor:
    """Cosine between each row's forward message and the backward message of its class, both centred, shape (B,)."""
    forward_BX = _centred(alpha_BPD)
    backward_BX = _centred(table.beta_CPD)[targets_B]
    return F.cosine_similarity(forward_BX, backward_BX, dim=1)


def agreement_auc(alpha_BPD: Tensor, table: ClassTable, targets_B: Tensor) -> Tensor:
    """How often a row's forward message has a larger cosine with its own class's backward message than with another
    class's, a tie counting half: shape ()."""
    cosines_BC = F.normalize(_centred(alpha_BPD), dim=1) @ F.normalize(_centred(table.beta_CPD), dim=1).T
    own_B1 = cosines_BC.gather(1, targets_B.unsqueeze(1))
    wins_BC: Tensor = (own_B1 > cosines_BC).double() + 0.5 * (own_B1 == cosines_BC)
    # The own class ties with itself: half a win that is none.
    pairs = len(targets_B) * (cosines_BC.shape[1] - 1)
    wins: Tensor = wins_BC.sum() - 0.5 * len(targets_B)
    return wins.div(pairs)


def effective_rank(alpha_BPD: Tensor) -> Tensor:
    """exp of the entropy of the normalised eigenvalues of the rows' Gram matrix, centred (Roy and Vetterli 2007):
    shape (), 1 to min(B - 1, X); 1 too where nothing varies."""
    forward_BX = _centred(alpha_BPD).double()
    rows, numbers = forward_BX.shape
    gram = forward_BX @ forward_BX.T if rows < numbers else forward_BX.T @ forward_BX  # the same spectrum, but zeros
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0)
    shares = spectrum / spectrum.sum().clamp(min=torch.finfo(spectrum.dtype).tiny)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def constant_features(values: Tensor) -> Tensor:
    """Which features of values of shape (B, features, ...) are, at each place, the same for every row: (features,)."""
    same = values.amax(0) == values.amin(0)
    return same.reshape(len(same), -1).all(1)


def read(figures: Iterable[Tensor]) -> list[float]:
    """The values of scalars, in one read from their device."""
    values: list[float] = torch.stack([figure.double() for figure in figures]).tolist()
    return values


def _measured(step: Step, objective: Objective | RegressionObjective) -> dict[str, Tensor]:
    alpha_BPD, table, targets_B, family = step.alpha_BPD, step.table, step.targets_B, objective.family
    rho_BPD = family.posterior(alpha_BPD, table.beta_CPD[targets_B], step.mixing)
    variance_B = posterior_variance(objective, alpha_BPD, table, rho_BPD).mean(-1)
    return {
        "loss_nats": step.local.loss_B.mean(),
        "kl_nats": family.kl(rho_BPD, alpha_BPD).sum(-1).mean(),
        "exit_nll_nats": step.local.exit_nll(targets_B),
        "alpha_entropy_nats": family.entropy(alpha_BPD).mean(),
        "rho_entropy_nats": family.entropy(rho_BPD).mean(),
        "agreement": agreement(alpha_BPD, table, targets_B).mean(),
        "agreement_auc": agreement_auc(alpha_BPD, table, targets_B),
        "posterior_variance": variance_B.mean(),
        "posterior_variance_cv": variance_B.std() / variance_B.mean(),
        "alpha_rms": _centred(alpha_BPD).square().mean().sqrt(),
        "beta_rms": _centred(table.beta_CPD).square().mean().sqrt(),
        "dead_units": constant_features(alpha_BPD.transpose(1, 2)).double().mean(),
        "dead_features": constant_features(step.output).double().mean(),
        "saturated_units": family.saturated(alpha_BPD).double().mean(),
        "effective_rank": effective_rank(alpha_BPD),
    }


def _centred(values: Tensor) -> Tensor:
    """Each row less their mean, flattened, shape (rows, X)."""
    return (values - values.mean(0)).flatten(1)


def _norm(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=device)
    return norm
