"""A user's .npz is read without trust: every broken rule is a DataError that names field, rule and value."""

import io
import pickle
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bll.choices import Augmentation
from bll.config import DataConfig
from bll.data import describe, load, npz
from bll.errors import DataError, InvalidConfig

reuse_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def save(path: Path, **arrays: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.savez(path, **arrays)
    return path


def labels(rows: int, classes: int = 2) -> np.ndarray:
    return np.arange(rows) % classes


def member(name: str, content: bytes, path: Path) -> Path:
    """A zip file with a good y and the raw bytes `content` as `name`."""
    y = io.BytesIO()
    np.lib.format.write_array(y, labels(4))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y.npy", y.getvalue())
        archive.writestr(name, content)
    return path


def header(shape: object, descr: object = "<f4") -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def refused_or_valid(path: Path) -> None:
    try:
        content = npz.read(path, "mine.npz")
    except DataError as error:
        message = str(error)
    else:
        message = "mine.npz: read"
        inputs, targets = content.train.inputs, content.train.targets
        assert inputs.ndim == {1: inputs.ndim, 2: 3, 3: 4}[targets.ndim]
        assert inputs.ndim in (2, 4) or targets.ndim == 2
        assert np.isfinite(inputs).all()
        assert len(inputs) == len(targets)
        assert set(targets.ravel().tolist()) == set(range(len(content.class_names)))
    assert message.startswith("mine.npz: ")


@pytest.mark.parametrize(
    ("x", "shape", "dtype"),
    [
        (np.zeros((4, 6, 5), np.uint8), (4, 1, 6, 5), np.uint8),
        (np.zeros((4, 6, 5, 1), np.uint8), (4, 1, 6, 5), np.uint8),
        (np.zeros((4, 6, 5, 3), np.float64), (4, 3, 6, 5), np.float32),
        (np.zeros((4, 7), np.float16), (4, 7), np.float32),
        (np.zeros((4, 7), np.uint8), (4, 7), np.float32),
        (np.zeros((4, 7), ">f8"), (4, 7), np.float32),
    ],
)
def test_layouts_become_channels_first_images_or_vectors(
    tmp_path: Path, x: np.ndarray, shape: tuple[int, ...], dtype: type
) -> None:
    content = npz.read(save(tmp_path / "a.npz", x=x, y=labels(4)), "a.npz")
    assert content.train.inputs.shape == shape
    assert content.train.inputs.dtype == dtype
    assert content.train.inputs.flags.c_contiguous
    assert content.train.targets.dtype == np.int64
    assert len(content.test) == 0


def test_channels_move_with_their_pixels(tmp_path: Path) -> None:
    x = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    content = npz.read(save(tmp_path / "a.npz", x=x, y=labels(2)), "a.npz")
    np.testing.assert_array_equal(content.train.inputs[1, 2], x[1, :, :, 2])


def test_fortran_order_reads_as_the_same_rows(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    plain = npz.read(save(tmp_path / "a.npz", x=x, y=labels(4)), "a.npz")
    fortran = npz.read(save(tmp_path / "b.npz", x=np.asfortranarray(x), y=labels(4)), "b.npz")
    np.testing.assert_array_equal(fortran.train.inputs, x)
    assert fortran.digest == plain.digest


def test_names_number_the_classes_in_sorted_order(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.npz",
        x_train=np.zeros((3, 2)),
        y_train=np.array(["dog", "cat", "dog"]),
        x_test=np.zeros((2, 2)),
        y_test=np.array(["cat", "dog"]),
    )
    content = npz.read(path, "a.npz")
    assert content.class_names == ("cat", "dog")
    assert content.train.targets.tolist() == [1, 0, 1]
    assert content.test.targets.tolist() == [0, 1]


def test_labels_of_positions_make_rows_sequences(tmp_path: Path) -> None:
    x, y = np.arange(2 * 3 * 5).reshape(2, 3, 5), np.array([["b", "a", "b"], ["a", "a", "c"]])
    for stored in (x.astype(np.uint8), x.astype(np.float64), np.asfortranarray(x, np.float32)):
        path = save(tmp_path / "a.npz", x_train=stored, y_train=y, x_test=stored[:1], y_test=y[:1])
        content = npz.read(path, "a.npz")
        assert content.class_names == ("a", "b", "c")
        assert content.train.inputs.dtype == np.float32
        np.testing.assert_array_equal(content.train.inputs, x)
        np.testing.assert_array_equal(content.train.targets, [[1, 0, 1], [0, 0, 2]])
        np.testing.assert_array_equal(content.test.targets, [[1, 0, 1]])


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_labels_of_pixels_stay_with_their_pixels(tmp_path: Path, channels: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 2, (3, 4, 5, *channels)).astype(np.uint8)
    y = x if not channels else x[..., 0]
    content = npz.read(save(tmp_path / "a.npz", x=x, y=y), "a.npz")
    np.testing.assert_array_equal(content.train.inputs[:, 0], content.train.targets)
    assert content.summary().target_shape == (4, 5)


def test_compression_does_not_change_the_digest_but_a_value_does(tmp_path: Path) -> None:
    x = np.ones((4, 3), np.float32)
    plain = npz.read(save(tmp_path / "a.npz", x=x, y=labels(4)), "a.npz")
    np.savez_compressed(tmp_path / "b.npz", x=x, y=labels(4))
    assert npz.read(tmp_path / "b.npz", "b.npz").digest == plain.digest
    x[3, 2] = 2
    assert npz.read(save(tmp_path / "c.npz", x=x, y=labels(4)), "c.npz").digest != plain.digest


X = np.zeros((4, 3), np.float32)
SEQUENCES = np.zeros((4, 3, 5), np.float32)
NAN = np.where(np.arange(12).reshape(4, 3) == 7, np.nan, 0.0)


@pytest.mark.parametrize(
    ("arrays", "rule"),
    [
        ({"x": X}, "must hold x and y, or .*, got 'x'"),
        ({"x": X, "y": labels(4), "z": X}, "must hold x and y, or .*, got 'x', 'y', 'z'"),
        ({"x_train": X, "y_train": labels(4), "x_test": X}, "got 'x_train', 'y_train', 'x_test'"),
        ({"x": X, "y": labels(3)}, "y: must have one label for each of the 4 rows, got 3"),
        ({"x": X, "y": np.zeros((4, 2, 2, 2), int)}, r"y: must have shape \[rows\], .*, got \[4, 2, 2, 2\]"),
        ({"x": X, "y": np.zeros((4, 0), int)}, r"y: must have shape \[rows\], .* no size 0, got \[4, 0\]"),
        ({"x": X, "y": labels(4)[:, None]}, r"y: shape \[4, 1\] goes with x of shape \[rows, 1, F\], got \[4, 3\]"),
        ({"x": SEQUENCES, "y": labels(8).reshape(4, 2)}, r"goes with x of shape \[rows, 2, F\], got \[4, 3, 5\]"),
        ({"x": SEQUENCES, "y": labels(60).reshape(4, 5, 3)}, r"goes with images of 5x3 pixels, got x of \[4, 3, 5\]"),
        ({"x": X, "y": labels(12).reshape(4, 3, 1)}, r"goes with images of 3x1 pixels, got x of \[4, 3\]"),
        ({"x": SEQUENCES, "y": labels(12).reshape(4, 3) - 1}, "y: must hold labels 0 to 65535, got -1"),
        ({"x": SEQUENCES, "y": labels(12).reshape(4, 3) * 2}, "y: must hold every label from 0 to 2, but no row has 1"),
        ({"x": SEQUENCES, "y": labels(9).reshape(3, 3)}, "y: must have one label for each of the 4 rows, got 3"),
        (
            {"x_train": SEQUENCES, "y_train": labels(12).reshape(4, 3), "x_test": SEQUENCES, "y_test": labels(4)},
            r"y_test: must have rows of shape \[3\] as y_train has, got \[\]",
        ),
        ({"x": X, "y": labels(4).astype(np.float32)}, "y: must hold whole numbers or str, got float32"),
        ({"x": X, "y": labels(4).astype(bool)}, "y: must hold whole numbers or str, got bool"),
        ({"x": X, "y": np.array(["a", "b", "a", None], object)}, "y: must not hold Python objects"),
        ({"x": X, "y": labels(4) - 1}, "y: must hold labels 0 to 65535, got -1"),
        ({"x": X, "y": labels(4) * 2**40}, "y: must hold labels 0 to 65535, got 1099511627776"),
        ({"x": X, "y": labels(4) * 2}, "y: must hold every label from 0 to 2, but no row has 1"),
        ({"x": X, "y": np.zeros(4, int)}, "y: must name 2 to 65536 classes, got 1"),
        ({"x": X, "y": np.array(["a", "", "a", "a"])}, "y: a class name must have 1 to 100 printable .*, got ''"),
        ({"x": X, "y": np.array(["a", "\ud800", "a", "a"])}, "y: a class name must have 1 to 100 printable"),
        ({"x": X, "y": np.array(["a", "b" * 101, "a", "a"])}, "y: a class name must have 1 to 100 printable"),
        ({"x": X.astype(np.int64), "y": labels(4)}, "x: must be uint8, float16, float32 or float64, got int64"),
        ({"x": X.astype(object), "y": labels(4)}, "x: must be uint8, float16, float32 or float64, got object"),
        ({"x": X[:, 0], "y": labels(4)}, r"x: must have shape .*, got \[4\]"),
        ({"x": X[:, :0], "y": labels(4)}, r"x: must have shape .*, got \[4, 0\]"),
        ({"x": np.zeros((4, 3, 8, 8)), "y": labels(4)}, r"x: must have shape .* C 1 or 3.*, got \[4, 3, 8, 8\]"),
        ({"x": NAN, "y": labels(4)}, "x: must hold finite float32 values, got nan in row 2"),
        ({"x": X.astype(np.float64) + 1e300, "y": labels(4)}, "finite float32 values, got 1e.300 in row 0"),
        (
            {"x_train": X, "y_train": labels(4), "x_test": X[:, :2], "y_test": labels(4)},
            r"x_test: must have rows of shape \[3\] as x_train has, got \[2\]",
        ),
        (
            {"x_train": X, "y_train": labels(4), "x_test": X.astype(np.uint8), "y_test": labels(4)},
            "x_test: must be of x_train's kind, float32, got uint8",
        ),
        (
            {"x_train": X, "y_train": labels(4), "x_test": X, "y_test": labels(4, 3)},
            "y_test: must hold labels that training rows have, got '2'",
        ),
        (
            {"x_train": X, "y_train": labels(4), "x_test": X, "y_test": labels(3)},
            "y_test: must have one label for each of the 4 rows, got 3",
        ),
    ],
)
def test_each_rule_is_named_with_field_and_value(tmp_path: Path, arrays: dict[str, Any], rule: str) -> None:
    with pytest.raises(DataError, match=f"^mine.npz: .*{rule}"):
        npz.read(save(tmp_path / "a.npz", **arrays), "mine.npz")


def test_code_points_beyond_unicode_are_refused(tmp_path: Path) -> None:
    y = np.array([0x61, 0x110000, 0x61, 0x62], np.uint32).view("U1")
    with pytest.raises(DataError, match=r"^a.npz"):
        npz.read(save(tmp_path / "a.npz", x=X, y=y), "a.npz")


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    payload = header((1,), "|O") + pickle.dumps(Payload())
    with pytest.raises(DataError):
        npz.read(member("x.npy", payload, tmp_path / "a.npz"), "a.npz")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "must be a readable .npz file"),
        (b"\x93NUMPY\x03\x00" + bytes(64), "must be in version 1.0 of the .npy format, got 3.0"),
        (header((1 << 20, 1 << 20)), "must be at most 4294967296 bytes, got 4398046511136"),
        (header((1 << 200, 1 << 200)), "must be at most 4294967296 bytes"),
        (header((4, -3)), r"no size 0, got \[4, -3\]"),
        (header((4, 3)) + bytes(47), "must hold 48 bytes of values as its header says, got 47"),
        (header((4, 3)) + bytes(49), "must end after the 48 bytes"),
        (header((4, 3), [("a", "<f4")]) + bytes(48), "must be uint8, float16"),
        (header((4, "3")), "must be a readable .npz file"),
    ],
)
def test_lying_array_headers_are_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        npz.read(member("x.npy", content, tmp_path / "a.npz"), "a.npz")


