"""Epoch order, scaling and statistics."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bll.data import Split, as_float, epoch_order, statistics


@given(rows=st.integers(1, 300), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 100_000))
def test_an_epoch_reads_every_row_once(rows: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, seed, epoch)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(rows))


def test_seed_and_epoch_each_change_the_order() -> None:
    orders = [epoch_order(100, seed, epoch).tolist() for seed, epoch in [(0, 0), (0, 1), (1, 0), (2**63 - 1, 0)]]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_the_same_in_another_process() -> None:
    code = "from bll.data import epoch_order; print(epoch_order(1000, 2**63 - 1, 99_999).tolist())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == str(epoch_order(1000, 2**63 - 1, 99_999).tolist())


def test_the_order_stays_what_it_was_when_this_was_written() -> None:
    assert epoch_order(10, 42, 3).tolist() == [1, 6, 3, 4, 5, 9, 2, 8, 0, 7]


def test_bytes_become_fractions_and_floats_pass_uncopied() -> None:
    scaled = as_float(np.array([[0, 51, 255]], np.uint8))
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, np.array([[0, 0.2, 1]], np.float32))
    inputs = np.ones((2, 3), np.float32)
    assert as_float(inputs) is inputs


@pytest.mark.parametrize("shape", [(50, 1, 5, 4), (50, 3, 5, 4), (5000, 1, 40, 40)])
def test_byte_images_have_the_statistics_of_their_scaled_channels(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean, std = statistics(Split(images, np.zeros(shape[0], np.int64)))
    scaled = images / 255
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((40, 7), (0,)), ((9000, 600), (0,)), ((40, 3, 5, 4), (0, 2, 3)), ((40, 5, 7), (0, 1)), ((300, 128, 128), (0, 1))],
)
def test_float_inputs_have_the_statistics_of_their_features_or_channels(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    inputs = np.random.default_rng(0).normal(1000, 0.5, shape).astype(np.float32)
    mean, std = statistics(Split(inputs, np.zeros(shape[0], np.int64)))
    np.testing.assert_allclose(mean, inputs.mean(axis=axes, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(std, inputs.std(axis=axes, dtype=np.float64), rtol=1e-6)


def test_a_constant_feature_is_divided_by_one() -> None:
    inputs = np.array([[0, 0.1, 1e-40, 3e38, 1e-5], [0, 0.1, 2e-40, 3e38, 2e-5]], np.float32)
    mean, std = statistics(Split(inputs, np.zeros(2, np.int64)))
    assert std.tolist()[:4] == [1, 1, 1, 1]
    assert std[4] == pytest.approx(5e-6)
    assert np.isfinite((inputs - mean) / std).all()


def test_constant_images_are_divided_by_one() -> None:
    _, std = statistics(Split(np.full((3, 2, 4, 4), 7, np.uint8), np.zeros(3, np.int64)))
    assert std.tolist() == [1, 1]
