"""A user's folder of images is read without trust: every broken rule is a DataError that names file, rule and value."""

import errno
import io
import os
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bll.config import DataConfig
from bll.data import describe, images, load
from bll.errors import DataError, InvalidConfig

reuse_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def encoded(level: int = 0, size: tuple[int, int] = (5, 4), mode: str = "RGB", form: str = "PNG") -> bytes:
    """An image of width x height pixels, all of one value."""
    stream = io.BytesIO()
    bands = len(Image.new(mode, (1, 1)).getbands())
    Image.new(mode, size, level if bands == 1 else (level,) * bands).save(stream, form)
    return stream.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


GOOD = {"cat/1.png": encoded(1), "cat/2.png": encoded(2), "dog/1.png": encoded(3)}


def test_folders_are_classes_and_rows_follow_the_sorted_names(tmp_path: Path) -> None:
    names = {"b/2.png": 21, "b/10.png": 10, "B/z.jpg": 0, "a/é.png": 30, "a/Z.PNG": 29}
    content = images.read(write(tmp_path, {name: encoded(level) for name, level in names.items()}), "mine")
    assert content.class_names == ("B", "a", "b")
    assert content.train.targets.tolist() == [0, 1, 1, 2, 2]
    assert content.train.inputs[:, 0, 0, 0].tolist() == [0, 29, 30, 10, 21]
    assert content.train.inputs.dtype == np.uint8
    assert content.train.targets.dtype == np.int64
    assert len(content.test) == 0


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_grey_and_colour_become_channel_first_images(tmp_path: Path, mode: str, channels: int, form: str) -> None:
    file = encoded(128, (7, 3), mode, form)
    content = images.read(write(tmp_path, {"a/1": file, "b/1": file}), "mine")
    assert content.train.inputs.shape == (2, channels, 3, 7)
    assert content.train.inputs.flags.c_contiguous
    assert np.all(content.train.inputs == 128)


def test_channels_and_pixels_stay_where_they_are(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    content = images.read(write(tmp_path, GOOD | {"dog/2.png": stream.getvalue()}), "mine")
    np.testing.assert_array_equal(content.train.inputs[3], pixels.transpose(2, 0, 1))


def test_train_and_test_folders_give_their_rows(tmp_path: Path) -> None:
    files = {f"train/{name}": file for name, file in GOOD.items()} | {"test/dog/9.png": encoded(9)}
    content = images.read(write(tmp_path, files), "mine")
    assert content.class_names == ("cat", "dog")
    assert content.train.targets.tolist() == [0, 0, 1]
    assert content.test.targets.tolist() == [1]
    assert content.test.inputs[0, 0, 0, 0] == 9


def test_the_digest_is_of_what_is_decoded_and_of_the_classes(tmp_path: Path) -> None:
    def digest(files: dict[str, bytes]) -> str:
        return images.read(write(tmp_path / str(len(list(tmp_path.iterdir()))), files), "mine").digest

    renamed = {"cat/a": GOOD["cat/1.png"], "cat/b": GOOD["cat/2.png"], "dog/c": encoded(3)}
    other_class = {name.replace("dog", "fox"): file for name, file in GOOD.items()}
    assert digest(GOOD) == digest(renamed)
    assert len({digest(GOOD), digest(other_class), digest(GOOD | {"dog/1.png": encoded(4)})}) == 3


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        (GOOD | {"README.md": b"mine"}, "mine/README.md: must be a folder$"),
        (GOOD | {"dog/deep/1.png": encoded()}, "mine/dog/deep: must be a file$"),
        (GOOD | {"dog/notes.txt": b"notes"}, "mine/dog/notes.txt: must be a PNG or JPEG image$"),
        (GOOD | {"dog/2.gif": encoded(form="GIF", mode="L")}, "mine/dog/2.gif: must be a PNG or JPEG image$"),
        (GOOD | {"dog/empty.png": b""}, "mine/dog/empty.png: must be a PNG or JPEG image$"),
        (GOOD | {"dog/2.png": encoded()[:-28]}, "mine/dog/2.png: must be a readable image: "),
        (
            GOOD | {"dog/2.png": encoded(size=(4, 5))},
            "mine/dog/2.png: must have 5 x 4 pixels in mode RGB as mine/cat/1.png has, got 4 x 5 pixels in mode RGB$",
        ),
        (
            GOOD | {"dog/2.png": encoded(mode="L")},
            "mine/dog/2.png: must have 5 x 4 pixels in mode RGB as mine/cat/1.png has, got 5 x 4 pixels in mode L$",
        ),
        (GOOD | {"cat/0.png": encoded(mode="RGBA")}, r"mine/cat/0.png: must be grey .* or colour .*, got mode RGBA$"),
        (GOOD | {"cat/0.png": encoded(mode="P")}, r"mine/cat/0.png: must be grey .* or colour .*, got mode P$"),
        (GOOD | {"cat/0.png": encoded(mode="I;16")}, r"mine/cat/0.png: must be grey .*, got mode I;16$"),
        ({"cat/1.png": encoded()}, "mine: must hold folders of 2 to 65536 classes, got 1$"),
        (GOOD | {"a\nb/1.png": encoded()}, "mine: a class name must have 1 to 100 printable characters, got "),
        (
            {"train/a/1": encoded(), "train/b/1": encoded(), "test/c/1": encoded()},
            "mine/test/c: must be a class that has training images$",
        ),
        (
            {"train/a/1": encoded(), "train/b/1": encoded(), "test/b/1": encoded(size=(9, 9))},
            "mine/test/b/1: must have 5 x 4 pixels in mode RGB as mine/train/a/1 has, got 9 x 9 pixels",
        ),
    ],
)
def test_each_rule_is_named_with_file_and_value(tmp_path: Path, files: dict[str, bytes], rule: str) -> None:
    with pytest.raises(DataError, match=f"^{rule}"):
        images.read(write(tmp_path, files), "mine")


