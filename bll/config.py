"""The description of a training run: plain frozen dataclasses, and the one home of every default.

Torch is not imported here: a server validates a job with this module alone. What needs the network
itself (cuts, shapes, the pipeline's buffers) is settled by `bll.partition.resolve`, which returns a
config with nothing left open. `bll_proto/v1/training.proto` mirrors these classes field by field;
a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bll.choices import (
    Augmentation,
    Balance,
    FamilyName,
    LearningRateSchedule,
    LossName,
    MessageName,
    MixingSchedule,
    OptimizerName,
    PosteriorName,
    ReadoutName,
    Rule,
    TargetName,
    TwinName,
)
from bll.execution import DiagnosticsConfig, ExecutorConfig
from bll.rules import Rules, shown


@dataclass(frozen=True)
class DataConfig:
    """What is learned from."""

    name: str = "fashion-mnist"
    """`fashion-mnist`, `mnist`, `cifar-10`, `digits`; made by the project: `reversal` (sequences), `shapes` (a class
    for each pixel); a user's own: `npz` or `images` (then `path` names it); or, on a server, `datasets/{id}`, which was
    uploaded to it."""
    path: str = ""
    """The user's `.npz` file, or folder with a folder of images for each class; with names `npz` and `images` only."""
    train_rows: int = 0
    """Use only the first rows of the seeded training split; 0 = all."""
    validation_rows: int = 0
    """Rows set aside from training data for validation; 0 = a tenth."""
    augmentation: Augmentation = Augmentation.NONE
    """Images only."""
    target: TargetName = TargetName.LABELS
    """`inputs` with losses `decoder` and `in_batch` and rules `bll` and `backprop`."""
    label_noise: float = 0.0
    """Fraction of training labels replaced by another class, drawn from the seed, 0 to 0.9. For experiments."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("name", self.name)
        if (self.name in ("npz", "images")) != bool(self.path):
            received = f"{shown(self.path)} with {shown(self.name)}"
            rules.fail("path", f"goes with names 'npz' and 'images' and with no other, got {received}")
        elif self.path:
            rules.text("path", self.path)
        rules.whole("train_rows", self.train_rows, 0, 10**9)
        rules.whole("validation_rows", self.validation_rows, 0, 10**9)
        rules.member("augmentation", self.augmentation, Augmentation)
        rules.member("target", self.target, TargetName)
        rules.within("label_noise", self.label_noise, 0.0, 0.9)
        rules.done()


@dataclass(frozen=True)
class NetworkConfig:
    """The forward network, before it is cut: an architecture's name and its layers."""

    architecture: str = "residual_cnn"
    """`mlp` (any input, flattened); for images `residual_cnn`, `resnet18`, `resnet34`, `resnet50`, `resnet101`,
    `efficientnet_small` or `conv_autoencoder`; for sequences `transformer`."""
    widths: tuple[int, ...] = ()
    """Units or channels, 1 to 8192; empty = the architecture's own. One entry a layer of `mlp` and `residual_cnn`
    (which has one layer more, its stem, and halves the image where it widens), one for each of the four stages of a
    resnet, of `efficientnet_small` the stem, seven stages and the head, of `conv_autoencoder` its halving
    convolutions and last its bottleneck (each of these layers has a mirror), and equal ones, one a layer, of
    `transformer`."""
    stem_stride: int = 1
    """1 (small images) or 2: a 3x3 convolution of this stride; 4 (ImageNet's, resnets only): a 7x7 convolution and
    max pooling, each of stride 2. `mlp` has no stem: 1."""
    dropout: float = 0.0
    """Probability that a unit is dropped in each layer, 0 to 0.9."""
    heads: int = 4
    """Attention heads of each layer of `transformer`, 1 to 64; divides its widths."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("architecture", self.architecture)
        rules.layers("widths", self.widths, 0, 256, 1, 8192)
        if self.stem_stride not in (1, 2, 4) or isinstance(self.stem_stride, bool):
            rules.fail("stem_stride", f"must be 1, 2 or 4, got {shown(self.stem_stride)}")
        rules.within("dropout", self.dropout, 0.0, 0.9)
        rules.whole("heads", self.heads, 1, 64)
        rules.done()


@dataclass(frozen=True)
class BlocksConfig:
    """Where the network is cut. Cuts are part of the model, placement is not."""

    num_blocks: int = 4
    """1 to the number of layers."""
    cuts: tuple[int, ...] = ()
    """Index of the first layer of each block but the first, rising; empty = chosen by `balance`."""
    balance: Balance = Balance.FLOPS
    """What is made equal when `cuts` is empty. `measured_time` counts layers and readouts, and
    is measured once: a resolved config has cuts."""
    normalize_messages: bool = False
    """Scale each sample's message to unit mean square before it is sent on."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.whole("num_blocks", self.num_blocks, 1, 257)
        rules.member("balance", self.balance, Balance)
        rules.flag("normalize_messages", self.normalize_messages)
        if rules.layers("cuts", self.cuts, 0, 256, 1, 256) and self.cuts:
            if any(a >= b for a, b in zip(self.cuts, self.cuts[1:], strict=False)):
                rules.fail("cuts", f"must rise, got {list(self.cuts)}")
            if len(self.cuts) + 1 != self.num_blocks:
                rules.fail("cuts", f"must have num_blocks - 1 = {self.num_blocks - 1} entries, got {list(self.cuts)}")
        rules.done()


