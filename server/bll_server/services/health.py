"""grpc.health.v1, with an entry for each service and each model, and reflection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from bll_server.services.oip import POOL


class Health:
    """What the health service answers."""

    def __init__(self, services: Iterable[str], models: Iterable[str]) -> None:
        """Everything named is SERVING from the start, and so is the server as a whole."""
        self._servicer = health.HealthServicer()
        for service in services:
            self._servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        for model in models:
            self.model_ready(model)

    def add_to(self, server: grpc.Server) -> None:
        """Answer through `server`."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def model_ready(self, model: str) -> None:
        """The model has a version that answers: entry `bll.model/NAME`."""
        self._servicer.set(f"bll.model/{model}", health_pb2.HealthCheckResponse.SERVING)

    def drain(self) -> None:
        """Everything is NOT_SERVING from now on, which load balancers and watchers see at once."""
        self._servicer.enter_graceful_shutdown()


def add_reflection(server: grpc.Server, services: Iterable[str]) -> None:
    """Let clients ask for the descriptors of `services`."""
    reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server, pool=_BothPools())  # type: ignore[arg-type]  # it only looks


class _BothPools:
    """protobuf's default pool, then the private one of the KServe messages."""

    def __getattr__(self, name: str) -> Any:
        first, second = getattr(descriptor_pool.Default(), name), getattr(POOL, name)

        def find(*arguments: object) -> Any:
            try:
                return first(*arguments)
            except KeyError:
                return second(*arguments)

        return find
