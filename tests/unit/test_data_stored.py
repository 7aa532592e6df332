"""A data set that a server keeps is read from its disk, row by row, and is the same as in memory."""

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bll.choices import BUILT_IN_DATA, ExecutorName
from bll.config import BlocksConfig, DataConfig, LatentConfig, NetworkConfig, TrainingConfig
from bll.data import NAMES, as_float, describe, epoch_order, load, npz, statistics, stored
from bll.data.mapped import MappedRows
from bll.errors import InvalidConfig
from bll.execution import ExecutorConfig
from bll.training import fit

ROWS = 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with `mine.npz`, and the same content as `datasets/mine`."""
    x = np.random.default_rng(0).normal(size=(ROWS, 5)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=np.arange(ROWS) % 3, x_test=x[:6], y_test=np.arange(6) % 3)
    folder = tmp_path / stored.FOLDER / "mine" / stored.CONTENT
    folder.mkdir(parents=True)
    stored.write(npz.read(tmp_path / "mine.npz", "mine"), folder)
    return tmp_path


STORED, FILE = DataConfig(name="datasets/mine"), DataConfig(name="npz", path="mine.npz")


def test_a_stored_data_set_is_split_as_the_file_that_it_came_from(root: Path) -> None:
    mapped, memory = load(STORED, 7, root), load(FILE, 7, root)
    for name in ("train", "validation", "test"):
        found, wanted = getattr(mapped, name), getattr(memory, name)
        assert isinstance(found.inputs, MappedRows)
        assert (found.inputs.shape, found.inputs.dtype) == (wanted.inputs.shape, wanted.inputs.dtype)
        np.testing.assert_array_equal(found.inputs[:], wanted.inputs)
        np.testing.assert_array_equal(found.inputs[np.array([3, 0])], wanted.inputs[[3, 0]])
        np.testing.assert_array_equal(found.targets, wanted.targets)
    for found, wanted in zip(statistics(mapped.train), statistics(memory.train), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert (mapped.class_names, mapped.digest) == (memory.class_names, memory.digest)
    assert describe(STORED, 7, root) == describe(FILE, 7, root)


def test_mapped_rows_are_the_same_in_another_process(root: Path) -> None:
    rows = load(STORED, 0, root).train.inputs
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(rows))[:], rows[:])
    np.testing.assert_array_equal(np.asarray(rows), rows[:])


@pytest.mark.parametrize("executor", [ExecutorName.SEQUENTIAL, ExecutorName.PROCESSES])
def test_training_from_the_disk_gives_the_weights_of_training_from_memory(root: Path, executor: ExecutorName) -> None:
    def prediction_of(data: DataConfig) -> dict[str, np.ndarray]:
        config = TrainingConfig(
            data=data,
            network=NetworkConfig(architecture="mlp", widths=(8, 8)),
            blocks=BlocksConfig(num_blocks=2),
            latent=LatentConfig(units=4, readout_units=8),
            executor=ExecutorConfig(name=executor),
            epochs=1,
            batch_size=8,
        )
        model = fit(config, data_root=root, run_dir=root / f"run-{data.path or 'stored'}")
        prediction: dict[str, np.ndarray] = model.predict(np.ones((3, 5), np.float32))
        return prediction

    mapped, memory = prediction_of(STORED), prediction_of(FILE)
    for name, values in memory.items():
        np.testing.assert_array_equal(mapped[name], values)


def test_reading_every_row_of_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    folder = tmp_path / stored.FOLDER / "large" / stored.CONTENT
    folder.mkdir(parents=True)
    small = npz.from_arrays({"x": np.zeros((2, 64, 64), np.uint8), "y": np.arange(2)}, "small")
    stored.write(small, folder)
    rows = 1 << 16
    large = np.lib.format.open_memmap(folder / "train_inputs.npy", "w+", np.uint8, (rows, 1, 64, 64))  # sparse: 256 MiB
    large.flush()
    np.save(folder / "train_targets.npy", np.arange(rows) % 2)
    del large
    tracemalloc.start()
    dataset = load(DataConfig(name="datasets/large"), 0, tmp_path)
    statistics(dataset.train)
    order = epoch_order(len(dataset.train), 0, 0)
    for start in range(0, len(order), 1024):
        as_float(dataset.train.inputs[order[start : start + 1024]])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < rows * 64 * 64 / 4


@pytest.mark.parametrize("name", ["datasets/none", "datasets/", "datasets/../mine", "datasets/Mine"])
def test_a_name_that_is_not_stored_is_refused_by_its_field(root: Path, name: str) -> None:
    for call in (load, describe):
        with pytest.raises(InvalidConfig, match=r"data\.name: must be datasets/\{id\}"):
            call(DataConfig(name=name), 0, root)
    with pytest.raises(InvalidConfig, match=r"data\.name"):
        load(STORED, 0, None)


@pytest.mark.parametrize("path", [stored.FOLDER, ".", ".."])
def test_what_is_stored_cannot_be_read_by_its_path(root: Path, path: str) -> None:
    with pytest.raises(InvalidConfig, match=r"data\.path"):
        load(DataConfig(name="images", path=path), 0, root)


def test_all_names_are_known() -> None:
    assert set(NAMES) == {*BUILT_IN_DATA, "npz", "images"}
