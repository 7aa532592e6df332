"""What the client answers: frozen dataclasses, the mirror of `bll_proto/v1/*.proto`.

A field has the name of its proto field; a test compares the two. Instants are `datetime` in UTC, durations
`timedelta`, tensors read-only numpy arrays; what the proto leaves absent is None.
Shapes: B rows of the batch, N blocks, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypedDict

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Spec = Mapping[str, Any]
"""A job spec as a spec file holds it: the fields of `JobSpec`, enum values short and in lower case."""


class JobState(StrEnum):
    """Where a job stands."""

    UNSPECIFIED = "unspecified"
    """Also every state that a newer server knows and this client does not."""
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Over, unless it is retried."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Head(StrEnum):
    """Which distribution over classes a prediction is asked for."""

    MIXTURE = "mixture"
    """Mean of the exits' probabilities."""
    PRODUCT = "product"
    """Normalised product of the exits' probabilities."""
    LAST_EXIT = "last_exit"
    """The exit of the last block alone."""


@dataclass(frozen=True)
class Scores:
    """Quality of one predictive distribution over a split."""

    accuracy: float
    nll_nats: float
    ece: float
    brier: float


@dataclass(frozen=True)
class Evaluation:
    """All predictions of the network on one split."""

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
    """Mean NLL of the exits less that of the mixture; never negative."""


@dataclass(frozen=True)
class BlockProgress:
    """How one block fared since its last report."""

    block: int
    """From 0."""
    epoch: int
    step: int
    loss_nats: float
    """Mean local loss L_k."""
    kl_nats: float
    accuracy: float
    """Of the exit p_k(y|x), on training rows."""
    posterior_variance: float
    """Mean target-marginalised variance of z_k's units."""
    agreement: float
    """Mean cosine between forward and backward message."""
    mixing: float
    samples_per_s: float
    wait: timedelta
    """Time spent waiting for what the neighbours send."""
    version_wait: timedelta = timedelta()
    """The part of it for versions of the next block."""
    send_wait: timedelta = timedelta()
    """Time spent waiting for room in the lines to the neighbours."""
    inbox_fill: float = 0.0
    """Mean fraction of the line from the left that was taken when the block read it. The slowest block has a full
    line at its left and an empty one at its right."""
    staleness_steps: int = 0
    """Age of what the block used of its right neighbour in the last step."""


@dataclass(frozen=True)
class PlacedWorker:
    """One thread or process of a job, and what it runs."""

    blocks: tuple[int, ...]
    """From 0; consecutive."""
    share: float
    """Fraction of a step's work that is its."""
    cpus: tuple[int, ...]
    """The cores that it keeps to; empty: any."""


@dataclass(frozen=True)
class BlocksPlaced:
    """Which worker runs which blocks. Told each time that workers are started."""

    step: int
    """Steps done before."""
    measured: bool
    """Whether shares are of timed training steps; else of multiply-adds."""
    workers: tuple[PlacedWorker, ...]


@dataclass(frozen=True)
class BlockWaiting:
    """A block has waited long for a neighbour. Told once in each such wait, and when it is over."""

    block: int
    """From 0."""
    neighbour: int
    for_room: bool
    """True: the line to the neighbour is full; False: nothing comes from it."""
    wait: timedelta
    """So far, or in all."""
    ended: bool
    """The wait is over."""


