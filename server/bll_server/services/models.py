"""ModelService: shows the registry and hands out its files."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import grpc
import numpy as np

from bll.errors import Violation
from bll.manifest import MANIFEST_FILE, MODEL_FILE, TensorInfo, file_digest
from bll_proto.tensors import wire_type
from bll_proto.v1 import models_pb2, models_pb2_grpc
from bll_server.convert import evaluation_message, spec_message
from bll_server.errors import InvalidRequest
from bll_server.models.registry import MODEL_ID, Registry, Version, parse_name

MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 50
CHUNK_BYTES = 512 * 1024


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """See `models.proto`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def ListModels(
        self, request: models_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> models_pb2.ListModelsResponse:
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            rule = f"must be between 0 and {MAX_PAGE_SIZE}, got {request.page_size}"
            raise InvalidRequest(Violation("page_size", rule))
        # The token is the last name of the page before, so a page stays right when models come in between.
        if request.page_token and not MODEL_ID.fullmatch(request.page_token):
            raise InvalidRequest(
                Violation("page_token", f"must come from a page before, got {request.page_token!r:.200}")
            )
        size = request.page_size or DEFAULT_PAGE_SIZE
        models = self._registry.models()
        names = sorted(name for name in models if name > request.page_token)
        return models_pb2.ListModelsResponse(
            models=[_model(models[name][:1]) for name in names[:size]],
            next_page_token=names[size - 1] if len(names) > size else "",
        )

    def GetModel(
        self, request: models_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> models_pb2.GetModelResponse:
        model, number = parse_name(request.name, "name")
        if number is not None:
            raise InvalidRequest(Violation("name", f"must be models/{{model}}, got {request.name!r}"))
        return models_pb2.GetModelResponse(model=_model(self._registry.versions(model)))

    def DownloadModel(
        self, request: models_pb2.DownloadModelRequest, context: grpc.ServicerContext
    ) -> Iterator[models_pb2.DownloadModelResponse]:
        version = self._registry.version(*parse_name(request.name, "name"))
        digests = {
            MANIFEST_FILE: file_digest(version.directory / MANIFEST_FILE),
            MODEL_FILE: version.manifest.model_digest,
        }
        for name, digest in digests.items():
            path = version.directory / name
            size_bytes = path.stat().st_size
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield models_pb2.DownloadModelResponse(file=name, size_bytes=size_bytes, sha256=digest, chunk=chunk)


def _model(versions: tuple[Version, ...]) -> models_pb2.Model:
    return models_pb2.Model(name=f"models/{versions[0].model}", versions=map(_version, versions))


def _version(version: Version) -> models_pb2.ModelVersion:
    manifest = version.manifest
    message = models_pb2.ModelVersion(
        name=version.name,
        resolved_spec=spec_message(manifest.config, version.model),
        inputs=map(_tensor_spec, manifest.inputs),
        outputs=map(_tensor_spec, manifest.outputs),
        class_names=manifest.class_names,
        num_blocks=manifest.num_blocks,
        evaluations=map(evaluation_message, manifest.evaluations),
        model_digest=manifest.model_digest,
        size_bytes=version.size_bytes,
        dataset_digest=manifest.dataset_digest,
    )
    message.create_time.FromDatetime(datetime.fromisoformat(manifest.created))
    return message


def _tensor_spec(info: TensorInfo) -> models_pb2.TensorSpec:
    return models_pb2.TensorSpec(name=info.name, dtype=wire_type(np.dtype(info.dtype)), shape=info.shape)
