"""CIFAR-10's archive and its unpacked files: one digest, nothing taken on trust. The archives are small ones."""

import gzip
import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bll.config import DataConfig
from bll.data import cifar, describe
from bll.data.published import Download
from bll.errors import DataError

reuse_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

ARCHIVE = cifar.CIFAR_10.archive.name
ROWS = (2, 2, 1, 1, 2, 2)
NAMES = [file.name for file in cifar.CIFAR_10.files]
META = (f"{cifar.FOLDER}/batches.meta.txt", "\n".join(cifar.CIFAR_10.class_names).encode())


def records(labels: list[int]) -> bytes:
    """Records whose pixels hold their label in red, 100 in green, and the column in blue."""
    images = np.zeros((len(labels), 3, 32, 32), np.uint8)
    images[:, 0] = np.reshape(labels, (-1, 1, 1))
    images[:, 1] = 100
    images[:, 2] = np.arange(32)
    return b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))


CONTENTS = [records([(i + row) % 10 for row in range(rows)]) for i, rows in enumerate(ROWS)]
BATCHES = {f"{cifar.FOLDER}/{name}": content for name, content in zip(NAMES, CONTENTS, strict=True)}


def pack(members: list[tuple[str, bytes] | tarfile.TarInfo], tail: bytes = b"") -> bytes:
    """A `.tar.gz` of plain files, and of members as they are given."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return gzip.compress(stream.getvalue() + tail, 1, mtime=0)


def folder(name: str = cifar.FOLDER, kind: bytes = tarfile.DIRTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = pack([folder(), *BATCHES.items(), META])


def known(archive: bytes) -> cifar.BinarySet:
    """The set whose published archive is `archive`, of the files in `CONTENTS`."""
    files = [
        cifar.File(name, rows, hashlib.md5(content).hexdigest())
        for name, rows, content in zip(NAMES, ROWS, CONTENTS, strict=True)
    ]
    download = Download(ARCHIVE, hashlib.sha256(archive).hexdigest(), len(archive))
    return replace(cifar.CIFAR_10, name="tiny", archive=download, files=tuple(files))


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BLL_OFFLINE", "1")
    monkeypatch.delenv("BLL_DATASETS_DIR", raising=False)


def put(root: Path, archive: bytes = GOOD) -> Path:
    path = root / "tiny" / ARCHIVE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive)
    return path


def unpack(directory: Path, contents: list[bytes] = CONTENTS) -> Path:
    directory.mkdir(parents=True)
    for name, content in zip(NAMES, contents, strict=True):
        (directory / name).write_bytes(content)
    return directory


def test_records_become_channel_first_images_in_the_order_of_the_files(tmp_path: Path) -> None:
    shuffled = pack([META, folder(), *reversed(BATCHES.items())])
    put(tmp_path, shuffled)
    content = known(shuffled).read(tmp_path)
    assert content.train.targets.tolist() == [0, 1, 1, 2, 2, 3, 4, 5]
    assert content.test.targets.tolist() == [5, 6]
    assert content.train.targets.dtype == np.int64
    assert content.train.inputs.shape == (8, 3, 32, 32)
    assert content.train.inputs.dtype == np.uint8
    assert content.train.inputs[7, :, 3, 9].tolist() == [5, 100, 9]
    assert content.class_names[6] == "frog"


def test_archive_and_unpacked_files_are_one_set_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "archive")
    unpack(tmp_path / "flat" / "tiny")
    unpack(tmp_path / "as tar leaves them" / "tiny" / cifar.FOLDER)
    monkeypatch.setenv("BLL_DATASETS_DIR", str(tmp_path / "flat"))
    source = known(GOOD)
    roots = [tmp_path / "archive", tmp_path / "as tar leaves them", tmp_path / "empty", None]
    summaries = [source.summary(root) for root in roots]
    contents = [source.read(root) for root in roots]
    assert summaries == [content.summary() for content in contents]
    assert len(set(summaries)) == 1
    assert (summaries[0].rows, summaries[0].test_rows, summaries[0].input_shape) == (8, 2, (3, 32, 32))
    for content in contents:
        np.testing.assert_array_equal(content.train.inputs, contents[0].train.inputs)


def test_unpacked_files_of_the_users_own_are_taken_and_told_apart(tmp_path: Path) -> None:
    unpack(tmp_path / "tiny", [*CONTENTS[:-1], records([9, 9])])
    source = known(GOOD)
    content = source.read(tmp_path)
    assert content.test.targets.tolist() == [9, 9]
    assert content.digest == source.summary(tmp_path).digest
    assert content.digest != source.archive.sha256


def test_what_is_still_to_be_downloaded_is_described_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=rf"cifar-10: not found .* BLL_OFFLINE .* put {ARCHIVE} into {tmp_path}"):
        describe(DataConfig(name="cifar-10"), 0, tmp_path)
    monkeypatch.setenv("BLL_OFFLINE", "0")
    info = describe(DataConfig(name="cifar-10"), 0, tmp_path)
    assert (info.train_rows, info.validation_rows, info.test_rows) == (45_000, 5_000, 10_000)
    assert (info.input_shape, info.is_image, len(info.class_names)) == ((3, 32, 32), True, 10)
    put(tmp_path)
    assert known(GOOD).summary(tmp_path / "nowhere") == known(GOOD).summary(tmp_path)


@pytest.mark.parametrize("ask", [cifar.BinarySet.read, cifar.BinarySet.summary])
def test_another_archive_is_refused_by_its_digest(
    tmp_path: Path, ask: Callable[[cifar.BinarySet, Path], object]
) -> None:
    path = put(tmp_path, GOOD[:-1])
    with pytest.raises(DataError) as caught:
        ask(known(GOOD), tmp_path)
    for part in (str(path), hashlib.sha256(GOOD).hexdigest(), hashlib.sha256(GOOD[:-1]).hexdigest()):
        assert part in str(caught.value)


FIRST = f"{cifar.FOLDER}/{NAMES[0]}"
REST = list(BATCHES.items())[1:]


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        (REST, f"must hold {FIRST}"),
        ([*BATCHES.items(), (FIRST, CONTENTS[0])], "data_batch_1.bin': must be one of .*, once"),
        ([(f"/{FIRST}", CONTENTS[0]), *REST], "'/cifar-10-batches-bin/data_batch_1.bin': must be one of"),
        ([(f"../{FIRST}", CONTENTS[0]), *REST], "must be one of"),
        ([("etc/passwd", b""), *BATCHES.items()], "'etc/passwd': must be one of"),
        ([folder(FIRST, tarfile.SYMTYPE, "/etc/passwd"), *REST], "data_batch_1.bin': must be a plain file"),
        ([folder(FIRST, tarfile.LNKTYPE, "x"), *REST], "must be a plain file"),
        ([folder(FIRST, tarfile.CHRTYPE), *REST], "must be a plain file"),
        ([folder(FIRST, tarfile.FIFOTYPE), *REST], "must be a plain file"),
        ([folder(FIRST), *REST], "must be a plain file"),
        (
            [folder(kind=tarfile.SYMTYPE, target="/"), *BATCHES.items()],
            "'cifar-10-batches-bin': must be a plain folder",
        ),
        ([(FIRST, CONTENTS[0] + b"\0"), *REST], "must have 6146 bytes, got 6147"),
        ([(FIRST, b""), *REST], "must have 6146 bytes, got 0"),
        ([(FIRST, records([3, 10])), *REST], "labels must be below 10, got 10"),
    ],
)
def test_archives_that_hold_something_else_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo], rule: str
) -> None:
    archive = pack(members)
    path = put(tmp_path, archive)
    with pytest.raises(DataError, match=f"^{path}: .*{rule}"):
        known(archive).read(tmp_path)


@pytest.mark.parametrize("name", ["x" * (32 << 20), "batches.meta.txt"])
def test_a_bomb_costs_little_memory(tmp_path: Path, name: str) -> None:
    archive = pack([(f"{cifar.FOLDER}/{name}", bytes(32 << 20))])
    put(tmp_path, archive)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="must unpack to at most"):
            known(archive).read(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size_bytes", [0, 3073, 6147])
def test_unpacked_files_of_another_size_are_refused(tmp_path: Path, size_bytes: int) -> None:
    unpack(tmp_path / "tiny", [bytes(size_bytes), *CONTENTS[1:]])
    rule = f"must hold 2 records of 3073 bytes, 6146 bytes, got {size_bytes}"
    for ask in (known(GOOD).read, known(GOOD).summary):
        with pytest.raises(DataError, match=f"{NAMES[0]}: {rule}"):
            ask(tmp_path)


def refused_or_valid(source: cifar.BinarySet, root: Path) -> None:
    try:
        content = source.read(root)
    except DataError as error:
        message = str(error)
    else:
        message = f"{root}: read"
        assert content.train.inputs.shape == (8, 3, 32, 32)
        assert content.train.targets.max() < 10
    assert message.startswith(str(root))


@given(cut=st.integers(0, len(GOOD)))
@reuse_tmp_path
def test_truncated_archives_are_refused(tmp_path: Path, cut: int) -> None:
    put(tmp_path, GOOD[:cut])
    refused_or_valid(known(GOOD[:cut]), tmp_path)


@given(edits=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@reuse_tmp_path
def test_mutated_archives_are_refused_or_read_to_valid_rows(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    archive = bytearray(GOOD)
    for position, value in edits:
        archive[position] = value
    put(tmp_path, bytes(archive))
    refused_or_valid(known(bytes(archive)), tmp_path)


@given(
    edits=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=3),
    mended=st.booleans(),
)
@reuse_tmp_path
def test_mutated_headers_are_refused_or_read_to_valid_rows(
    tmp_path: Path, edits: list[tuple[int, int, int]], mended: bool
) -> None:
    unpacked = bytearray(gzip.decompress(GOOD))
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        starts = [member.offset for member in archive]
    for member, position, value in edits:
        start = starts[member % len(starts)]
        unpacked[start + position] = value
        if mended:  # so that what the header says is looked at
            header = unpacked[start : start + 512]
            total = sum(header[:148]) + 8 * 0x20 + sum(header[156:])
            unpacked[start + 148 : start + 156] = b"%06o\0 " % total
    packed = gzip.compress(bytes(unpacked), 1, mtime=0)
    put(tmp_path, packed)
    refused_or_valid(known(packed), tmp_path)


@given(content=st.binary(max_size=64) | st.integers(0, 6200).map(bytes), file=st.integers(0, 5))
@reuse_tmp_path
def test_any_unpacked_file_is_refused_or_read_to_valid_rows(tmp_path: Path, content: bytes, file: int) -> None:
    directory = tmp_path / "tiny"
    if not directory.exists():
        unpack(directory)
    for name, good in zip(NAMES, CONTENTS, strict=True):
        (directory / name).write_bytes(good)
    (directory / NAMES[file]).write_bytes(content)
    refused_or_valid(known(GOOD), tmp_path)
