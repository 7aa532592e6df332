"""A data set in another process: the same rows, and nobody else's writing."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from bll.data import Dataset, Split
from bll.executors.shared_data import SharedDataset


def made(test_rows: int = 2) -> Dataset:
    generator = np.random.default_rng(0)

    def split(rows: int) -> Split:
        inputs = generator.integers(0, 256, size=(rows, 1, 3, 3), dtype=np.uint8)
        return Split(inputs[:, :, ::-1], np.arange(rows))  # not contiguous

    return Dataset("made", split(7), split(3), split(test_rows), ("a", "b"), "digest")


def read_and_spoil(all_shared: list[SharedDataset], answers: Connection) -> None:
    datasets = [shared.dataset() for shared in all_shared]
    answers.send(datasets)
    for dataset in datasets:
        dataset.train.inputs[:] = 0


def same(found: Dataset, wanted: Dataset) -> bool:
    pairs = [(getattr(found, name), getattr(wanted, name)) for name in ("train", "validation", "test")]
    arrays = [pair for f, w in pairs for pair in ((f.inputs, w.inputs), (f.targets, w.targets))]
    words = (found.name, found.class_names, found.digest) == (wanted.name, wanted.class_names, wanted.digest)
    return words and all(f.dtype == w.dtype and np.array_equal(f, w) for f, w in arrays)


def test_processes_see_the_same_rows_and_none_sees_what_another_writes() -> None:
    context = multiprocessing.get_context("spawn")  # leaves the forkserver to those who preload it
    datasets = [made(), made(test_rows=0)]
    shared = [SharedDataset(dataset) for dataset in datasets]
    for _ in range(2):  # the second comes after the first has written
        answers, sender = context.Pipe(duplex=False)
        process = context.Process(target=read_and_spoil, args=(shared, sender))
        process.start()
        assert all(same(found, wanted) for found, wanted in zip(answers.recv(), datasets, strict=True))
        process.join()
        assert process.exitcode == 0


def test_the_memory_is_given_back_with_the_object() -> None:
    def held() -> list[str]:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [target for link in links if "bll-data" in (target := str(link.readlink()))]

    shared = SharedDataset(made())
    assert len(held()) == 1
    del shared
    assert held() == []