@dataclass(frozen=True)
class BlockDiagnostics:
    """What one training step of one block was like within."""

    block: int
    """From 0."""
    epoch: int
    step: int
    loss_nats: float
    """Mean local loss L_k."""
    kl_nats: float
    exit_nll_nats: float
    alpha_entropy_nats: float
    """Mean over rows and variables; differential where the latent is continuous."""
    rho_entropy_nats: float
    agreement: float
    """Mean cosine between forward and backward message."""
    agreement_auc: float
    """How often the own class's backward message agrees more than another's; 0.5 is chance."""
    posterior_variance: float
    posterior_variance_cv: float
    """Standard deviation over rows, as a fraction of the mean."""
    alpha_rms: float
    beta_rms: float
    theta_gradient: float
    """Norm of the gradient of the forward block and its readout."""
    phi_gradient: float
    """Norm of the gradient of the backward twin."""
    theta_update: float
    """Norm of the step of the forward parameters, as a fraction of their own norm."""
    phi_update: float
    dead_units: float
    """Fraction of the latent's units that are the same for every row."""
    dead_features: float
    """Fraction of the block's output features that are the same for every row."""
    saturated_units: float
    """Fraction of units, over rows, whose parameters have come to their bounds."""
    effective_rank: float
    """Directions in which the forward message varies over the rows."""
    mixing: float
    staleness_steps: int
    """Age of the class table that came from the right."""
    queue_depth: int
    """Messages from the left that wait."""


class AlarmSignature(StrEnum):
    """A way in which block-local learning is known to fail."""

    UNSPECIFIED = "unspecified"
    """Also every signature that a newer server knows and this client does not."""
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
    """A run shows the signature of a known failure."""

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


@dataclass(frozen=True)
class CheckpointSaved:
    """All blocks are safe on disk."""

    step: int
    epoch: int
    write: timedelta = timedelta()
    """Longest time that a block took to write its part."""


@dataclass(frozen=True)
class CheckpointDamaged:
    """The newest checkpoint cannot be used: the run goes on from the one before."""

    step: int
    """Of the damaged one."""
    fallback_step: int
    """Of the one that the run goes on from. Events of later steps are told again."""
    cause: str


@dataclass(frozen=True)
class RolledBack:
    """A worker was lost: all blocks go on from the newest checkpoint.

    Events of steps after `step` are told again, and replace what came before.
    """

    step: int
    """0: the run begins again."""
    block: int
    """The first block of the worker that was lost."""
    cause: str
    """How it was lost."""
    restart: int
    """Restarts since the last new checkpoint, this one included."""


@dataclass(frozen=True)
class BlockContinued:
    """A block's worker was lost, and the block goes on with the weights that it last saved. The others have not
    stopped."""

    block: int
    """From 0."""
    step: int
    """Steps done, by the block's place in the stream."""
    from_step: int
    """Steps after which its weights were saved; 0 = its initial weights."""
    cause: str
    restart: int
    """Restarts since the last new checkpoint, this one included."""


@dataclass(frozen=True)
class StateChange:
    """A job's transition into a state."""

    state: JobState
    reason: str
    """Empty when there is nothing to say."""


@dataclass(frozen=True)
class JobEvent:
    """One numbered thing that happened to a job."""

    number: int
    """Rises from 1: by one, but for reports of blocks that a slow reader is spared, since newer ones follow."""
    time: datetime
    event: (
        StateChange
        | BlockProgress
        | BlockDiagnostics
        | BlocksPlaced
        | BlockWaiting
        | Evaluation
        | Alarm
        | CheckpointSaved
        | CheckpointDamaged
        | RolledBack
        | BlockContinued
        | None
    )
    """None: a kind of event that this client does not know."""


class BlockState(StrEnum):
    """What a block is doing."""

    UNSPECIFIED = "unspecified"
    """Also every state that a newer server knows and this client does not."""
    IDLE = "idle"
    """No worker runs it, since the job does not run."""
    TRAINING = "training"
    WAITING = "waiting"
    """It has waited long for a neighbour."""
    DONE = "done"
    """It has done all steps."""


@dataclass(frozen=True)
class BlockStatus:
    """How one block of a job stands."""

    block: int
    """From 0."""
    state: BlockState
    device: str
    worker: int | None
    """The place of the worker that runs it, from 0; None while none does."""
    cpus: tuple[int, ...]
    """The cores that the worker keeps to; empty: any."""
    progress: BlockProgress | None
    """Its newest report."""
    waiting: BlockWaiting | None
    """The wait for a neighbour that goes on."""
    checkpoint_step: int
    """Steps after which it is safe on disk; 0 before the first checkpoint."""
    checkpoint_time: datetime | None


