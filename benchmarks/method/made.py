"""Data files that the benchmarks make for themselves.

noise-<size>.npz               colour images of that size, pixels and classes at random: for runs that are not scored
fashion-without-<i>-<j>.npz    Fashion-MNIST without classes i and j
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bll import data
from bll.config import DataConfig

_NOISE_ROWS = 96
_NOISE_CLASSES = 10
_WITHOUT = "fashion-without-"


def write(path: Path) -> None:
    """Write the file that `path` names, unless it is there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, allow_pickle=False, **(_fashion(path.name) if held_out_classes(path.name) else _noise(path)))
    temporary.rename(path)


def held_out_classes(name: str) -> list[int]:
    """Classes of Fashion-MNIST that the file of this name lacks; none of any other file."""
    if not name.startswith(_WITHOUT):
        return []
    return [int(label) for label in name.removeprefix(_WITHOUT).removesuffix(".npz").split("-")]


def _noise(path: Path) -> dict[str, np.ndarray]:
    size = int(path.stem.removeprefix("noise-"))
    images = np.random.default_rng(size).integers(0, 256, (_NOISE_ROWS, size, size, 3), dtype=np.uint8)
    return {"x_train": images, "y_train": np.arange(_NOISE_ROWS) % _NOISE_CLASSES}


def _fashion(name: str) -> dict[str, np.ndarray]:
    """The rows of the other classes, which are numbered anew without gaps."""
    whole = data.load(DataConfig("fashion-mnist"), 0)
    kept = np.setdiff1d(np.arange(len(whole.class_names)), held_out_classes(name))
    arrays = {}
    for split, parts in (("train", (whole.train, whole.validation)), ("test", (whole.test,))):
        inputs, targets = (np.concatenate([getattr(rows, name) for rows in parts]) for name in ("inputs", "targets"))
        known = np.isin(targets, kept)
        arrays[f"x_{split}"] = inputs[known, 0]
        arrays[f"y_{split}"] = np.searchsorted(kept, targets[known])
    return arrays
