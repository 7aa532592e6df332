"""What a training run tells while it goes. Plain data, in JSON over a pipe or to a store; no torch here.

What an older version told is read too: a field that came later has a default.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, get_args


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
    """Fraction of training rows that the exit p_k(y|x) gets right; of real-valued targets, fraction of their variance
    that it explains, which can be negative."""
    posterior_variance: float
    """Mean target-marginalised posterior variance of z_k's units, over the rows of the last step; where the target is
    the input, that of rho_k itself."""
    agreement: float
    """Mean cosine between forward and backward message over the rows of the last step, both centred: -1 to 1."""
    mixing: float
    """m in force."""
    samples_per_s: float
    wait_s: float
    """Time spent waiting for what the neighbours send since the last report."""
    version_wait_s: float = 0.0
    """The part of it for versions of the next block."""
    send_wait_s: float = 0.0
    """Time spent waiting for room in the lines to the neighbours since the last report."""
    inbox_fill: float = 0.0
    """Mean fraction of the line from the left that was taken when the block read it: near 0 it waits for its left
    neighbour, near 1 that one waits for it. The slowest block has a full line at its left and an empty one at its
    right. 0 too where nothing comes from another worker."""
    staleness_steps: int = 0
    """Age of what the block used of its right neighbour in the last step; 0 where nothing flows from there."""


@dataclass(frozen=True)
class PlacedWorker:
    """One thread or process, and what it runs."""

    blocks: tuple[int, ...]
    share: float
    """Fraction of a step's work that is its."""
    cpus: tuple[int, ...]
    """The cores that it keeps to; empty: any."""


@dataclass(frozen=True)
class BlocksPlaced:
    """Which worker runs which blocks. Told each time that workers are started; the result does not depend on it."""

    step: int
    """Steps done before."""
    measured: bool
    """Whether shares are of timed training steps; else of multiply-adds."""
    workers: tuple[PlacedWorker, ...]


@dataclass(frozen=True)
class BlockWaiting:
    """Block `block` has waited long for block `neighbour`. Told once in each such wait, and when it is over."""

    block: int
    neighbour: int
    for_room: bool
    """True: the line to the neighbour is full; False: nothing comes from it."""
    wait_s: float
    """So far, or in all."""
    ended: bool
    """The wait is over."""


@dataclass(frozen=True)
class BlockDiagnostics:
    """What one training step of block `block` was like within (method, section 8), over at most 256 of its rows."""

    block: int
    epoch: int
    """0-based epoch of the step."""
    step: int
    """Steps done since the start of the run, this one included."""
    loss_nats: float
    """Mean local loss L_k."""
    kl_nats: float
    """Mean KL(rho_k || alpha_k), at the mixing in force."""
    exit_nll_nats: float
    """Mean -log p_k(y|x) of the exit."""
    alpha_entropy_nats: float
    """Mean entropy of alpha_k over rows and variables; differential where the latent is continuous."""
    rho_entropy_nats: float
    """The same of rho_k, the posterior for the row's own class at the mixing in force."""
    agreement: float
    """Mean cosine between forward and backward message, both centred: -1 to 1."""
    agreement_auc: float
    """How often the forward message agrees more with its own class's backward message than with another's: 0.5 is
    chance."""
    posterior_variance: float
    """Mean target-marginalised posterior variance of z_k's units."""
    posterior_variance_cv: float
    """Its standard deviation over rows, as a fraction of the mean."""
    alpha_rms: float
    """Root mean square of a_k, less its mean over rows."""
    beta_rms: float
    """Root mean square of b_k, less its mean over classes."""
    theta_gradient: float
    """Norm of the gradient of the forward block and its readout."""
    phi_gradient: float
    """Norm of the gradient of the backward twin."""
    theta_update: float
    """Norm of the step of the forward block's and its readout's parameters, as a fraction of their own norm."""
    phi_update: float
    """The same of the backward twin."""
    dead_units: float
    """Fraction of the latent's units whose parameters are the same for every row."""
    dead_features: float
    """Fraction of the block's output features (of an image its channels) that are the same for every row."""
    saturated_units: float
    """Fraction of alpha_k's units, over rows, whose parameters have come to their bounds."""
    effective_rank: float
    """exp of the entropy of the normalised spectrum of a_k over the rows: directions in which it varies."""
    mixing: float
    """m in force."""
    staleness_steps: int
    """Age of the class table that came from the right, in steps; 0 where none does."""
    queue_depth: int
    """Messages from the left that wait, when the step is done."""


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
class RegressionScores:
    """Quality of one predictive distribution of real-valued targets over a split."""

    mse: float
    """Mean squared error of a value, in the targets' own units."""
    nll_nats: float
    """Mean negative log-density of a value: that of a row, divided by its values."""
    coverage: float
    """Fraction of values within the central 90 % interval of their prediction."""
    rank_correlation: float
    """Spearman's, of the predicted variances and the squared errors of single values."""
    map_rank_correlation: float
    """What the best variance without the input gets: the mean squared error of each place, on this very split."""
    sample_rank_correlation: float
    """Spearman's, of the mean variances and the mean squared errors of whole rows."""