def test_arrays_given_twice_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(name, header((4, 3)) + bytes(48))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", header((4, 3)) + bytes(48))
    with pytest.raises(DataError, match="got 'x', 'y', 'x'"):
        npz.read(tmp_path / "a.npz", "a.npz")


def test_a_zip_bomb_costs_no_more_memory_than_its_header_declares(tmp_path: Path) -> None:
    path = member("x.npy", header((4, 3)) + bytes(64 << 20), tmp_path / "a.npz")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="must end after the 48 bytes"):
            npz.read(path, "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@given(content=st.binary(max_size=200))
@reuse_tmp_path
def test_random_bytes_raise_nothing_but_data_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"^a.npz"):
        npz.read(tmp_path / "a.npz", "a.npz")


@given(text=st.text(max_size=120), tail=st.binary(max_size=64))
@reuse_tmp_path
def test_random_array_headers_raise_nothing_but_data_errors(tmp_path: Path, text: str, tail: bytes) -> None:
    encoded = text.encode("latin1", "replace")
    content = b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded + tail
    with pytest.raises(DataError, match=r"^a.npz"):
        npz.read(member("x.npy", content, tmp_path / "a.npz"), "a.npz")


@given(edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4), cut=st.booleans())
@reuse_tmp_path
def test_mutated_files_are_refused_or_read_to_valid_rows(
    tmp_path: Path, edits: list[tuple[int, int]], cut: bool
) -> None:
    path = save(tmp_path / "a.npz", x=np.ones((4, 3), np.float32), y=np.array(["a", "b", "a", "b"]))
    content = bytearray(path.read_bytes())
    for position, value in edits:
        content[position % len(content)] = value
    if cut:
        del content[edits[0][0] % len(content) :]
    path.write_bytes(content)
    refused_or_valid(path)


