"""What the choices of a config can be. Values are the words of job specs. Torch is not imported here."""

from __future__ import annotations

from enum import StrEnum

BUILT_IN_DATA = ("fashion-mnist", "mnist", "cifar-10", "digits", "reversal", "shapes")
"""Data sets that everybody has by name."""


class Rule(StrEnum):
    """How the network learns: block-local learning, or one of its rivals on the same modules.

    The first five are local to a block and run in N blocks; the others need the error at the output, and run as one.
    """

    BLL = "bll"
    LOCAL_CLASSIFIERS = "local_classifiers"
    PREDSIM = "predsim"
    PROTOTYPE = "prototype"
    BACKPROP = "backprop"
    FEEDBACK_ALIGNMENT = "feedback_alignment"
    DIRECT_FEEDBACK_ALIGNMENT = "direct_feedback_alignment"
    SIGN_SYMMETRY = "sign_symmetry"
    TARGET_PROPAGATION = "target_propagation"
    SYNTHETIC_GRADIENTS = "synthetic_gradients"


class TargetName(StrEnum):
    """What is predicted: the data set's labels, or its inputs (an autoencoder)."""

    LABELS = "labels"
    INPUTS = "inputs"


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
    MEASURED_TIME = "measured_time"


class FamilyName(StrEnum):
    """Family of the latents z_k (method, section 2)."""

    BERNOULLI = "bernoulli"
    CATEGORICAL = "categorical"
    GAUSSIAN = "gaussian"
    UNIT_GAUSSIAN = "unit_gaussian"
    LAPLACE = "laplace"
    LAPLACE_SCALE = "laplace_scale"


class LossName(StrEnum):
    """What a block learns from. `divergence` is KL(rho || alpha) alone, and collapses: it is there to show that.

    `in_batch` and `decoder` are for targets that are no classes.
    """

    EVIDENCE = "evidence"
    DISCRIMINATIVE = "discriminative"
    DIVERGENCE = "divergence"
    PROTOTYPE = "prototype"
    IN_BATCH = "in_batch"
    DECODER = "decoder"


class PosteriorName(StrEnum):
    """Whether the gradient also flows through rho_k."""

    COUPLED = "coupled"
    DETACHED = "detached"


class ReadoutName(StrEnum):
    """Map from a block's output to the natural parameters of alpha_k."""

    IDENTITY = "identity"
    LINEAR = "linear"
    HIDDEN = "hidden"
    DEEP = "deep"
    CONV = "conv"
    NEXT_LAYER = "next_layer"


class MessageName(StrEnum):
    """What a block sends on: its output, or, with readout `identity`, what its latent's density says."""

    OUTPUT = "output"
    MEAN = "mean"
    NATURAL = "natural"
    SAMPLE = "sample"


class Recovery(StrEnum):
    """What becomes of a run that has lost a worker: all blocks go back to the newest checkpoint, and lose nothing of
    the result; or the worker's blocks alone go on with the weights that they last saved."""

    EXACT = "exact"
    CONTINUE = "continue"


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
    RAY = "ray"


class PrecisionName(StrEnum):
    """What layers and readouts compute in. Weights, losses and backward messages are float32 in either.

    float16 is none of them: its range asks for a scaled loss, whose scale every block would have to find and read back
    from its device at each step, and a step that overflows would be left out by one block and not by another.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
