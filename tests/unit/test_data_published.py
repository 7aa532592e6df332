"""Published sets: where they are looked for, what is accepted, and one digest however the files are packed."""

import gzip
import hashlib
import math
import struct
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bll.config import DataConfig
from bll.data import describe, load, mnist
from bll.errors import DataError


def encoded(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


CONTENTS = [
    encoded(np.arange(math.prod(shape), dtype=np.uint8).reshape(shape) % 10) for shape in [(20, 2, 2), (20,), (4, 2, 2)]
]
CONTENTS.append(encoded(np.arange(4, dtype=np.uint8)))
NAMES = [file.name for file in mnist.MNIST.files]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mnist.IdxSet:
    """A published set of 20 and 4 images of 2 x 2, in a world without network, cache or system directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BLL_OFFLINE", "1")
    monkeypatch.delenv("BLL_DATASETS_DIR", raising=False)
    files = [
        mnist.File(name, tuple(struct.unpack(f">{c[3]}I", c[4 : 4 + 4 * c[3]])), sha256(c), sha256(pack(c)), 0)
        for name, c in zip(NAMES, CONTENTS, strict=True)
    ]
    return replace(mnist.MNIST, name="tiny", files=(files[0], files[1], files[2], files[3]))


def pack(content: bytes, level: int = 9) -> bytes:
    return gzip.compress(content, level, mtime=0)


def write(directory: Path, suffix: str = ".gz", level: int = 9, contents: list[bytes] = CONTENTS) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in zip(NAMES, contents, strict=True):
        (directory / (name + suffix)).write_bytes(pack(content, level) if suffix else content)
    return directory


def test_the_digest_does_not_depend_on_the_packing(tiny: mnist.IdxSet, tmp_path: Path) -> None:
    roots = {"as published": (".gz", 9), "packed again": (".gz", 1), "unpacked": ("", 0)}
    for name, (suffix, level) in roots.items():
        write(tmp_path / name / "tiny", suffix, level)
    digests = {tiny.read(tmp_path / name).digest for name in roots}
    summaries = {tiny.summary(tmp_path / name).digest for name in roots}
    assert len(digests) == 1
    assert summaries == digests


def test_rows_are_one_channel_images_and_int64_classes(tiny: mnist.IdxSet, tmp_path: Path) -> None:
    write(tmp_path / "tiny")
    content = tiny.read(tmp_path)
    assert content.train.inputs.shape == (20, 1, 2, 2)
    assert content.train.inputs.dtype == np.uint8
    assert content.test.targets.tolist() == [0, 1, 2, 3]
    assert content.test.targets.dtype == np.int64


def test_root_comes_before_the_environment_before_the_cache_before_the_system(
    tiny: mnist.IdxSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = write(tmp_path / "system", "")
    source = replace(tiny, system_directory=system)
    monkeypatch.setenv("BLL_DATASETS_DIR", str(tmp_path / "env"))
    places = [tmp_path / "home/.cache/bll/tiny", tmp_path / "env/tiny", tmp_path / "root/tiny"]
    for label, place in enumerate(places, start=1):
        before = source.read(tmp_path / "root").train.targets[0]
        assert before == label - 1
        changed = [*CONTENTS]
        changed[1] = encoded(np.full(20, label, np.uint8))
        write(place, "", contents=changed)
        assert source.read(tmp_path / "root").train.targets[0] == label


def test_a_directory_that_lacks_a_file_is_passed_over(tiny: mnist.IdxSet, tmp_path: Path) -> None:
    (write(tmp_path / "tiny") / f"{NAMES[3]}.gz").unlink()
    with pytest.raises(DataError, match="not found on this machine"):
        tiny.read(tmp_path)


def test_a_damaged_archive_names_file_and_digests(tiny: mnist.IdxSet, tmp_path: Path) -> None:
    damaged = [*CONTENTS]
    damaged[2] = damaged[2][:-1] + b"\x07"
    path = write(tmp_path / "tiny", contents=damaged) / f"{NAMES[2]}.gz"
    for ask in (tiny.read, tiny.summary):
        with pytest.raises(DataError) as caught:
            ask(tmp_path)
        assert str(path) in str(caught.value)
        assert sha256(CONTENTS[2]) in str(caught.value)
        assert sha256(damaged[2]) in str(caught.value)


def test_a_truncated_archive_is_refused(tiny: mnist.IdxSet, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny") / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=f"{NAMES[0]}.gz: cannot be read: .*ended before"):
        tiny.summary(tmp_path)


def test_unpacked_files_of_the_users_own_are_taken_and_told_apart(tiny: mnist.IdxSet, tmp_path: Path) -> None:
    write(tmp_path / "a" / "tiny", "")
    own = [*CONTENTS]
    own[1] = encoded(np.zeros(20, np.uint8))
    write(tmp_path / "b" / "tiny", "", contents=own)
    assert tiny.read(tmp_path / "a").digest != tiny.read(tmp_path / "b").digest


@pytest.mark.parametrize(
    ("index", "values", "rule"),
    [
        (1, np.zeros(19, np.uint8), "must have one label for each of the 20 images, got 19"),
        (2, np.zeros((4, 3, 2), np.uint8), r"images must be \[2, 2\] as in training, got \[3, 2\]"),
        (3, np.full(4, 10, np.uint8), "labels must be below 10, got 10"),
        (0, np.zeros(20, np.uint8), "must have 3 dimensions, got 1"),
    ],
)
def test_unpacked_files_that_do_not_fit_are_refused(
    tiny: mnist.IdxSet, tmp_path: Path, index: int, values: np.ndarray, rule: str
) -> None:
    own = [*CONTENTS]
    own[index] = encoded(values)
    path = write(tmp_path / "tiny", "", contents=own) / NAMES[index]
    with pytest.raises(DataError, match=f"{path}: {rule}"):
        tiny.read(tmp_path)


def test_offline_says_how_to_get_the_files(tmp_path: Path, tiny: mnist.IdxSet, monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(mnist.FASHION_MNIST, system_directory=None)
    monkeypatch.setenv("BLL_OFFLINE", "1")
    for ask in (source.read, source.summary):
        with pytest.raises(DataError) as caught:
            ask(tmp_path)
        for part in ("BLL_OFFLINE", "dataset-fashion-mnist", f"{NAMES[0]}.gz", str(tmp_path / "fashion-mnist")):
            assert part in str(caught.value)


def test_what_is_still_to_be_downloaded_is_described_without_the_network(
    tiny: mnist.IdxSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLL_OFFLINE", "0")
    expected = tiny.summary(tmp_path)
    write(tmp_path / "tiny")
    assert tiny.summary(tmp_path) == expected
    assert tiny.read(tmp_path).digest == expected.digest


needs_fashion_mnist = pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz").is_file(),
    reason="needs Debian's package dataset-fashion-mnist",
)


@needs_fashion_mnist
def test_debians_fashion_mnist_is_the_published_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("BLL_DATASETS_DIR", raising=False)
    info = describe(DataConfig(), 3)
    dataset = load(DataConfig(), 3)
    assert dataset.digest == info.digest == "697249e9d1e87d6b2c6a738e828c890264cffecccb13840d472e3585751a5582"
    assert dataset.input_shape == info.input_shape == (1, 28, 28)
    assert (info.train_rows, info.validation_rows, info.test_rows) == (54_000, 6_000, 10_000)
    assert np.bincount(dataset.test.targets).tolist() == [1000] * 10
    labels = np.bincount(np.concatenate([dataset.train.targets, dataset.validation.targets]))
    assert labels.tolist() == [6000] * 10


@needs_fashion_mnist
def test_describing_fashion_mnist_takes_well_under_a_second() -> None:
    describe(DataConfig(), 0)
    started = time.process_time()
    describe(DataConfig(), 0)
    assert time.process_time() - started < 0.5
