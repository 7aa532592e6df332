"""What turns stored rows into a network's batches: the order of an epoch, the scaling, the statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bll.data.dataset import Draw, Split, permutation

_CHUNK_VALUES = 1 << 22
"""Inputs are converted this many at a time: wider copies of all of them would cost several times their memory."""


def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which epoch `epoch` reads `rows` rows; the same in every process, on every machine."""
    return permutation(rows, seed, Draw.EPOCH, epoch)


def as_float(inputs: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Inputs as the network takes them: bytes as float32 in [0, 1]; float32 as it is, not copied."""
    if inputs.dtype == np.uint8:
        return np.divide(inputs, np.float32(255), dtype=np.float32)
    return inputs.astype(np.float32, copy=False)


def statistics(split: Split) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of the inputs after `as_float`: per channel of images, else per feature (which the
    positions of a sequence share).

    A feature that does not vary beyond float32's rounding gets 1 as its deviation, so that dividing by it is safe.
    """
    mean, variance = _byte_moments(split.inputs) if split.inputs.dtype == np.uint8 else _float_moments(split.inputs)
    std = np.sqrt(variance)
    # 1e-30 keeps the quotient of float32 inputs and deviation finite for features that are all but zero.
    std[std <= np.maximum(1e-6 * np.abs(mean), 1e-30)] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def _byte_moments(images_BCHW: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact moments from a count of each of the 256 values, with no float copy of the images."""
    channels = images_BCHW.shape[1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for chunk in _chunks(images_BCHW):
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[:, channel].reshape(-1), minlength=256)
    values = np.arange(256) / 255
    rows = counts.sum(axis=1)
    mean = (counts * values).sum(axis=1) / rows
    return mean, (counts * (values - mean[:, None]) ** 2).sum(axis=1) / rows


def _float_moments(inputs: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two passes in float64: a single pass loses small deviations beside a large mean."""
    axes = {2: (0,), 3: (0, 1), 4: (0, 2, 3)}[inputs.ndim]
    shape = (-1, 1, 1) if inputs.ndim == 4 else (-1,)
    count = math.prod(inputs.shape[axis] for axis in axes)
    mean = np.sum([chunk.sum(axis=axes, dtype=np.float64) for chunk in _chunks(inputs)], axis=0) / count
    centre = mean.reshape(shape)
    variance = np.sum([((chunk - centre) ** 2).sum(axis=axes) for chunk in _chunks(inputs)], axis=0) / count
    return mean, variance


def _chunks(inputs: NDArray[Any]) -> Iterator[NDArray[Any]]:
    rows = max(1, _CHUNK_VALUES * len(inputs) // inputs.size)
    for start in range(0, len(inputs), rows):
        yield inputs[start : start + rows]