@given(
    x=hnp.arrays(
        dtype=st.sampled_from([np.uint8, np.float16, np.float32, np.float64, np.int16, np.complex64]),
        shape=hnp.array_shapes(min_dims=1, max_dims=5, max_side=3),
    ),
    y=hnp.arrays(
        dtype=st.sampled_from(["i1", "u8", "U1", "S1", "f4"]),
        shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=3),
    ),
)
@reuse_tmp_path
def test_any_arrays_are_refused_or_read_to_valid_rows(tmp_path: Path, x: np.ndarray, y: np.ndarray) -> None:
    refused_or_valid(save(tmp_path / "a.npz", x=x, y=y))


@pytest.mark.parametrize("path", ["../a.npz", "/etc/passwd", "sub/a.npz", "..", ".", "a\\b.npz", "a\0.npz"])
def test_with_a_root_the_path_must_be_a_plain_file_name(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidConfig, match=r"data\.path: must be a plain file name"):
        load(DataConfig(name="npz", path=path), 0, tmp_path)


@pytest.mark.parametrize("path", ["absent.npz", "a" * 300, "\udfff.npz"])
def test_a_missing_file_is_a_data_error_by_the_users_name(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError) as caught:
        describe(DataConfig(name="npz", path=path), 0, tmp_path)
    assert str(caught.value).startswith(path)
    assert str(tmp_path) not in str(caught.value)


def test_description_and_rows_agree(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=np.zeros((20, 4, 4), np.uint8), y=labels(20, 3))
    config = DataConfig(name="npz", path="a.npz")
    info, dataset = describe(config, 5, tmp_path), load(config, 5, tmp_path)
    assert info.digest == dataset.digest
    assert info.input_shape == dataset.input_shape == (1, 4, 4)
    assert (info.train_rows, info.validation_rows, info.test_rows) == (18, 2, 0)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (18, 2, 0)
    assert info.class_names == dataset.class_names == ("0", "1", "2")
    assert info.is_image


def test_vectors_cannot_be_augmented(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=X, y=labels(4))
    config = DataConfig(name="npz", path="a.npz", augmentation=Augmentation.SHIFT)
    for ask in (load, describe):
        with pytest.raises(InvalidConfig, match=r"data.augmentation: must be 'none' for rows of shape \[3\]"):
            ask(config, 0, tmp_path)