@dataclass(frozen=True)
class BlockSeries:
    """How one block fared over the steps."""

    block: int
    """From 0."""
    reports: tuple[BlockProgress, ...]
    """In the order of their steps."""


@dataclass(frozen=True)
class JobMetrics:
    """How a job fared over its steps, without what a roll-back or a resumption has undone."""

    blocks: tuple[BlockSeries, ...]
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class LogChunk:
    """Part of a job's log."""

    data: bytes
    """May break a line or a character."""
    next_offset: int
    """Bytes of the log up to the end of `data`: where to go on."""


@dataclass(frozen=True)
class JobProgress:
    """How far a job has come."""

    step: int
    """Steps that every block has done."""
    total_steps: int
    epoch: int
    total_epochs: int
    samples_per_s: float
    """Recently, of the job as a whole."""
    remaining: timedelta | None
    """To the last step, by that; None until it can be estimated, and once the job is over."""
    steps_per_s: float = 0.0


@dataclass(frozen=True)
class BlockPlan:
    """One block, as it will be built."""

    first_layer: int
    layers: tuple[str, ...]
    parameters: int
    flops: int
    """Of one sample's forward pass."""
    output_shape: tuple[int, ...]
    activation_bytes: int
    """What a training step keeps of one sample until its backward pass."""


@dataclass(frozen=True)
class JobPlan:
    """What a spec comes to."""

    blocks: tuple[BlockPlan, ...]
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    steps_per_epoch: int
    dataset_digest: str
    warnings: tuple[str, ...]
    """What is allowed but probably not meant."""
    target_shape: tuple[int, ...]
    """Shape of one sample's target; empty for one class a sample."""


@dataclass(frozen=True)
class JobFailure:
    """Why a job or a data set FAILED."""

    status: str
    """Name of the gRPC status code, such as `INTERNAL`."""
    message: str


class JobMetadata(TypedDict, total=False):
    """What may be said of a job beside its spec, and changed at any time. None is the same as leaving it out."""

    labels: Mapping[str, str] | None
    """Replaced as a whole."""
    display_name: str | None
    priority: int | None
    """Jobs of a higher one leave the queue first; 0 unless set."""
    preemptible: bool | None
    """While it runs, it gives way to a job of a higher priority that waits, and goes on by itself."""
    max_run_duration: timedelta | None
    """Running time after which it is stopped and FAILED; 0: no limit."""
    ttl_after_finish: timedelta | None
    """Time after its end after which the server deletes it; 0: never."""


@dataclass(frozen=True)
class Job:
    """One training run, from submission to its model."""

    name: str
    """`jobs/{id}`; empty for a spec that was only validated."""
    spec: Spec
    """As it was asked for."""
    resolved_spec: Spec
    """With every default and every cut filled in; empty in a list."""
    plan: JobPlan | None
    state: JobState
    state_reason: str
    error: JobFailure | None
    progress: JobProgress | None
    validation: Evaluation | None
    """The last evaluation on validation rows."""
    test: Evaluation | None
    model_version: str
    """`models/{model}/versions/{version}`; empty until the job has SUCCEEDED."""
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    last_event: int
    display_name: str
    labels: Mapping[str, str]
    priority: int
    """Jobs of a higher one leave the queue first."""
    etag: str
    """Another after each change of state, labels, display name or priority; progress leaves it."""
    queue_position: int
    """One more than the jobs that are to start before it; 0 when it is not QUEUED, and in a list."""
    owner: str
    """Whose token created it; empty where the server asked for none."""
    preemptible: bool
    """While it runs, it gives way to a job of a higher priority that waits."""
    max_run_duration: timedelta | None
    """Running time after which it is FAILED; None: no limit."""
    ttl_after_finish: timedelta | None
    """Time after its end after which the server deletes it; None: never."""
    run_duration: timedelta | None
    """Running time of all its runs so far; None before the first."""
    expire_time: datetime | None
    """When the server deletes it; None where it does not, and while it is not over."""
    study: str
    """`studies/{id}`, of which it is a trial; empty for a job of its own."""
    parameters: Mapping[str, Any]
    """A trial's value of each parameter's field."""


