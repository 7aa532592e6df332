"""The sequences made here: what they are, and that they stay so."""

from __future__ import annotations

import numpy as np

from bll.config import DataConfig
from bll.data import describe, load, reversal


def test_each_target_is_its_inputs_tokens_read_backwards() -> None:
    content = reversal.read()
    for rows in (content.train, content.test):
        assert rows.inputs.dtype == np.float32
        assert rows.targets.dtype == np.int64
        for inputs, targets in zip(rows.inputs[::97], rows.targets[::97], strict=True):
            tokens = [position.tolist().index(1.0) for position in inputs]
            assert inputs.sum() == len(tokens)
            assert targets.tolist() == tokens[::-1]
    assert content.train.inputs.shape == (20_000, 16, 16)
    assert content.test.targets.shape == (2_000, 16)


def test_no_sequence_is_there_twice_and_tokens_are_uniform() -> None:
    content = reversal.read()
    targets = np.concatenate([content.train.targets, content.test.targets])
    assert len(np.unique(targets, axis=0)) == len(targets)
    for position in targets.T:  # 1375 of each token expected, with a standard deviation of 36
        assert np.abs(np.bincount(position, minlength=16) - len(targets) / 16).max() < 5 * 36


def test_all_seeds_share_one_content_and_split_it_differently() -> None:
    one, other = (load(DataConfig(name="reversal", train_rows=10), seed) for seed in (0, 1))
    assert one.digest == other.digest == describe(DataConfig(name="reversal"), 7).digest
    assert one.digest.startswith("e90ef68cd53934e0")
    assert not np.array_equal(one.train.targets, other.train.targets)


def test_what_is_described_is_what_is_loaded() -> None:
    info, dataset = describe(DataConfig(name="reversal"), 0), load(DataConfig(name="reversal"), 0)
    assert info.input_shape == dataset.input_shape == (16, 16)
    assert info.target_shape == dataset.target_shape == (16,)
    assert (info.train_rows, info.validation_rows, info.test_rows) == (18_000, 2_000, 2_000)
    assert not info.is_image