@dataclass(frozen=True)
class LatentConfig:
    """The latent z_k matched at each boundary, and its readout from the block's output."""

    family: FamilyName = FamilyName.BERNOULLI
    units: int = 64
    """Units D of each latent, 1 to 65536."""
    readout: ReadoutName = ReadoutName.HIDDEN
    """`identity` takes the block's output itself, each number scaled and shifted (`units` is then theirs); `linear`
    has no hidden layer, `hidden` one, `deep` two, `conv` a 3x3 convolution before one; `next_layer` is a running mean
    of the next block's first layer before a linear map."""
    readout_units: int = 128
    """Width of the hidden layers of readouts `hidden`, `deep` and `conv` (there also channels), and of the decoders and
    target encoders of `data.target` `inputs`, 1 to 65536."""
    readout_grid: int = 3
    """Images are averaged to a grid of this many cells a side before the readout, 1 to 32."""
    group_size: int = 4
    """Units of one variable of family `categorical`, 2 to 65536; divides `units`."""
    min_variance: float = 1e-3
    """Floor of a learned variance, Gaussian or Laplace, 1e-6 to 1."""
    max_variance: float = 1e2
    """Ceiling of a learned variance, Gaussian or Laplace, 1 to 1e6."""
    message: MessageName = MessageName.OUTPUT
    """What the next block receives; others than `output` with readout `identity` only."""
    bootstrap: float = 0.0
    """Probability, in the first epoch, that a sample's message is the posterior's mean, 0 to 1; falls to 0 over
    `bootstrap_epochs`. With readout `identity` and message `mean` only."""
    bootstrap_epochs: int = 1
    """1 to 100000; ignored without `bootstrap`."""
    ema_decay: float = 0.99
    """Of readout `next_layer`: weight of its past at each step, 0 to 1."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.member("family", self.family, FamilyName)
        rules.whole("units", self.units, 1, 65536)
        rules.member("readout", self.readout, ReadoutName)
        rules.whole("readout_units", self.readout_units, 1, 65536)
        rules.whole("readout_grid", self.readout_grid, 1, 32)
        rules.whole("group_size", self.group_size, 2, 65536)
        grouped = self.family is FamilyName.CATEGORICAL and self.readout is not ReadoutName.IDENTITY
        if grouped and not rules.violations and self.units % self.group_size:
            rules.fail("group_size", f"must divide latent.units = {self.units}, got {self.group_size}")
        rules.within("min_variance", self.min_variance, 1e-6, 1.0)
        rules.within("max_variance", self.max_variance, 1.0, 1e6)
        rules.member("message", self.message, MessageName)
        if self.message is not MessageName.OUTPUT and self.readout is not ReadoutName.IDENTITY:
            rules.fail("message", f"must be 'output' for readout {shown(self.readout)}, got {shown(self.message)}")
        if self.family is FamilyName.LAPLACE_SCALE and self.message in (MessageName.MEAN, MessageName.SAMPLE):
            rules.fail("message", f"must be 'output' or 'natural' for a family of mean 0, got {shown(self.message)}")
        sends_mean = self.message is MessageName.MEAN
        if rules.within("bootstrap", self.bootstrap, 0.0, 1.0) and self.bootstrap and not sends_mean:
            rules.fail("bootstrap", f"must be 0 for message {shown(self.message)}, got {self.bootstrap:g}")
        rules.whole("bootstrap_epochs", self.bootstrap_epochs, 1, 100_000)
        rules.within("ema_decay", self.ema_decay, 0.0, 1.0)
        rules.done()


@dataclass(frozen=True)
class BackwardConfig:
    """The backward twin, which turns targets into messages log beta_k(z; y)."""

    twin: TwinName = TwinName.DIRECT
    delay_steps: int = 8
    """Of `chain` and of readout `next_layer`: block k at step t reads the table, or the first layer, of block k+1 as
    it was `delay_steps` steps earlier, 1 to 1024. Fixed, so that every executor computes the same."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.member("twin", self.twin, TwinName)
        rules.whole("delay_steps", self.delay_steps, 1, 1024)
        rules.done()


