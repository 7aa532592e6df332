"""The images made here against a painter that goes pixel by pixel, and that they stay as they are."""

from __future__ import annotations

import numpy as np

from bll.config import DataConfig
from bll.data import describe, load, shapes
from bll.data.shapes import NOISE, SHADE, SIDE, Scenes


def inside(scene: Scenes, b: int, k: int, row: int, column: int) -> bool:
    y, x, r = row - int(scene.row_BK[b, k]), column - int(scene.column_BK[b, k]), int(scene.radius_BK[b, k])
    across, along = (abs(x), abs(y)) if scene.upright_BK[b, k] else (abs(y), abs(x))
    return {
        1: x * x + y * y <= r * r,
        2: max(abs(x), abs(y)) <= r,
        3: abs(y) <= r and abs(x) <= (y + r) / 2,
        4: along <= r and across <= r / 3,
    }[int(scene.kind_BK[b, k])]


def test_every_pixel_has_the_class_and_level_of_the_topmost_shape_over_it() -> None:
    content, scene = shapes.read(), shapes.scenes(7_000)
    assert (content.train.inputs.shape, content.test.inputs.shape) == ((6_000, 1, 32, 32), (1_000, 1, 32, 32))
    for b in [*range(12), 6_000]:
        rows, index = (content.test, b - 6_000) if b >= 6_000 else (content.train, b)
        for row, column in np.ndindex(SIDE, SIDE):
            label, level = 0, int(scene.background_B[b])
            for k in range(scene.count_B[b]):
                if inside(scene, b, k, row, column):
                    label, level = int(scene.kind_BK[b, k]), int(scene.level_BK[b, k])
            assert rows.targets[index, row, column] == label
            value = int(rows.inputs[index, 0, row, column])
            assert max(0, level - NOISE - SHADE / 2 - 1) <= value <= min(255, level + NOISE + SHADE / 2)


def test_scenes_are_drawn_from_their_whole_ranges() -> None:
    scene = shapes.scenes(7_000)
    assert np.bincount(scene.count_B).min(initial=9_999, where=np.arange(5) > 0) > 1_600
    assert np.bincount(scene.kind_BK.ravel())[1:].min() > 6_600
    for values, low, high in ((scene.row_BK, 4, 27), (scene.column_BK, 4, 27), (scene.radius_BK, 4, 9)):
        assert (values.min(), values.max()) == (low, high)
    assert np.abs(scene.level_BK - scene.background_B[:, None]).min() == 64
    assert (scene.level_BK.min(), scene.level_BK.max()) == (0, 255)
    noise = shapes.noise_of(100)
    assert (noise.min(), noise.max()) == (-NOISE, NOISE)
    assert abs(noise.mean()) < 0.5


def test_no_image_is_there_twice_and_every_class_is_common() -> None:
    content = shapes.read()
    images = np.concatenate([content.train.inputs, content.test.inputs])
    assert len({image.tobytes() for image in images}) == 7_000
    for rows in (content.train, content.test):
        assert (np.bincount(rows.targets.ravel()) / rows.targets.size).min() > 0.03


def test_all_seeds_share_one_content_and_it_is_described_as_it_is_loaded() -> None:
    config = DataConfig(name="shapes", train_rows=10)
    info, dataset = describe(config, 0), load(config, 1)
    assert info.digest == dataset.digest
    assert info.digest.startswith("20432a41196cea26")
    assert info.input_shape == dataset.input_shape == (1, 32, 32)
    assert info.target_shape == dataset.target_shape == (32, 32)
    assert info.class_names == ("background", "disc", "square", "triangle", "bar")
    assert info.is_image
