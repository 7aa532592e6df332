"""A server in this process that has two models and no jobs."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from bll.manifest import Manifest
from bll_proto.v1.inference_pb2_grpc import InferenceServiceStub, add_InferenceServiceServicer_to_server
from bll_proto.v1.models_pb2_grpc import ModelServiceStub, add_ModelServiceServicer_to_server
from bll_server.auth.audit import AUDIT, Audit
from bll_server.auth.gate import Gate
from bll_server.auth.tokens import Tokens
from bll_server.interceptors import Boundary
from bll_server.metrics import Metrics
from bll_server.models.batcher import Batcher
from bll_server.models.queue import Budget
from bll_server.models.registry import Registry
from bll_server.models.session import Sessions
from bll_server.services.inference import InferenceServicer
from bll_server.services.models import ModelServicer
from bll_server.services.oip import add_oip


@dataclass(frozen=True)
class Served:
    """`fashion` has versions 1 and 2, of images; `tiny` has version 1, of four numbers. At most 64 rows a call."""

    address: str
    channel: grpc.Channel
    draining: threading.Event
    registry: Registry
    metrics: Metrics
    inference: InferenceServiceStub
    models: ModelServiceStub


@pytest.fixture
def served(export_model: Callable[..., Manifest], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # One thread, so that a test can keep it busy.
    with _serving(export_model, tmp_path_factory.mktemp("data"), threads=1) as served:
        yield served


@pytest.fixture
def crowded(export_model: Callable[..., Manifest], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With threads for more calls than a model may hold, which is four."""
    with _serving(export_model, tmp_path_factory.mktemp("data"), threads=8, calls=6) as served:
        yield served


@contextmanager
def _serving(export_model: Callable[..., Manifest], root: Path, *, threads: int, calls: int = 32) -> Iterator[Served]:
    registry = Registry(root / "models")
    for seed in (1, 2):
        export_model(root / "staging", input_shape=(1, 8, 8), num_classes=10, num_blocks=4, seed=seed)
        registry.publish("fashion", root / "staging", f"jobs/fashion-{seed}")
    export_model(root / "staging")
    registry.publish("tiny", root / "staging", "jobs/tiny")
    metrics = Metrics()
    sessions = Sessions(registry, metrics, max_rows=64)
    batcher = Batcher(metrics, Budget(calls, 4096, 2**24), parallel=1)
    gate = Gate(Tokens(root), {}, always=False)
    server = grpc.server(
        ThreadPoolExecutor(threads),
        interceptors=[Boundary(metrics, gate, Audit(root / AUDIT), {})],
        options=[("grpc.so_reuseport", 0)],
    )
    add_InferenceServiceServicer_to_server(InferenceServicer(sessions, batcher), server)
    add_ModelServiceServicer_to_server(ModelServicer(registry), server)
    draining = threading.Event()
    add_oip(server, sessions, batcher, ready=lambda: not draining.is_set())
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with grpc.insecure_channel(address) as channel:
        yield Served(
            address, channel, draining, registry, metrics, InferenceServiceStub(channel), ModelServiceStub(channel)
        )
    server.stop(None).wait()
