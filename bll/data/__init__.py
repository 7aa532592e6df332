"""Named data sets and users' files, split by a seed, in one form. Importing this loads numpy and nothing heavier.

fashion-mnist, mnist   published idx files: found on the machine, else downloaded    mnist.py
cifar-10               the published archive: found on the machine, else downloaded  cifar.py
digits                 comes with scikit-learn                                       digits.py
reversal               sequences and their reversal, made here                       reversal.py
shapes                 images with a class for each pixel, made here                 shapes.py
npz                    a user's own arrays                                           npz.py
images                 a user's own folder of PNG and JPEG files                     images.py
datasets/<id>          uploaded to a server, which has checked and keeps it          stored.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bll.choices import BUILT_IN_DATA
from bll.config import DataConfig
from bll.data import cifar, digits, images, mnist, npz, reversal, shapes, stored
from bll.data.batches import as_float, epoch_order, statistics
from bll.data.dataset import Content, DataInfo, Dataset, Split, Summary, check_augmentation, split, split_rows
from bll.errors import InvalidConfig, Violation

if TYPE_CHECKING:
    from bll.data.augmentation import augment

__all__ = [
    "NAMES",
    "DataInfo",
    "Dataset",
    "Split",
    "as_float",
    "augment",
    "describe",
    "epoch_order",
    "load",
    "statistics",
]

_PUBLISHED: dict[str, mnist.IdxSet | cifar.BinarySet] = {
    mnist.FASHION_MNIST.name: mnist.FASHION_MNIST,
    mnist.MNIST.name: mnist.MNIST,
    cifar.CIFAR_10.name: cifar.CIFAR_10,
}

NAMES = (*BUILT_IN_DATA, "npz", "images")
"""What `DataConfig.name` may be, beside `datasets/<id>`."""


def load(config: DataConfig, seed: int, root: Path | None = None) -> Dataset:
    """The data set, split by `seed`.

    `root` is searched first for named sets and is where they are downloaded to; a user's `.npz` or folder of images
    must then lie in it, and `config.path` be its plain name. Raises InvalidConfig for what the config asks wrongly
    (fields `data.*`), DataError for data that is missing, damaged or does not fit.
    """
    return split(_content(config, seed, root), config, seed)


def describe(config: DataConfig, seed: int, root: Path | None = None) -> DataInfo:
    """What `load` would return, digest included. Raises what `load` raises, as far as it can be known.

    Never downloads, and does not decode the published sets: their files are checked by digest. A user's file
    or folder is read in full, so that what is wrong with it is known before a job waits for it.
    """
    summary = _summary(config, seed, root)
    train_rows, validation_rows = split_rows(config, summary.rows)
    check_augmentation(config, summary.input_shape, summary.target_shape)
    return DataInfo(
        input_shape=summary.input_shape,
        class_names=summary.class_names,
        train_rows=train_rows,
        validation_rows=validation_rows,
        test_rows=summary.test_rows,
        digest=summary.digest,
        is_image=len(summary.input_shape) == 3,
        target_shape=summary.target_shape,
    )


def _summary(config: DataConfig, seed: int, root: Path | None) -> Summary:
    if published := _PUBLISHED.get(config.name):
        return published.summary(root)
    if config.name.startswith(stored.PREFIX):
        return stored.summary(config.name, root)
    return _content(config, seed, root).summary()


def _content(config: DataConfig, seed: int, root: Path | None) -> Content:
    if published := _PUBLISHED.get(config.name):
        return published.read(root)
    if config.name == "digits":
        return digits.read(seed)
    if config.name == "reversal":
        return reversal.read()
    if config.name == "shapes":
        return shapes.read()
    if config.name == "npz":
        return npz.read(_user_path(config.path, "file", root), config.path)
    if config.name == "images":
        return images.read(_user_path(config.path, "folder", root), config.path)
    if config.name.startswith(stored.PREFIX):
        return stored.read(config.name, root)
    raise InvalidConfig([Violation("data.name", f"must be one of {', '.join(NAMES)}, got {config.name!r}")])


def _user_path(path: str, kind: str, root: Path | None) -> Path:
    """Where `path` is; with a root, never outside it, whoever sent the path."""
    if "\0" in path or (root and (path.startswith(".") or "/" in path or "\\" in path)):
        raise InvalidConfig([Violation("data.path", f"must be a plain {kind} name, got {path!r}")])
    return root / path if root else Path(path)


def __getattr__(name: str) -> Any:
    if name == "augment":  # the one name here that needs torch
        from bll.data.augmentation import augment

        return augment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