@dataclass(frozen=True)
class LossConfig:
    """The local loss L_k of every block (method, section 4)."""

    name: LossName = LossName.EVIDENCE
    posterior: PosteriorName = PosteriorName.COUPLED
    """For `evidence`, the two agree at m = 1."""
    samples: int = 0
    """Of `discriminative` and `decoder`: reparametrised samples of rho_k a row, 1 to 64; 0 = its mean instead."""
    similarity: float = 0.0
    """Weight, 0 to 1, of the similarity matching loss (Nokland and Eidnes 2019); 1 less it is that of L_k."""
    reconstruction: float = 0.0
    """Weight, 0 to 100, of the error of a decoder from the block's output back to what it received."""
    span: int = 1
    """Blocks that a local loss trains, its own and those before it, 1 to 257. 1 = block-local; 2 = overlapping
    pairs; `blocks.num_blocks` = every exit by backpropagation. Above 1 the blocks share a worker."""
    block_weights: tuple[float, ...] = ()
    """Weight of each block's loss, 0 to 1000, one a block; empty = 1."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.member("name", self.name, LossName)
        rules.member("posterior", self.posterior, PosteriorName)
        rules.whole("samples", self.samples, 0, 64)
        if self.samples and self.name not in (LossName.DISCRIMINATIVE, LossName.DECODER):
            rules.fail("samples", f"must be 0 for loss {shown(self.name)}, got {shown(self.samples)}")
        rules.within("similarity", self.similarity, 0.0, 1.0)
        rules.within("reconstruction", self.reconstruction, 0.0, 100.0)
        rules.whole("span", self.span, 1, 257)
        rules.numbers("block_weights", self.block_weights, 257, 0.0, 1000.0)
        rules.done()


@dataclass(frozen=True)
class MixingConfig:
    """The mixing parameter m of rho_k = EF(a_k + m b_k), over epochs."""

    schedule: MixingSchedule = MixingSchedule.CONSTANT
    start: float = 1.0
    """m of the first epoch (of every epoch when constant), 0 to 2."""
    end: float = 1.0
    """m after the ramp, 0 to 2; ignored when constant."""
    ramp_epochs: int = 1
    """Epochs from `start` to `end` (`step`: epochs before the jump; `auto`: epochs of growth that it takes), 1 to
    100000; ignored when constant."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.member("schedule", self.schedule, MixingSchedule)
        rules.within("start", self.start, 0.0, 2.0)
        rules.within("end", self.end, 0.0, 2.0)
        rules.whole("ramp_epochs", self.ramp_epochs, 1, 100_000)
        rules.done()


@dataclass(frozen=True)
class OptimizerConfig:
    """The two gradient steps of each block: of its forward part and of its backward twin."""

    name: OptimizerName = OptimizerName.ADAMW
    learning_rate: float = 2e-3
    """Of the forward block and its readout, 1e-8 to 10."""
    backward_learning_rate: float = 2e-3
    """Of the backward twin, 1e-8 to 10."""
    weight_decay: float = 1e-4
    """0 to 1; not applied to biases, normalisation or class tables."""
    momentum: float = 0.9
    """`sgd` only, 0 to 0.999."""
    schedule: LearningRateSchedule = LearningRateSchedule.COSINE
    warmup_steps: int = 0
    """Steps of linear rise from 0 before the schedule, 0 to 1000000."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.member("name", self.name, OptimizerName)
        rules.within("learning_rate", self.learning_rate, 1e-8, 10.0)
        rules.within("backward_learning_rate", self.backward_learning_rate, 1e-8, 10.0)
        rules.within("weight_decay", self.weight_decay, 0.0, 1.0)
        rules.within("momentum", self.momentum, 0.0, 0.999)
        rules.member("schedule", self.schedule, LearningRateSchedule)
        rules.whole("warmup_steps", self.warmup_steps, 0, 1_000_000)
        rules.done()


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. The same config gives the same weights, bit for bit, on every executor."""

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    blocks: BlocksConfig = field(default_factory=BlocksConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    backward: BackwardConfig = field(default_factory=BackwardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    rule: Rule = Rule.BLL
    """`backprop` and the rules after it train the same modules as one block, from the last exit's loss."""
    epochs: int = 10
    """1 to 100000."""
    batch_size: int = 128
    """Rows of a training step, 2 to 65536."""
    seed: int = 0
    """0 to 2^63 - 1; every random draw of the run is keyed by it."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.member("rule", self.rule, Rule)
        rules.whole("epochs", self.epochs, 1, 100_000)
        rules.whole("batch_size", self.batch_size, 2, 65_536)
        rules.whole("seed", self.seed, 0, 2**63 - 1)
        rules.done()
