"""What the choices of a config can be. Values are the words of job specs. Torch is not imported here."""

from __future__ import annotations

from enum import StrEnum


class Rule(StrEnum):
    """How the network learns."""

    BLL = "bll"
    BACKPROP = "backprop"


class Augmentation(StrEnum):
    """Random change of training images, drawn anew each epoch from the seed."""

    NONE = "none"
    SHIFT = "shift"
    SHIFT_FLIP = "shift_flip"


class Balance(StrEnum):
    """What the partitioner makes equal among blocks when no cuts are given."""

    LAYERS = "layers"
    PARAMETERS = "parameters"
    FLOPS = "flops"
    ACTIVATION_BYTES = "activation_bytes"


class FamilyName(StrEnum):
    """Family of the latents z_k (method, section 2)."""

    BERNOULLI = "bernoulli"
    CATEGORICAL = "categorical"
    GAUSSIAN = "gaussian"
    UNIT_GAUSSIAN = "unit_gaussian"
    LAPLACE = "laplace"
    LAPLACE_SCALE = "laplace_scale"


class LossName(StrEnum):
    """What a block learns from. `divergence` is KL(rho || alpha) alone, and collapses: it is there to show that."""

    EVIDENCE = "evidence"
    DISCRIMINATIVE = "discriminative"
    DIVERGENCE = "divergence"


class PosteriorName(StrEnum):
    """Whether the gradient also flows through rho_k."""

    COUPLED = "coupled"
    DETACHED = "detached"


class ReadoutName(StrEnum):
    """Map from a block's output to the natural parameters of alpha_k."""

    LINEAR = "linear"
    HIDDEN = "hidden"


class TwinName(StrEnum):
    """Backward network: a class table per boundary, or a chain from the last boundary to the first."""

    DIRECT = "direct"
    CHAIN = "chain"


class MixingSchedule(StrEnum):
    """Shape of the mixing parameter m over epochs. `auto`: each block raises its own while its agreement grows."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    STEP = "step"
    AUTO = "auto"


class OptimizerName(StrEnum):
    """Gradient step used by every block."""

    ADAMW = "adamw"
    SGD = "sgd"


class LearningRateSchedule(StrEnum):
    """Shape of the learning rate over the run."""

    CONSTANT = "constant"
    COSINE = "cosine"


class ExecutorName(StrEnum):
    """Who runs the blocks. `auto`: threads in `bll.fit`, processes in a served job."""

    AUTO = "auto"
    SEQUENTIAL = "sequential"
    THREADS = "threads"
    PROCESSES = "processes"
