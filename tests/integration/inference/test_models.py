"""ModelService over a socket."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc
import pytest

from bll_proto.v1 import tensor_pb2
from bll_proto.v1.models_pb2 import DownloadModelRequest, GetModelRequest, ListModelsRequest
from bll_server.services import models

CODES = grpc.StatusCode


def test_list_shows_each_model_with_its_newest_version_by_name(served: Any) -> None:
    response = served.models.ListModels(ListModelsRequest(), timeout=10)
    names = [[version.name for version in model.versions] for model in response.models]
    assert names == [["models/fashion/versions/2"], ["models/tiny/versions/1"]]
    assert not response.next_page_token


def test_pages_join_to_the_whole_list(served: Any) -> None:
    first = served.models.ListModels(ListModelsRequest(page_size=1), timeout=10)
    assert [model.name for model in first.models] == ["models/fashion"]
    second = served.models.ListModels(ListModelsRequest(page_size=1, page_token=first.next_page_token), timeout=10)
    assert [model.name for model in second.models] == ["models/tiny"]
    assert not second.next_page_token


def test_model_is_shown_with_all_versions_and_what_the_manifest_says(served: Any) -> None:
    model = served.models.GetModel(GetModelRequest(name="models/fashion"), timeout=10).model
    assert model.name == "models/fashion"
    assert [version.name for version in model.versions] == [f"models/fashion/versions/{n}" for n in (2, 1)]
    version = model.versions[0]
    published = served.registry.version("fashion", 2)
    assert version.create_time.ToJsonString() == "2026-01-02T03:04:05Z"
    assert version.resolved_spec.model_id == "fashion"
    assert version.resolved_spec.epochs == published.manifest.config.epochs
    assert [(t.name, t.dtype, list(t.shape)) for t in version.inputs] == [
        ("input", tensor_pb2.DATA_TYPE_FLOAT32, [-1, 1, 8, 8])
    ]
    assert [t.name for t in version.outputs] == [t.name for t in published.manifest.outputs]
    assert list(version.class_names) == list(published.manifest.class_names)
    assert version.num_blocks == 4
    assert version.evaluations[0].mixture.accuracy == 0.5
    assert version.model_digest == published.manifest.model_digest
    assert version.size_bytes == (published.directory / "model.onnx").stat().st_size


@pytest.mark.parametrize("name", ["models/tiny", "models/tiny/versions/1"])
def test_downloaded_files_are_the_published_ones(served: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(models, "CHUNK_BYTES", 100)
    files: dict[str, bytes] = {}
    promised = {}
    for response in served.models.DownloadModel(DownloadModelRequest(name=name), timeout=10):
        assert len(response.chunk) <= 100
        files[response.file] = files.get(response.file, b"") + response.chunk
        promised[response.file] = (response.size_bytes, response.sha256)
    directory = served.registry.version("tiny").directory
    assert files == {file: (directory / file).read_bytes() for file in ("manifest.json", "model.onnx")}
    assert promised == {f: (len(content), hashlib.sha256(content).hexdigest()) for f, content in files.items()}


@pytest.mark.parametrize(
    ("method", "bad", "code", "words"),
    [
        (
            "ListModels",
            ListModelsRequest(page_size=-1),
            CODES.INVALID_ARGUMENT,
            "must be between 0 and 1000, got -1",
        ),
        (
            "ListModels",
            ListModelsRequest(page_size=1001),
            CODES.INVALID_ARGUMENT,
            "page_size: must be between 0 and",
        ),
        ("ListModels", ListModelsRequest(page_token="?"), CODES.INVALID_ARGUMENT, "page_token: must come from a page"),
        ("GetModel", GetModelRequest(name="fashion"), CODES.INVALID_ARGUMENT, "name: must be models/{model} or"),
        ("GetModel", GetModelRequest(name="models/tiny/versions/1"), CODES.INVALID_ARGUMENT, "name: must be models/"),
        ("GetModel", GetModelRequest(name="models/nobody"), CODES.NOT_FOUND, "there is no model 'nobody'"),
        ("DownloadModel", DownloadModelRequest(name="models/../x"), CODES.INVALID_ARGUMENT, "name: must be models/"),
        ("DownloadModel", DownloadModelRequest(name="models/tiny/versions/5"), CODES.NOT_FOUND, "has no version 5"),
    ],
)
def test_bad_request_is_refused(served: Any, method: str, bad: Any, code: grpc.StatusCode, words: str) -> None:
    call = getattr(served.models, method)
    with pytest.raises(grpc.RpcError) as raised:
        next(call(bad, timeout=10)) if method == "DownloadModel" else call(bad, timeout=10)
    error: Any = raised.value
    assert error.code() is code
    assert words in error.details()
