"""Every metric of the service, by what it is about, and the port that they are read from."""

from __future__ import annotations

import platform
from importlib import metadata

import grpc
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics

from bll_server.metrics.datasets import DatasetMetrics
from bll_server.metrics.endpoint import MetricsServer
from bll_server.metrics.inference import InferenceMetrics
from bll_server.metrics.jobs import JobMetrics
from bll_server.metrics.rpc import RpcMetrics
from bll_server.metrics.watchers import WatcherMetrics

__all__ = [
    "DatasetMetrics",
    "InferenceMetrics",
    "JobMetrics",
    "Metrics",
    "MetricsServer",
    "RpcMetrics",
    "WatcherMetrics",
]

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each that nobody asks for


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        versions = {"version": metadata.version("bll"), "python": platform.python_version(), "grpc": grpc.__version__}
        build = Gauge("bll_build_info", "Always 1: the labels tell what runs.", list(versions), registry=self.registry)
        build.labels(**versions).set(1)
        self.rpc = RpcMetrics(self.registry)
        self.jobs = JobMetrics(self.registry)
        self.watchers = WatcherMetrics(self.registry)
        self.datasets = DatasetMetrics(self.registry)
        self.inference = InferenceMetrics(self.registry)
