"""A user's own images: a folder of PNG and JPEG files, read without trust. Imports Pillow when read.

The folder holds one folder for each class; or `train` and `test`, and nothing else, each with the class folders in it.
Classes are numbered in the sorted order of their folders' names; rows follow the classes, then the files' names.
All images have one size and are all grey (mode L) or all colour (mode RGB). Nothing is resized, no mode is converted,
and an orientation noted in a file is not applied. The folder itself may be a symbolic link, nothing in it may.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bll.data.dataset import MAX_CLASSES, Content, Split, class_name, content_digest
from bll.errors import DataError

MAX_FILES = 1_000_000
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 1 << 24
"""Of one image; where Pillow's own limit is lower, that holds."""
MAX_BYTES = 4 << 30
"""All images together, decoded."""

FORMATS = ("PNG", "JPEG")
CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True)
class _File:
    path: Path
    target: int
    label: str
    """Its name in messages: from the user's folder on, wherever that lies."""


@dataclass(frozen=True)
class _Form:
    """What one image has and all must share."""

    width: int
    height: int
    mode: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return CHANNELS[self.mode], self.height, self.width

    def __str__(self) -> str:
        return f"{self.width} x {self.height} pixels in mode {self.mode}"


def read(folder: Path, label: str) -> Content:
    """The folder's images as bytes, [rows, C, H, W].

    `label` is the folder's name in messages. Raises DataError naming file, rule and value.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images: are read with Pillow: pip install 'bll[train]'") from error
    try:
        if not folder.is_dir():
            raise DataError(f"{label}: must be a folder, but there is none")
        train_files, test_files, class_names = _files(folder, label)
    except OSError as error:  # its text would tell a remote user where the folder lies
        raise DataError(f"{label}: cannot be read: {error.strerror or type(error).__name__}") from error
    with warnings.catch_warnings():
        # Beyond its limit Pillow warns, and raises only at twice as many pixels.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        first = train_files[0]
        form, _ = _decode(first)
        total_bytes = (len(train_files) + len(test_files)) * math.prod(form.shape)
        if total_bytes > MAX_BYTES:
            raise DataError(f"{label}: all images together must decode to at most {MAX_BYTES} bytes, got {total_bytes}")
        train, test = _rows(train_files, form, first), _rows(test_files, form, first)
    digest = content_digest({"train": train, "test": test}, class_names)
    return Content(train, test, class_names, digest)


def _files(folder: Path, label: str) -> tuple[list[_File], list[_File], tuple[str, ...]]:
    """Files for training, files for testing, and the names of the classes."""
    has_test = _entries(folder, label, "folder") == ["test", "train"]
    train_folder, train_label = (folder / "train", f"{label}/train") if has_test else (folder, label)
    names = _entries(train_folder, train_label, "folder")
    if not 2 <= len(names) <= MAX_CLASSES:
        raise DataError(f"{train_label}: must hold folders of 2 to {MAX_CLASSES} classes, got {len(names)}")
    class_names = tuple(class_name(name, train_label) for name in names)
    train = _class_files(train_folder, train_label, class_names)
    test = _class_files(folder / "test", f"{label}/test", class_names) if has_test else []
    if len(train) + len(test) > MAX_FILES:
        raise DataError(f"{label}: must hold at most {MAX_FILES} images, got {len(train) + len(test)}")
    return train, test, class_names


def _class_files(folder: Path, label: str, class_names: tuple[str, ...]) -> list[_File]:
    """The files in the class folders of `folder`, in the order of their rows."""
    targets = {name: target for target, name in enumerate(class_names)}
    files: list[_File] = []
    for name in _entries(folder, label, "folder"):
        what = _below(label, name)
        if name not in targets:
            raise DataError(f"{what}: must be a class that has training images")
        files += [
            _File(folder / name / file_name, targets[name], _below(what, file_name))
            for file_name in _entries(folder / name, what, "file")
        ]
        if len(files) > MAX_FILES:
            raise DataError(f"{label}: must hold at most {MAX_FILES} images, but has more")
    return files


def _entries(folder: Path, label: str, kind: Literal["folder", "file"]) -> list[str]:
    """The sorted names of what is in `folder`, all of one kind."""
    names = []
    with os.scandir(folder) as entries:
        for entry in itertools.islice(entries, MAX_FILES + 1):
            if entry.is_symlink():
                raise DataError(f"{_below(label, entry.name)}: must be a {kind}, not a symbolic link")
            if not (entry.is_dir(follow_symlinks=False) if kind == "folder" else entry.is_file(follow_symlinks=False)):
                raise DataError(f"{_below(label, entry.name)}: must be a {kind}")
            names.append(entry.name)
    if not names or len(names) > MAX_FILES:
        raise DataError(f"{label}: must hold 1 to {MAX_FILES} {kind}s, got {'more' if names else 'none'}")
    return sorted(names)


def _below(label: str, name: str) -> str:
    """`name` below `label`, for messages: what cannot be printed is escaped."""
    return f"{label}/{repr(name)[1:-1][:100]}"


def _rows(files: list[_File], form: _Form, first: _File) -> Split:
    inputs = np.empty((len(files), *form.shape), dtype=np.uint8)
    for row, file in enumerate(files):
        found, inputs_CHW = _decode(file)
        if found != form:
            raise DataError(f"{file.label}: must have {form} as {first.label} has, got {found}")
        inputs[row] = inputs_CHW
    return Split(inputs, np.array([file.target for file in files], dtype=np.int64))


def _decode(file: _File) -> tuple[_Form, NDArray[np.uint8]]:
    """The image's form, and its pixels, [C, H, W]."""
    from PIL import Image, UnidentifiedImageError

    try:
        size_bytes = file.path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise DataError(f"{file.label}: must be a file of at most {MAX_FILE_BYTES} bytes, got {size_bytes}")
        with Image.open(file.path, formats=FORMATS) as image:
            if image.mode not in CHANNELS:
                raise DataError(f"{file.label}: must be grey (mode L) or colour (mode RGB), got mode {image.mode}")
            form = _Form(image.width, image.height, image.mode)
            if form.width * form.height > MAX_PIXELS:
                raise DataError(f"{file.label}: must have at most {MAX_PIXELS} pixels, got {form}")
            inputs_HWC = np.asarray(image).reshape(form.height, form.width, -1)
            return form, inputs_HWC.transpose(2, 0, 1)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{file.label}: must be a PNG or JPEG image") from error
    # Pillow lets through whatever the bytes provoke: OSError, SyntaxError, ValueError, struct.error, zlib.error, its
    # DecompressionBombError and warning, even MemoryError.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{file.label}: must be a readable image: {type(error).__name__}: {reason}") from error
