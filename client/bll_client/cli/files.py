"""What a user hands to `bll`: job specs and arrays in files, labels and durations on the command line."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bll_client import DatasetFormat, FieldViolation, InvalidInput, InvalidSpec
from bll_client._types import Array

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd]?)")


class UploadFormat(StrEnum):
    """What `bll datasets upload --format` may be."""

    NPZ = DatasetFormat.NPZ
    NPY = DatasetFormat.NPY
    IDX = DatasetFormat.IDX
    IMAGES = DatasetFormat.IMAGES


def read_spec(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file, of which JSON is a part. Raises InvalidSpec."""
    try:
        values = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidSpec([FieldViolation(str(path), f"must be YAML or JSON: {error}")]) from error
    if not isinstance(values, Mapping):
        raise InvalidSpec([FieldViolation(str(path), f"must hold named fields, got {type(values).__name__}")])
    return values


_STUDY = ("base", "parameters", "num_trials", "seed", "metric", "max_parallel_trials")


def read_study(path: Path) -> dict[str, Any]:
    """What `Client.create_study` is to be called with, `base` and `parameters` at least. Raises InvalidSpec."""
    values = read_spec(path)
    known = ", ".join(_STUDY)
    violations = [
        FieldViolation(str(name), f"is not a field; those of a study are {known}")
        for name in values
        if name not in _STUDY
    ]
    violations += [FieldViolation(name, "must be present") for name in _STUDY[:2] if name not in values]
    if violations:
        raise InvalidSpec(violations)
    return dict(values)


def read_labels(texts: Iterable[str]) -> dict[str, str]:
    """The labels that `KEY=VALUE` texts name. Raises InvalidInput."""
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidInput(f"--label must be KEY=VALUE, got {text!r}")
        labels[key] = value
    return labels


def read_duration(text: str) -> timedelta:
    """The time that a text such as `90s`, `1.5h` or `7d` names; seconds where it has no unit. Raises InvalidInput."""
    parts = _DURATION.fullmatch(text)
    if not parts:
        raise InvalidInput(f"a duration must be a number with one of s, m, h, d, such as 90s or 1.5h, got {text!r}")
    return timedelta(seconds=float(parts[1]) * _UNITS_S[parts[2]])


def read_array(path: Path, name: str | None) -> Array:
    """The array of a `.npy` file, or the one called `name` (or the only one) of an `.npz` file, as a model takes it.

    Bytes are pixels, scaled to [0, 1] as in training; other numbers become float32 as they are.
    Raises InvalidInput.
    """
    try:
        array = _load(path, name)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{path}: must be a readable .npy or .npz file: {error}") from error
    if array.dtype.kind not in "iufb":
        raise InvalidInput(f"{path}: must hold numbers, got {array.dtype}")
    return array.astype(np.float32) / 255 if array.dtype == np.uint8 else array.astype(np.float32)


def _load(path: Path, name: str | None) -> Array:
    # numpy leaves a file open that it finds damaged, if it opened it itself.
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        names = loaded.files
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            raise InvalidInput(f"{path}: --array must name one of {', '.join(names)}, got {name}")
        array: Array = loaded[name]
        return array
