"""What a training run tells while it goes. Plain data, in JSON over a pipe or to a store; no torch here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class BlockProgress:
    """How block `block` fared over the steps since its last report, in training mode."""

    block: int
    epoch: int
    """0-based epoch of the last step."""
    step: int
    """Steps done since the start of the run."""
    loss_nats: float
    """Mean local loss L_k."""
    kl_nats: float
    """Mean KL(rho_k || alpha_k) over the rows of the last step, at the mixing in force."""
    accuracy: float
    """Fraction of training rows that the exit p_k(y|x) gets right."""
    posterior_variance: float
    """Mean target-marginalised posterior variance of z_k's units, over the rows of the last step."""
    agreement: float
    """Mean cosine between forward and backward message over the rows of the last step, both centred: -1 to 1."""
    mixing: float
    """m in force."""
    samples_per_s: float
    wait_s: float
    """Time spent waiting for the neighbours' messages since the last report."""


@dataclass(frozen=True)
class Scores:
    """Quality of one predictive distribution over a split."""

    accuracy: float
    nll_nats: float
    """Mean negative log-likelihood of the true class."""
    ece: float
    """Expected calibration error over 15 equal bins of confidence."""
    brier: float
    """Mean squared distance between probabilities and the one-hot truth, 0 to 2."""


@dataclass(frozen=True)
class Evaluation:
    """All predictions of the network on one split, in evaluation mode."""

    split: str
    """`validation` or `test`."""
    epoch: int
    step: int
    rows: int
    mixture: Scores
    product: Scores
    exits: tuple[Scores, ...]
    """One per block; the last is the task head."""
    mixture_gap_nats: float
    """mean_k NLL(exit k) - NLL(mixture): never negative (method: the identity)."""


@dataclass(frozen=True)
class CheckpointSaved:
    """All blocks after `step` steps are safe on disk."""

    step: int
    epoch: int


@dataclass(frozen=True)
class RunEnded:
    """The last event: every worker has ended."""

    step: int
    finished: bool
    """False: stopped at a marker on request; a later run goes on from there."""


Event = BlockProgress | Evaluation | CheckpointSaved | RunEnded

_KINDS = {kind.__name__: kind for kind in (BlockProgress, Evaluation, CheckpointSaved, RunEnded)}


def to_json(event: Event) -> str:
    """`event` on one line."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def from_json(line: str) -> Event:
    """The event that `to_json` wrote. Raises ValueError on anything else."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"not an event: {line[:200]!r}")
    kind = _KINDS.get(values.pop("event", None))
    if kind is None or values.keys() != {f.name for f in fields(kind)}:
        raise ValueError(f"not an event: {line[:200]!r}")
    return evaluation_from_dict(values) if kind is Evaluation else kind(**values)


def evaluation_from_dict(values: dict[str, Any]) -> Evaluation:
    """The evaluation whose `dataclasses.asdict` went through JSON."""
    scores = {name: Scores(**values[name]) for name in ("mixture", "product")}
    return Evaluation(**{**values, **scores, "exits": tuple(Scores(**s) for s in values["exits"])})
