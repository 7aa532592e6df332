"""A data set, and the rule that splits it. numpy only.

Every draw is keyed: it depends on the seed, its purpose and its epoch, and on nothing that happened before,
so that any process at any time draws the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from bll.choices import Augmentation
from bll.config import DataConfig
from bll.data.mapped import taken
from bll.errors import DataError, InvalidConfig, Violation

MAX_CLASSES = 65_536
MAX_NAME_LENGTH = 100
"""Characters of a class name."""


@dataclass(frozen=True)
class Split:
    """Inputs and targets, row by row."""

    inputs: NDArray[np.uint8] | NDArray[np.float32]
    """uint8 images or float32 images [rows, C, H, W], float32 sequences [rows, T, F], or float32 vectors [rows, F];
    `MappedRows` in their place where a server keeps the data set on its disk."""
    targets: NDArray[np.int64]
    """Class of each row, [rows], of each position, [rows, T], or of each pixel, [rows, H, W]."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Dataset:
    """A named data set, split for one run."""

    name: str
    train: Split
    validation: Split
    test: Split
    """No rows only where a user's file has none."""
    class_names: tuple[str, ...]
    digest: str
    """SHA-256 of the content before the split, in hex: the same for every seed and every way the content is stored."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.train.inputs.shape[1:]

    @property
    def target_shape(self) -> tuple[int, ...]:
        return self.train.targets.shape[1:]


@dataclass(frozen=True)
class DataInfo:
    """What `load` would return, without its arrays."""

    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    train_rows: int
    validation_rows: int
    test_rows: int
    digest: str
    is_image: bool
    target_shape: tuple[int, ...]
    """() = one class a row; else its positions, (T,), or pixels, (H, W)."""


@dataclass(frozen=True)
class Summary:
    """What is known of a data set as it is stored, without its rows."""

    input_shape: tuple[int, ...]
    rows: int
    test_rows: int
    class_names: tuple[str, ...]
    digest: str
    target_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Content:
    """A data set as it is stored: before validation rows are set aside."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    digest: str

    def summary(self) -> Summary:
        inputs, targets = (array.shape[1:] for array in (self.train.inputs, self.train.targets))
        return Summary(inputs, len(self.train), len(self.test), self.class_names, self.digest, targets)


class Draw(IntEnum):
    """What a keyed permutation is for: two purposes never share their numbers."""

    EPOCH = 0
    VALIDATION = 1
    TEST = 2
    LABEL_NOISE = 3


def permutation(rows: int, seed: int, purpose: Draw, number: int = 0) -> NDArray[np.int64]:
    """The order of `rows` rows that (seed, purpose, number) stands for.

    Sorts a Philox stream's raw words rather than calling `Generator.permutation`, whose algorithm numpy may change
    from one release to the next; a bit generator's stream is promised to stay.
    """
    words = np.random.Philox(key=_key(seed, purpose, number)).random_raw(rows)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def _key(seed: int, purpose: Draw, number: int) -> int:
    return seed | (purpose << 32 | number) << 64


def split_rows(config: DataConfig, rows: int) -> tuple[int, int]:
    """Rows for training and rows for validation, out of `rows`. Raises InvalidConfig when there are too few."""
    validation = config.validation_rows or max(1, rows // 10)
    if validation >= rows:
        raise _invalid(
            "validation_rows", f"must leave at least 1 of the {rows} training rows of '{config.name}', got {validation}"
        )
    left = rows - validation
    if config.train_rows > left:
        raise _invalid(
            "train_rows",
            f"must be at most {left} ({rows} rows of '{config.name}' less {validation} for validation), "
            f"got {config.train_rows}",
        )
    return config.train_rows or left, validation


def split(content: Content, config: DataConfig, seed: int) -> Dataset:
    """`content` with validation rows set aside: the first of a seeded permutation; the next are for training."""
    train_rows, validation_rows = split_rows(config, len(content.train))
    check_augmentation(config, content.train.inputs.shape[1:], content.train.targets.shape[1:])
    order = permutation(len(content.train), seed, Draw.VALIDATION)
    train = take(content.train, order[validation_rows : validation_rows + train_rows])
    return Dataset(
        name=config.name,
        train=_with_label_noise(train, config.label_noise, len(content.class_names), seed),
        validation=take(content.train, order[:validation_rows]),
        test=content.test,
        class_names=content.class_names,
        digest=content.digest,
    )


def _with_label_noise(rows: Split, fraction: float, num_classes: int, seed: int) -> Split:
    """`rows` with that fraction of their labels, of every position alike, replaced by another class, evenly drawn."""
    if not fraction:
        return rows
    targets = rows.targets.flatten()
    changed = permutation(len(targets), seed, Draw.LABEL_NOISE)[: round(fraction * len(targets))]
    # A step of 1 to C - 1 around the circle of classes; the remainder of 64 random bits is as good as even.
    words = np.random.Philox(key=_key(seed, Draw.LABEL_NOISE, 1)).random_raw(len(changed))
    steps = 1 + (words % np.uint64(num_classes - 1)).astype(np.int64)
    targets[changed] = (targets[changed] + steps) % num_classes
    return Split(rows.inputs, targets.reshape(rows.targets.shape))


def check_augmentation(config: DataConfig, input_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> None:
    """Raise InvalidConfig where rows are to be augmented that are no images, or whose targets would have to follow."""
    if config.augmentation is Augmentation.NONE:
        return
    if len(input_shape) != 3:
        why = f"rows of shape {list(input_shape)}, which are no images"
    elif target_shape:
        why = f"targets of shape {list(target_shape)}, which would not move with their pixels"
    else:
        return
    raise _invalid("augmentation", f"must be 'none' for {why}, got '{config.augmentation}'")


def take(rows: Split, indices: NDArray[np.int64]) -> Split:
    """The rows at `indices`, copied; those that are on the disk stay there."""
    return Split(taken(rows.inputs, indices), rows.targets[indices])


def class_name(name: str, what: str) -> str:
    """`name`, if it can be a class's name. Raises DataError, in the name of `what`."""
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise DataError(
            f"{what}: a class name must have 1 to {MAX_NAME_LENGTH} printable characters, "
            f"got {name[:MAX_NAME_LENGTH]!r}"
        )
    return name


def content_digest(arrays: Mapping[str, Split], class_names: Sequence[str]) -> str:
    """SHA-256 over names, types, shapes and little-endian values of `arrays`, and the class names."""
    digest = hashlib.sha256(repr(tuple(class_names)).encode())
    for name, rows in arrays.items():
        for array in (rows.inputs, rows.targets):
            stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{name} {stored.dtype.str} {stored.shape}".encode())
            digest.update(stored.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _invalid(field: str, description: str) -> InvalidConfig:
    return InvalidConfig([Violation(f"data.{field}", description)])
