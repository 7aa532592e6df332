"""Whether the code still computes what it computed when a trial was measured.

The digest of what a short run comes to predict, exit by exit, which no weight of it can change unseen: a refactoring
or a new output keeps it and so keeps the results, a change of numerics does not. It also differs between machine types
and torch builds, as the last bits do.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np

import bll
from benchmarks.method.trials import Trial
from bll.checkpoint import write_atomically
from bll.choices import TargetName
from bll.config import TrainingConfig
from bll.training import fit, fit_regression

_BATCH = 32
_BATCHES = 4
_EPOCHS = 2


def code_digest() -> str:
    """SHA-256, in hex, of the library's source and the version of torch."""
    digest = hashlib.sha256(metadata.version("torch").encode())
    folder = Path(bll.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def behaviour_digest(trial: Trial, code: str, cache: Path, data_root: Path | None) -> str:
    """SHA-256, in hex, of the exits' predictions of the trial's config after a few small batches.

    Takes seconds the first time with this `code`, and is then read from `cache`. Raises what `fit` raises.
    """
    path = cache / "probes" / code[:16] / trial.digest
    if path.exists():
        return path.read_text()
    digest = _probe(trial.config(), data_root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, digest.encode())
    return digest


def _probe(config: TrainingConfig, data_root: Path | None) -> str:
    batch = min(_BATCH, config.batch_size)
    data = replace(config.data, train_rows=_BATCHES * batch, validation_rows=2 * batch)
    epochs = min(_EPOCHS, config.epochs)
    train = fit if config.data.target is TargetName.LABELS else fit_regression
    model = train(replace(config, data=data, batch_size=batch, epochs=epochs), data_root=data_root)
    predictions = model.predict(model.validation_inputs(batch))
    digest = hashlib.sha256()
    for name in sorted(name for name in predictions if name.startswith("exit_")):
        digest.update(name.encode() + np.ascontiguousarray(predictions[name]).tobytes())
    return digest.hexdigest()
