"""Sequences to be read backwards: made here, from a fixed seed, so that all runs learn from the same ones."""

from __future__ import annotations

import numpy as np

from bll.data.dataset import Content, Split, content_digest

POSITIONS = 16
VOCABULARY = 16
TRAIN_ROWS = 20_000
TEST_ROWS = 2_000

_SEED = 0x5EED_0001


def read() -> Content:
    """Random sequences of tokens, one-hot [rows, 16, 16], with the class of each position: the reversed tokens."""
    # 64 random bits are 16 tokens of 4 bits each. Raw words are what numpy promises to keep from release to release.
    words = np.random.Philox(key=_SEED).random_raw(TRAIN_ROWS + TEST_ROWS)
    shifts = np.arange(POSITIONS, dtype=np.uint64) * np.uint64(4)
    tokens = (words[:, None] >> shifts & np.uint64(VOCABULARY - 1)).astype(np.int64)
    inputs = np.eye(VOCABULARY, dtype=np.float32)[tokens]
    targets = np.ascontiguousarray(tokens[:, ::-1])
    train = Split(inputs[:TRAIN_ROWS], targets[:TRAIN_ROWS])
    test = Split(inputs[TRAIN_ROWS:], targets[TRAIN_ROWS:])
    class_names = tuple(f"{token:x}" for token in range(VOCABULARY))
    return Content(train, test, class_names, content_digest({"train": train, "test": test}, class_names))