@dataclass(frozen=True)
class RegressionEvaluation:
    """All predictions of real-valued targets on one split, in evaluation mode."""

    split: str
    """`validation` or `test`."""
    epoch: int
    step: int
    rows: int
    mixture: RegressionScores
    exits: tuple[RegressionScores, ...]
    """One per block; the last is the task head."""
    mixture_gap_nats: float
    """mean_k NLL(exit k) - NLL(mixture), of a value: never negative."""


@dataclass(frozen=True)
class CheckpointSaved:
    """All blocks after `step` steps are safe on disk."""

    step: int
    epoch: int
    write_s: float = field(default=0.0, compare=False)
    """Longest time that a block took to write its part, which it did not train in."""


@dataclass(frozen=True)
class CheckpointDamaged:
    """The newest checkpoint cannot be used, and is gone: the run goes on from the one before."""

    step: int
    """Of the damaged one."""
    fallback_step: int
    """Of the one that the run goes on from. What was told of later steps is told again."""
    cause: str
    """The file, and what is wrong with it."""


@dataclass(frozen=True)
class RolledBack:
    """A worker was lost, and all blocks go on from the newest checkpoint, or begin again.

    What was told of steps after `step` is told again, and replaces what came before.
    """

    step: int
    """Steps done at the checkpoint; 0 = the run begins again."""
    block: int
    """The first block of the worker that was lost."""
    cause: str
    """How it was lost."""
    restart: int
    """Restarts since the last new checkpoint, this one included."""


@dataclass(frozen=True)
class BlockContinued:
    """The worker of block `block` was lost, and the block goes on at its place in the stream with the weights that it
    last saved. The other blocks have not stopped."""

    block: int
    step: int
    """Steps done, by its place in the stream."""
    from_step: int
    """Steps after which its weights were saved; 0 = its initial weights."""
    cause: str
    """How the worker was lost."""
    restart: int
    """Restarts since the last new checkpoint, this one included."""


@dataclass(frozen=True)
class RunEnded:
    """The last event: every worker has ended."""

    step: int
    finished: bool
    """False: stopped on request; a later run goes on from there."""


class AlarmSignature(StrEnum):
    """The ways in which block-local learning is known to fail (method, section 8)."""

    LOSS_PLATEAU = "loss_plateau"
    """The training loss stops falling early."""
    UNSTABLE_UNCERTAINTY = "unstable_uncertainty"
    """The predicted uncertainty jumps between epochs, or its latents have come to their bounds."""
    END_TO_END_GAP = "end_to_end_gap"
    """Later exits are no better than earlier ones: backpropagation would do much better."""


@dataclass(frozen=True)
class Figure:
    """A number that has a name."""

    name: str
    value: float


@dataclass(frozen=True)
class Alarm:
    """A run shows the signature of a known failure, at the end of an epoch."""

    signature: AlarmSignature
    block: int | None
    """None: the network as a whole."""
    epoch: int
    step: int
    cause: str
    """What was seen, in numbers."""
    remedy: str
    """What to try first."""
    values: tuple[Figure, ...]
    """The numbers that `cause` speaks of."""


Event = (
    BlockProgress
    | BlockDiagnostics
    | BlocksPlaced
    | BlockWaiting
    | Evaluation
    | RegressionEvaluation
    | Alarm
    | CheckpointSaved
    | CheckpointDamaged
    | RolledBack
    | BlockContinued
    | RunEnded
)

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}
_REQUIRED = {name: {f.name for f in fields(kind) if f.default is MISSING} for name, kind in _KINDS.items()}
"""Fields that every version has told, by kind."""


def to_json(event: Event) -> str:
    """`event` on one line."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def from_json(line: str) -> Event:
    """The event that `to_json` wrote. Raises ValueError on anything else."""
    try:
        return _event(json.loads(line))
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"not an event: {line[:200]!r}") from error


def _event(values: dict[str, Any]) -> Event:
    kind = _KINDS[values.pop("event")]
    if not _REQUIRED[kind.__name__] <= values.keys() <= {f.name for f in fields(kind)}:
        raise KeyError(f"not the fields of {kind.__name__}")
    if kind is RegressionEvaluation:
        return regression_evaluation_from_dict(values)
    if kind is Evaluation:
        return evaluation_from_dict(values)
    if kind is BlocksPlaced:
        workers = (
            {**worker, "blocks": tuple(worker["blocks"]), "cpus": tuple(worker["cpus"])} for worker in values["workers"]
        )
        return BlocksPlaced(**{**values, "workers": tuple(PlacedWorker(**worker) for worker in workers)})
    if kind is Alarm:
        figures = tuple(Figure(**figure) for figure in values["values"])
        return Alarm(**{**values, "signature": AlarmSignature(values["signature"]), "values": figures})
    return kind(**values)


def evaluation_from_dict(values: dict[str, Any]) -> Evaluation:
    """The evaluation whose `dataclasses.asdict` went through JSON."""
    scores = {name: Scores(**values[name]) for name in ("mixture", "product")}
    return Evaluation(**{**values, **scores, "exits": tuple(Scores(**s) for s in values["exits"])})


def regression_evaluation_from_dict(values: dict[str, Any]) -> RegressionEvaluation:
    """The evaluation of real-valued targets whose `dataclasses.asdict` went through JSON."""
    exits = tuple(RegressionScores(**scores) for scores in values["exits"])
    return RegressionEvaluation(**{**values, "mixture": RegressionScores(**values["mixture"]), "exits": exits})
