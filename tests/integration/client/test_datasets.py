"""Both clients and the command line upload data sets to the real server."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

import bll_client
from bll_client import DatasetFormat, DatasetState, _upload
from bll_client._upload import Outgoing
from bll_client.cli import main
from bll_client.cli.exits import ExitCode
from bll_proto.v1 import datasets_pb2_grpc
from bll_server.app import Server
from bll_server.datasets.store import Datasets
from bll_server.errors import ShuttingDown
from bll_server.settings import Settings


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    flags = ["--port", "0", "--metrics-port", "0", "--data-dir", str(tmp_path_factory.mktemp("bll")), "--drain-s", "5"]
    server = Server(Settings.from_flags(flags))
    yield server.address
    server.stop()


@pytest.fixture
def real(connect: Callable[..., Any], address: str) -> Iterator[Any]:
    with connect(address) as client:
        yield client


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "two-classes.npz"
    x = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(500) % 2)
    return path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_upload, "CHUNK_BYTES", 1000)


def outgoing(path: Path, dataset_id: str | None = None) -> Outgoing:
    return Outgoing(path, dataset_id, None, None, timedelta(seconds=5))


def test_a_file_is_uploaded_checked_shown_listed_and_deleted(real: Any, npz: Path, small_chunks: None) -> None:
    told: list[tuple[int, int]] = []
    dataset = real.upload_dataset(npz, on_progress=lambda sent, total: told.append((sent, total)))
    assert (dataset.name, dataset.data_name) == ("datasets/two-classes", "datasets/two-classes")
    assert (dataset.state, dataset.format) == (DatasetState.READY, DatasetFormat.NPZ)
    assert dataset.report.train_rows == 500
    size_bytes = npz.stat().st_size
    assert told == [(sent, size_bytes) for sent in (*range(0, size_bytes, 1000), size_bytes)]
    assert real.get_dataset("two-classes") == dataset
    assert {d.data_name for d in real.list_datasets()} >= {"datasets/two-classes", "digits", "fashion-mnist"}
    real.delete_dataset("two-classes")
    with pytest.raises(bll_client.NotFound):
        real.get_dataset("two-classes")


def test_an_upload_goes_on_where_an_earlier_program_left_it(
    real: Any, address: str, npz: Path, small_chunks: None
) -> None:
    with outgoing(npz, "left") as earlier, grpc.insecure_channel(address) as channel:
        first = [request for request, _ in zip(earlier.requests(0), range(4), strict=False)]
        with pytest.raises(grpc.RpcError):
            datasets_pb2_grpc.DatasetServiceStub(channel).UploadDataset(iter(first), timeout=10)
    told: list[int] = []
    dataset = real.upload_dataset(npz, "left", on_progress=lambda sent, _: told.append(sent))
    assert told[0] == 3000
    assert dataset.state is DatasetState.READY
    real.delete_dataset("left")


def test_a_stream_that_breaks_is_taken_up_again(
    real: Any, npz: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Datasets.append
    broken: list[int] = []

    def breaks(datasets: Datasets, upload: Any, offset: int, data: bytes) -> None:
        if offset == 5000 and len(broken) < 2:
            broken.append(offset)
            raise ShuttingDown("for a moment")
        append(datasets, upload, offset, data)

    monkeypatch.setattr(Datasets, "append", breaks)
    assert real.upload_dataset(npz, "broken").state is DatasetState.READY
    assert broken == [5000, 5000]
    real.delete_dataset("broken")


def test_a_folder_of_images_is_packed_the_same_each_time(real: Any, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (4, 3), "red").save(tmp_path / "pets" / name / "a.png")
    dataset = real.upload_dataset(tmp_path / "pets")
    assert (dataset.state, dataset.format, dataset.report.input_shape) == (
        DatasetState.READY,
        DatasetFormat.IMAGES,
        (3, 3, 4),
    )
    assert [(c.name, c.train_count) for c in dataset.report.classes] == [("cat", 1), ("dog", 1)]
    assert real.upload_dataset(tmp_path / "pets") == dataset
    real.delete_dataset("pets")


def test_what_is_wrong_is_told(real: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "nan.npz", x=np.full((4, 2), np.nan), y=[0, 1, 0, 1])
    dataset = real.upload_dataset(tmp_path / "nan.npz")
    assert dataset.state is DatasetState.FAILED
    assert dataset.error.status == "INVALID_ARGUMENT"
    assert "x: must hold finite float32 values, got nan in row 0, 8 such in all" in dataset.error.message
    with pytest.raises(bll_client.InvalidArgument) as caught:
        real.upload_dataset(tmp_path / "nan.npz", "../nan")
    assert [violation.field for violation in caught.value.violations] == ["header.dataset_id"]
    (tmp_path / "some.tar").write_bytes(b"x")
    with pytest.raises(bll_client.InvalidInput, match="the format of a file that is no"):
        real.upload_dataset(tmp_path / "some.tar")
    with pytest.raises(bll_client.InvalidInput, match="must be one of npz, npy, idx, images, got 'zip'"):
        real.upload_dataset(tmp_path / "some.tar", format="zip")
    with pytest.raises(bll_client.FailedPrecondition):
        real.delete_dataset("digits")


def test_a_file_is_read_in_chunks_and_never_held(tmp_path: Path) -> None:
    path = tmp_path / "large.npz"
    with path.open("wb") as file:
        file.truncate(1 << 26)
    tracemalloc.start()
    with outgoing(path) as sending:
        sent_bytes = sum(len(request.chunk.data) for request in sending.requests(0))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sent_bytes == 1 << 26
    assert peak_bytes < 1 << 23


def test_the_command_line_uploads_lists_shows_and_deletes(
    address: str, npz: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BLL_SERVER", address)
    assert main(["datasets", "upload", str(npz), "--id", "mine"]) == ExitCode.OK
    out = capfd.readouterr().out
    assert "500 for training, 0 for testing" in out
    assert main(["datasets", "list"]) == ExitCode.OK
    assert "built in" in capfd.readouterr().out
    assert main(["datasets", "show", "mine", "-o", "json"]) == ExitCode.OK
    assert json.loads(capfd.readouterr().out)["report"]["classes"][0] == {
        "name": "0",
        "train_count": 250,
        "test_count": 0,
    }
    assert main(["datasets", "delete", "mine"]) == ExitCode.OK
    assert main(["datasets", "show", "mine"]) == ExitCode.NOT_FOUND
    np.savez(npz, x=np.zeros((4, 2)), y=[0, 0, 0, 0])
    assert main(["datasets", "upload", str(npz), "--id", "one-class"]) == ExitCode.USAGE
    assert "must name 2 to" in capfd.readouterr().out
