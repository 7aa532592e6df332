"""The specs that groups share. One CNN for all of them, and for the engine's speed rows."""

from __future__ import annotations

from typing import Any

from benchmarks.method.trials import Spec, merged

FASHION: dict[str, Any] = {"name": "fashion-mnist", "validation_rows": 6000}
"""54k rows to train on, 6k for validation, 10k for the test."""

MLP: dict[str, Any] = {
    "data": FASHION,
    "network": {"architecture": "mlp", "widths": [256, 256, 256, 256]},
    "blocks": {"num_blocks": 4},
    "epochs": 15,
}

CNN_DEFAULT_READOUT: dict[str, Any] = {
    "data": {**FASHION, "augmentation": "shift_flip"},
    "network": {"architecture": "residual_cnn", "widths": [16, 16, 32, 32, 64, 64], "stem_stride": 2},
    "blocks": {"num_blocks": 4},
    # The better of 2e-3 and 4e-3 on validation rows for BLL and for backprop alike (30k rows, 6 epochs).
    "optimizer": {"learning_rate": 4e-3, "backward_learning_rate": 4e-3},
    "epochs": 15,
}
CNN: dict[str, Any] = {
    **CNN_DEFAULT_READOUT,
    # Features of a 4x4 grid tell an exit more than those of 3x3 with more units (validation rows, 30k rows, 6 epochs);
    # as many units as keep the network with its exits and twins below 500,000 parameters.
    "latent": {"readout_units": 96, "readout_grid": 4},
}

BACKPROP: dict[str, Any] = {"rule": "backprop"}
PLAIN: dict[str, Any] = {
    "rule": "backprop",
    "latent": {"family": "unit_gaussian", "readout": "linear", "readout_grid": 1},
}
"""The usual classifier: a linear softmax on pooled features, which is what a unit-variance latent comes to."""
PLAIN_CNN: Spec = merged(CNN_DEFAULT_READOUT, PLAIN)
ALL_EXITS: dict[str, Any] = {"loss": {"span": 4}}
"""Deep supervision: each exit's loss trains every layer before it."""
LOCAL_CLASSIFIERS: dict[str, Any] = {"rule": "local_classifiers"}
LOCAL_CLASSIFIERS_EVIDENCE: dict[str, Any] = {"latent": {"family": "unit_gaussian"}}
"""What a unit-variance latent under evidence comes to (method, section 4), hence its name in every table."""


def family(name: str) -> dict[str, Any]:
    """The spec of another family of latents."""
    return {"latent": {"family": name}}