class DatasetState(StrEnum):
    """Where a data set stands."""

    UNSPECIFIED = "unspecified"
    VALIDATING = "validating"
    READY = "ready"
    FAILED = "failed"


class DatasetFormat(StrEnum):
    """How a file holds a data set; `docs/datasets.md` says what each has in it."""

    UNSPECIFIED = "unspecified"
    """Of a built-in data set."""
    NPZ = "npz"
    NPY = "npy"
    IDX = "idx"
    IMAGES = "images"


@dataclass(frozen=True)
class DatasetClass:
    """One class, and how often it is a target."""

    name: str
    train_count: int
    test_count: int


@dataclass(frozen=True)
class DatasetReport:
    """What was found in a data set."""

    train_rows: int
    test_rows: int
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    """Empty for one class a row."""
    dtype: str
    classes: tuple[DatasetClass, ...]
    """Empty in a list."""
    dataset_digest: str
    stored_bytes: int


@dataclass(frozen=True)
class Dataset:
    """What jobs learn from."""

    name: str
    """`datasets/{id}`."""
    data_name: str
    """What `data.name` of a job's spec must be."""
    built_in: bool
    state: DatasetState
    format: DatasetFormat
    upload_bytes: int
    sha256: str
    """Of the file that was uploaded; empty for a built-in data set."""
    create_time: datetime | None
    report: DatasetReport | None
    """Of an uploaded data set that is READY."""
    error: JobFailure | None
    """What is wrong with a FAILED one."""
    owner: str = ""
    """Whose token uploaded it."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    dtype: str
    """numpy's name of it, such as `float32`."""
    shape: tuple[int, ...]
    """-1 stands for the batch dimension."""


@dataclass(frozen=True)
class ModelVersion:
    """One immutable published network."""

    name: str
    """`models/{model}/versions/{version}`."""
    create_time: datetime
    resolved_spec: Spec
    """How it was trained."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    class_names: tuple[str, ...]
    num_blocks: int
    evaluations: tuple[Evaluation, ...]
    model_digest: str
    """SHA-256 of the ONNX file, in hex."""
    size_bytes: int
    dataset_digest: str


@dataclass(frozen=True)
class Model:
    """A name under which versions are published."""

    name: str
    """`models/{model}`."""
    versions: tuple[ModelVersion, ...]
    """Newest first; `list_models` gives the newest only."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """A distribution over classes and uncertainties, for each row of the input."""

    model_version: str
    """The version that answered."""
    class_names: tuple[str, ...]
    probabilities: Array
    """Of the head asked for, shape (B, C)."""
    exit_probabilities: Array
    """Shape (B, N, C)."""
    posterior_variance: Array
    """Variance of each block's latent, with the target marginalised, mean over units; shape (B, N)."""
    posterior_variance_between: Array
    """The part of it that comes from not knowing the class, shape (B, N)."""
    forward_variance: Array
    """Variance of each block's latent before any target is considered, shape (B, N)."""
    output_variance: Array
    """1 - sum p^2 of the mixture: 0 when certain, at most 1 - 1/C; shape (B,)."""
    entropy_nats: Array
    """Entropy of the mixture, shape (B,)."""
    exit_disagreement_nats: Array
    """Entropy of the mixture less the mean entropy of the exits, shape (B,)."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of the most probable class of each row."""
        return tuple(self.class_names[c] for c in self.probabilities.argmax(axis=1))
