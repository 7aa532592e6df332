"""Tasks whose targets are not one class a row: sequences, images to be given back, a class for each pixel."""

from __future__ import annotations

from typing import Any

from benchmarks.method.groups.specs import BACKPROP, FASHION, LOCAL_CLASSIFIERS, family
from benchmarks.method.trials import Claim, Contender, Group, merged

_REVERSAL: dict[str, Any] = {
    "data": {"name": "reversal"},
    "network": {"architecture": "transformer"},
    "blocks": {"num_blocks": 4},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 100},
    "epochs": 4,
}

REVERSAL = Group(
    name="reversal",
    title="Sequence reversal, transformer of 20 layers",
    contenders={
        "bll-four-blocks": Contender(_REVERSAL, (0,), "positions"),
        "bll-two-blocks": Contender(merged(_REVERSAL, {"blocks": {"num_blocks": 2}}), (0,), "positions"),
        "backprop": Contender(merged(_REVERSAL, BACKPROP), (0,), "positions"),
    },
    claims=(
        Claim("bll-two-blocks:last", "accuracy", target=0.97),
        Claim("bll-four-blocks:last", "accuracy", target=0.97),
        Claim("bll-four-blocks:last", "accuracy", against="backprop:last"),
    ),
    notes="Accuracy is that of tokens.",
)

_AUTOENCODER: dict[str, Any] = {
    "data": {**FASHION, "target": "inputs"},
    "network": {"architecture": "conv_autoencoder"},
    "blocks": {"num_blocks": 4},
    "loss": {"name": "decoder"},
    # The posterior knows the target: m falls to 0, so that what is trained last is what predicts.
    "mixing": {"schedule": "linear", "start": 1.0, "end": 0.0, "ramp_epochs": 3},
    "optimizer": {"learning_rate": 5e-3, "backward_learning_rate": 5e-3},
    "epochs": 5,
}
_REFERENCES = {"bll": "backprop", "bll-gaussian": "backprop-gaussian"}

AUTOENCODER = Group(
    name="autoencoder",
    title="Convolutional autoencoder with means and variances in four blocks, Fashion-MNIST",
    contenders={
        "bll": Contender(_AUTOENCODER, (0,), "reconstruction"),
        "bll-gaussian": Contender(merged(_AUTOENCODER, family("gaussian")), (0,), "reconstruction"),
        "bll-in-batch": Contender(merged(_AUTOENCODER, {"loss": {"name": "in_batch"}}), (0,), "reconstruction"),
        "backprop": Contender(merged(_AUTOENCODER, BACKPROP), (0,), "reconstruction"),
        "backprop-gaussian": Contender(merged(_AUTOENCODER, BACKPROP, family("gaussian")), (0,), "reconstruction"),
    },
    claims=tuple(
        claim
        for name, reference in _REFERENCES.items()
        for claim in (
            Claim(f"{name}:mixture", "mse", against=f"{reference}:last", target=1.5, op="<=", as_ratio=True),
            Claim(f"{name}:mixture", "rank_correlation", target=0.5),
            Claim(f"{name}:mixture", "rank_above_map", target=0.1),
            Claim(f"{name}:mixture", "sample_rank_correlation", target=0.6),
            Claim(f"{name}:mixture", "coverage", target=0.87),
            Claim(f"{name}:mixture", "coverage", target=0.93, op="<="),
            Claim(f"{name}:mixture", "calibrated_coverage", target=0.87),
            Claim(f"{name}:mixture", "calibrated_coverage", target=0.93, op="<="),
        )
    ),
    notes="`rank_correlation` is Spearman's between variance and squared error, pixel by pixel; `rank_above_map` is by "
    "how much it exceeds that of a variance map that does not depend on the input. `coverage` is that of the mixture's "
    "own 90 % intervals, `calibrated_coverage` that of intervals scaled on validation rows.",
)

_SEGMENTATION: dict[str, Any] = {
    "data": {"name": "shapes"},
    "network": {"architecture": "residual_cnn", "widths": [16, 16, 32, 32]},
    "blocks": {"num_blocks": 4},
    # Every pixel has a latent: small ones, and small batches, keep a step below a second.
    "latent": {"units": 16, "readout_units": 16},
    "batch_size": 32,
    # At 2e-3 neither rule comes far in as many steps.
    "optimizer": {"learning_rate": 1e-2, "backward_learning_rate": 1e-2},
    "epochs": 6,
}

SEGMENTATION = Group(
    name="segmentation",
    title="A class for each pixel: made-up shapes, residual CNN in four blocks",
    contenders={
        "bll": Contender(_SEGMENTATION, (0,), "segmentation"),
        "backprop": Contender(merged(_SEGMENTATION, BACKPROP), (0,), "segmentation"),
        "local_classifiers": Contender(merged(_SEGMENTATION, LOCAL_CLASSIFIERS), (0,), "segmentation"),
    },
    claims=(
        Claim("bll:mixture", "iou", against="backprop:last", target=-0.03),
        Claim("bll:last", "iou", against="backprop:last", target=-0.03),
    ),
    notes="What an exit can tell of a pixel is bounded by what it sees around it: early exits see little.",
)
