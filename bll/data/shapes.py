"""Grey images of discs, squares, triangles and bars, with a class for each pixel: made here, from a fixed seed.

Shapes are painted in order, the last on top. Sizes, places and levels are drawn, so that neither place nor brightness
tells a class; the image's light falls off to one side, and each pixel is noisy. All arithmetic is on whole numbers,
which come out the same everywhere.
Shapes of arrays: B images, K shapes of one image, H and W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bll.data.dataset import Content, Split, content_digest

SIDE = 32
TRAIN_ROWS = 6_000
TEST_ROWS = 1_000
CLASS_NAMES = ("background", "disc", "square", "triangle", "bar")
MAX_SHAPES = 4
NOISE = 24
"""Largest change of a pixel's level by noise."""
SHADE = 32
"""Largest fall of the light from corner to corner, in levels."""

_SEED = 0x5EED_0002
_CHUNK = 500
"""Images painted at a time: their arrays stay in the processor's cache."""


@dataclass(frozen=True)
class Scenes:
    """What is in images. Pixels are counted from the upper left corner."""

    count_B: NDArray[np.int64]
    """Shapes of each image, 1 to MAX_SHAPES; of each array below, the first so many are painted."""
    kind_BK: NDArray[np.int64]
    """1 to 4, as in CLASS_NAMES."""
    row_BK: NDArray[np.int64]
    column_BK: NDArray[np.int64]
    """The centre."""
    radius_BK: NDArray[np.int64]
    """Half the size, in pixels."""
    upright_BK: NDArray[np.bool_]
    """Of bars: whether they stand."""
    level_BK: NDArray[np.int64]
    """Grey level, 0 to 255, at least 64 from the background's."""
    background_B: NDArray[np.int64]
    slope_B2: NDArray[np.int64]
    """How much lighter it gets from top to bottom and from left to right, in levels, each within half of SHADE."""

    def __getitem__(self, rows: slice) -> Scenes:
        return Scenes(**{name: values[rows] for name, values in vars(self).items()})


def read() -> Content:
    """Images in bytes, [rows, 1, 32, 32], with the class of each pixel, [rows, 32, 32]."""
    rows = TRAIN_ROWS + TEST_ROWS
    drawn = scenes(rows)
    noise = noise_of(rows)
    images = np.empty((rows, 1, SIDE, SIDE), np.uint8)
    targets = np.empty((rows, SIDE, SIDE), np.int64)
    for start in range(0, rows, _CHUNK):
        part = slice(start, start + _CHUNK)
        levels_BHW, targets[part] = paint(drawn[part])
        images[part, 0] = np.clip(levels_BHW + noise[part], 0, 255)
    train = Split(images[:TRAIN_ROWS], targets[:TRAIN_ROWS])
    test = Split(images[TRAIN_ROWS:], targets[TRAIN_ROWS:])
    return Content(train, test, CLASS_NAMES, content_digest({"train": train, "test": test}, CLASS_NAMES))


def scenes(rows: int) -> Scenes:
    """The first `rows` scenes of the fixed sequence."""
    words = np.random.Philox(key=_SEED).random_raw((TRAIN_ROWS + TEST_ROWS) * (4 + 6 * MAX_SHAPES))
    columns = iter(words.reshape(TRAIN_ROWS + TEST_ROWS, -1)[:rows].T)

    def below(bound: int, number: int = 1) -> NDArray[np.int64]:
        """Numbers from 0, below `bound`, [rows, number]. The remainder of 64 random bits is as good as even."""
        drawn = np.stack([next(columns) for _ in range(number)], axis=1)
        return (drawn % np.uint64(bound)).astype(np.int64)

    background_B1 = below(256)
    return Scenes(
        count_B=1 + below(MAX_SHAPES)[:, 0],
        kind_BK=1 + below(len(CLASS_NAMES) - 1, MAX_SHAPES),
        row_BK=4 + below(SIDE - 8, MAX_SHAPES),
        column_BK=4 + below(SIDE - 8, MAX_SHAPES),
        radius_BK=4 + below(6, MAX_SHAPES),
        upright_BK=below(2, MAX_SHAPES) == 1,
        # A step of 64 to 192 around the circle of levels ends at least 64 away.
        level_BK=(background_B1 + 64 + below(129, MAX_SHAPES)) % 256,
        background_B=background_B1[:, 0],
        slope_B2=below(SHADE + 1, 2) - SHADE // 2,
    )


def noise_of(rows: int) -> NDArray[np.int16]:
    """Even noise from -NOISE to NOISE for the pixels of the first `rows` images, [rows, 32, 32]."""
    words = np.random.Philox(key=_SEED + 1).random_raw(rows * SIDE * SIDE // 8)
    of_bytes = words.astype("<u8").view(np.uint8).astype(np.int16)
    return (of_bytes * (2 * NOISE + 1) // 256 - NOISE).reshape(rows, SIDE, SIDE)


def paint(drawn: Scenes) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Level and class of each pixel, both [B, H, W], before noise."""
    down_H1, right_W = np.ogrid[:SIDE, :SIDE]
    slope = drawn.slope_B2[:, :, None, None]
    shade_BHW = (slope[:, 0] * (2 * down_H1 - SIDE + 1) + slope[:, 1] * (2 * right_W - SIDE + 1)) // (2 * SIDE)
    levels_BHW = np.broadcast_to(drawn.background_B[:, None, None], shade_BHW.shape).copy()
    targets_BHW = np.zeros(shade_BHW.shape, np.int64)
    for k in range(MAX_SHAPES):
        inside_BHW = _inside(drawn, k) & (k < drawn.count_B)[:, None, None]
        np.copyto(levels_BHW, drawn.level_BK[:, k, None, None], where=inside_BHW)
        np.copyto(targets_BHW, drawn.kind_BK[:, k, None, None], where=inside_BHW)
    return (levels_BHW + shade_BHW).astype(np.int16), targets_BHW


def _inside(drawn: Scenes, k: int) -> NDArray[np.bool_]:
    """Whether each pixel is in shape `k` of its image, [B, H, W]."""
    down_H1, right_W = np.ogrid[:SIDE, :SIDE]
    per_image = (slice(None), k, None, None)
    y_BH1 = (down_H1 - drawn.row_BK[per_image]).astype(np.int16)
    x_BW = (right_W - drawn.column_BK[per_image]).astype(np.int16)
    r_B = drawn.radius_BK[per_image].astype(np.int16)
    upright_B, kind_B = drawn.upright_BK[per_image], drawn.kind_BK[per_image]
    far_y_BH1, far_x_BW = np.abs(y_BH1), np.abs(x_BW)
    within_BHW = (far_y_BH1 <= r_B) & (far_x_BW <= r_B)
    disc_BHW = y_BH1**2 + x_BW**2 <= r_B**2
    triangle_BHW = 2 * far_x_BW <= y_BH1 + r_B  # its tip is up
    bar_BHW = 3 * np.where(upright_B, far_x_BW, far_y_BH1) <= r_B
    square_BHW = np.ones((1, 1, 1), np.bool_)
    shape_BHW = np.select([kind_B == kind for kind in (1, 2, 3)], [disc_BHW, square_BHW, triangle_BHW], bar_BHW)
    inside_BHW: NDArray[np.bool_] = within_BHW & shape_BHW
    return inside_BHW