@pytest.mark.parametrize("empty", ["", "fox", "train/fox", "test"])
def test_empty_folders_are_refused(tmp_path: Path, empty: str) -> None:
    below = "train/" if "/" in empty or empty == "test" else ""
    if empty:
        write(tmp_path, {f"{below}{name}": file for name, file in GOOD.items()})
    for name in (empty, *(["test"] if below else [])):
        (tmp_path / name).mkdir(exist_ok=True, parents=True)
    with pytest.raises(DataError, match=r"must hold 1 to 1000000 (file|folder)s, got none$"):
        images.read(tmp_path, "mine")


def link(path: Path) -> None:
    path.symlink_to("/etc")


@pytest.mark.parametrize("name", ["fox", "dog/2.png"])
@pytest.mark.parametrize(("make", "rule"), [(link, "must be a .*, not a symbolic link"), (os.mkfifo, "must be a ")])
def test_links_and_devices_are_refused_by_name(
    tmp_path: Path, name: str, make: Callable[[Path], None], rule: str
) -> None:
    make(write(tmp_path, GOOD) / name)
    with pytest.raises(DataError, match=f"^mine/{name}: {rule}"):
        images.read(tmp_path, "mine")


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "dog" / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^mine/dog/\\udcff.png: must be a PNG or JPEG image") as caught:
        images.read(tmp_path, "mine")
    assert str(caught.value).isprintable()


