"""The model that every contender serves: a CNN of four blocks on Fashion-MNIST, trained for an epoch and exported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.serving.effort import FOLDER

NAME = "fashion"
INPUT_SHAPE = (1, 28, 28)
_EXPORTED = FOLDER / "exported"

Array = np.ndarray


def exported() -> Path:
    """The folder of the graph and its manifest; made once, in a process of its own, whose torch ends with it."""
    if not _EXPORTED.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.serving.model"], check=True)
    return _EXPORTED


def graph() -> Path:
    return exported() / "model.onnx"


def published(data_dir: Path) -> Path:
    """`data_dir`, with the model as version 1 of `models/fashion`."""
    publish(data_dir, "jobs/benchmark")
    return data_dir


def publish(data_dir: Path, job: str) -> str:
    """Put the model into a data directory that no server has; returns the version's name."""
    from bll_server.models.registry import Registry

    staging = data_dir / "staging"
    shutil.copytree(exported(), staging)
    return Registry(data_dir / "models").publish(NAME, staging, job)


def samples(rows: int) -> Array:
    """Images for a request."""
    return np.random.default_rng(0).random((rows, *INPUT_SHAPE), dtype=np.float32)


def _make() -> None:
    from bll import BlocksConfig, DataConfig, NetworkConfig, TrainingConfig, fit

    network = NetworkConfig(architecture="residual_cnn", widths=(16, 16, 32, 32, 64, 64), stem_stride=2)
    config = TrainingConfig(data=DataConfig("fashion-mnist"), network=network, blocks=BlocksConfig(4), epochs=1)
    staging = _EXPORTED.with_suffix(f".{os.getpid()}")
    fit(config).export(staging)
    staging.rename(_EXPORTED)


if __name__ == "__main__":
    _make()
