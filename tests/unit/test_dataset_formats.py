"""What strangers upload is read by rules: whatever its bytes are, it is a data set or a DataError that says why not."""

import gzip
import io
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bll.data.dataset import Content
from bll.errors import DataError
from bll_server.datasets.archives import unpack
from bll_server.datasets.formats import read
from bll_server.datasets.records import Format

X, Y = np.arange(24, dtype=np.float32).reshape(6, 4), np.arange(6) % 2
ROOM = 1 << 20


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in more.items():
        setattr(info, field, value)
    return info


def tar(files: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            archive.addfile(member(name, size=len(content)), io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return stream.getvalue()


def image(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (3, 2), value).save(stream, "PNG")
    return stream.getvalue()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


IMAGES = {"cat/a.png": image(1), "cat/b.png": image(2), "dog/a.png": image(3)}
IDX = {
    "train-images-idx3-ubyte": idx(np.arange(16, dtype=np.uint8).reshape(4, 2, 2)),
    "train-labels-idx1-ubyte.gz": gzip.compress(idx(np.array([0, 1, 2, 1], np.uint8))),
}
SOUND = {
    Format.NPZ: npz(x=X, y=Y),
    Format.NPY: tar({"x.npy": npy(X), "y.npy": npy(Y)}),
    Format.IDX: tar(IDX),
    Format.IMAGES: tar(IMAGES),
}


def reading(kind: Format, content: bytes, room: int = ROOM) -> Content:
    with tempfile.TemporaryDirectory() as folder:
        upload, scratch = Path(folder, "upload"), Path(folder, "scratch")
        upload.write_bytes(content)
        scratch.mkdir()
        found = read(kind, upload, scratch, room)
        assert {path.name for path in Path(folder).iterdir()} == {"upload", "scratch"}
        return found


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
@pytest.mark.parametrize("kind", [Format.NPY, Format.IDX, Format.IMAGES])
def test_a_tar_of_each_format_is_read(kind: Format, pack: Callable[[bytes], bytes]) -> None:
    content = reading(kind, pack(SOUND[kind]))
    rows = {Format.NPY: (6, 4), Format.IDX: (4, 1, 2, 2), Format.IMAGES: (3, 1, 2, 3)}[kind]
    assert content.train.inputs.shape == rows
    assert len(content.test) == 0


def test_arrays_are_the_same_data_set_as_npz_and_as_npy_files() -> None:
    assert reading(Format.NPY, SOUND[Format.NPY]).digest == reading(Format.NPZ, SOUND[Format.NPZ]).digest


def test_one_folder_round_everything_does_not_matter() -> None:
    wrapped = tar({f"./mine/{name}": content for name, content in IMAGES.items()}, member("./", tarfile.DIRTYPE))
    assert reading(Format.IMAGES, wrapped).digest == reading(Format.IMAGES, SOUND[Format.IMAGES]).digest


HOSTILE = {
    "an absolute path": (tar({"/etc/passwd": b"x"}), "'/etc/passwd': must be a path below"),
    "a path upwards": (tar({"cat/../../x": b"x"}), "must be a path below"),
    "a path with backslashes": (tar({"..\\x": b"x"}), "must be a path below"),
    "a symbolic link": (tar(IMAGES, member("dog/l", tarfile.SYMTYPE, linkname="/etc/passwd")), "must be a plain file"),
    "a hard link": (tar(IMAGES, member("dog/l", tarfile.LNKTYPE, linkname="/etc/passwd")), "must be a plain file"),
    "a character device": (tar(IMAGES, member("dog/null", tarfile.CHRTYPE)), "must be a plain file"),
    "a block device": (tar(IMAGES, member("dog/sda", tarfile.BLKTYPE)), "must be a plain file"),
    "a fifo": (tar(IMAGES, member("dog/fifo", tarfile.FIFOTYPE)), "must be a plain file"),
    "file and folder": (tar({"cat": b"x", "cat/a.png": b"x"}), "file and folder"),
    "a file twice": (tar({"cat/a": b"x", "./cat/a": b"x"}), "must not come twice"),
    "too deep": (tar({"/".join("abcde"): b"x"}), "at most 4 parts"),
    "a long name": (tar({"x" * 300: b"x"}), "255 bytes"),
    "no tar": (b"PK\x03\x04" * 400, "must be a readable .tar file"),
    "nothing": (b"", "must be a readable .tar file"),
    "a bomb": (gzip.compress(tar({"cat/a": bytes(ROOM), "dog/a": b"xx"})), "'dog/a': the content must be smaller"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused_by_member(tmp_path: Path, kind: str) -> None:
    content, why = HOSTILE[kind]
    (tmp_path / "upload").write_bytes(content)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scratch").mkdir()
    with pytest.raises(DataError, match=why):
        unpack(tmp_path / "upload", tmp_path / "in" / "scratch", ROOM)
    assert {path.name for path in tmp_path.iterdir()} == {"upload", "in"}
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["scratch"]


def test_a_size_that_only_its_header_has_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member("cat/a", size=1 << 50))
    (tmp_path / "upload").write_bytes(stream.getvalue())
    (tmp_path / "scratch").mkdir()
    with pytest.raises(DataError, match="must be smaller"):
        unpack(tmp_path / "upload", tmp_path / "scratch", ROOM)
    assert not any((tmp_path / "scratch").iterdir())


BROKEN = {
    "objects": (Format.NPY, tar({"x.npy": npy(X), "y.npy": npy(np.array([{}] * 6, object))}), "y: must not hold Py"),
    "a strange array": (Format.NPY, tar({"x.npy": npy(X), "z.npy": npy(Y)}), "must hold x and y"),
    "not finite": (Format.NPZ, npz(x=np.full((2, 3), np.nan), y=[0, 1]), "x: must hold finite .* row 0, 6 such in all"),
    "strange labels": (Format.IDX, tar(IDX | {"train-labels-idx1-ubyte.gz": b"x"}), "ubyte.gz: cannot be read"),
    "an idx file cut short": (
        Format.IDX,
        tar(IDX | {"train-images-idx3-ubyte": IDX["train-images-idx3-ubyte"][:-1]}),
        "the upload: train-images-idx3-ubyte: must hold 16 bytes",
    ),
    "idx labels alone": (Format.IDX, tar({"train-labels-idx1-ubyte": idx(np.zeros(4, np.uint8))}), "must hold x and y"),
    "another file": (Format.IDX, tar(IDX | {"README": b""}), "got 'README'"),
    "no image": (Format.IMAGES, tar(IMAGES | {"dog/b.png": b"x"}), "dog/b.png: must be a PNG or JPEG"),
    "one class": (Format.IMAGES, tar({"cat/a.png": image(1)}), "must be a folder"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_content_is_refused_by_member_and_rule(kind: str) -> None:
    form, content, why = BROKEN[kind]
    with pytest.raises(DataError, match=why) as caught:
        reading(form, content)
    assert str(caught.value).startswith("the upload")
    assert tempfile.gettempdir() not in str(caught.value)


@given(st.sampled_from(list(Format)), st.data())
@settings(max_examples=150)
def test_any_damage_is_refused_or_leaves_a_data_set(kind: Format, data: st.DataObject) -> None:
    content = bytearray(SOUND[kind])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    try:
        found = reading(kind, bytes(content[: end or None]))
    except DataError as error:
        message = str(error)
    else:
        message = "the upload is a data set"
        assert len(found.train.inputs) == len(found.train.targets) > 0
    assert message.startswith("the upload")


@given(st.sampled_from(list(Format)), st.binary(max_size=2000))
@settings(max_examples=50)
def test_any_bytes_are_refused(kind: Format, content: bytes) -> None:
    with pytest.raises(DataError):
        reading(kind, content)