def bomb(width: int, height: int) -> bytes:
    """A small PNG that decodes to width x height black pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("side", "rule"),
    [
        (4097, "must have at most 16777216 pixels, got 4097 x 4097 pixels"),
        (10_000, "must be a readable image: DecompressionBombWarning: "),
        (60_000, "must be a readable image: DecompressionBombError: "),
    ],
)
def test_a_bomb_costs_no_memory(tmp_path: Path, side: int, rule: str) -> None:
    write(tmp_path, GOOD | {"cat/0.png": bomb(side, side)})
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"^mine/cat/0.png: {rule}"):
            images.read(tmp_path, "mine")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_lower_limit_of_pillow_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19)
    with pytest.raises(DataError, match=r"^mine/cat/1.png: must be a readable image: DecompressionBombWarning"):
        images.read(write(tmp_path, GOOD), "mine")


@pytest.mark.parametrize(
    ("limit", "value", "rule"),
    [
        ("MAX_FILES", 2, "mine: must hold at most 2 images, "),
        ("MAX_FILES", 1, "mine: must hold 1 to 1 folders, got more"),
        ("MAX_FILE_BYTES", 50, "mine/cat/1.png: must be a file of at most 50 bytes, got"),
        ("MAX_BYTES", 179, "mine: all images together must decode to at most 179 bytes, got 180"),
    ],
)
def test_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, rule: str) -> None:
    monkeypatch.setattr(images, limit, value)
    with pytest.raises(DataError, match=f"^{rule}"):
        images.read(write(tmp_path, GOOD), "mine")


@given(content=st.binary(max_size=200))
@reuse_tmp_path
def test_random_bytes_raise_nothing_but_data_errors(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, GOOD | {"dog/2.png": content})
    with pytest.raises(DataError, match=r"^mine/dog/2.png"):
        images.read(tmp_path, "mine")


NOISE = np.random.default_rng(0).integers(256, size=(4, 5, 3), dtype=np.uint8)


@given(
    form=st.sampled_from(["PNG", "JPEG"]),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.booleans(),
)
@reuse_tmp_path
def test_mutated_images_are_refused_or_read_to_valid_rows(
    tmp_path: Path, form: str, edits: list[tuple[int, int]], cut: bool
) -> None:
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, form)
    content = bytearray(stream.getvalue())
    for position, value in edits:
        content[position % len(content)] = value
    if cut:
        del content[edits[0][0] % len(content) :]
    write(tmp_path, GOOD | {"dog/2": bytes(content)})
    try:
        rows = images.read(tmp_path, "mine").train
    except DataError as error:
        message = str(error)
    else:
        message = "mine: read"
        assert rows.inputs.shape == (4, 3, 4, 5)
    assert message.startswith("mine")


@pytest.mark.parametrize("path", ["../mine", "/etc", "sub/mine", "..", ".", "a\\b", "a\0"])
def test_with_a_root_the_path_must_be_a_plain_folder_name(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidConfig, match=r"data\.path: must be a plain folder name"):
        load(DataConfig(name="images", path=path), 0, tmp_path)


@pytest.mark.parametrize("path", ["absent", "file", "a" * 300, "\udfff"])
def test_a_missing_folder_is_a_data_error_by_the_users_name(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError) as caught:
        describe(DataConfig(name="images", path=path), 0, tmp_path)
    assert str(caught.value).startswith(path)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_may_not_be_read_is_named_without_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = write(tmp_path, GOOD) / "dog" / "1.png"
    opened = Image.open

    def refuse(path: Path, **kwargs: Any) -> Any:  # as the system does, to all but root
        if path == refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, **kwargs)

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match=r"^mine/dog/1.png: must be a readable image: PermissionError: Perm") as caught:
        images.read(tmp_path, "mine")
    assert str(tmp_path) not in str(caught.value)


def test_description_and_rows_agree(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": encoded(i, mode="L") for name in ("a", "b") for i in range(10)}
    write(tmp_path / "mine", files)
    config = DataConfig(name="images", path="mine")
    info, dataset = describe(config, 5, tmp_path), load(config, 5, tmp_path)
    assert info.digest == dataset.digest
    assert info.input_shape == dataset.input_shape == (1, 4, 5)
    assert (info.train_rows, info.validation_rows, info.test_rows) == (18, 2, 0)
    assert info.class_names == dataset.class_names == ("a", "b")
    assert info.is_image


def test_without_pillow_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = cast(Any, sys.modules)
    monkeypatch.setitem(modules, "PIL", None)
    with pytest.raises(DataError, match=r"pip install 'bll\[train\]'"):
        images.read(write(tmp_path, GOOD), "mine")
