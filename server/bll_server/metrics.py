"""Every metric of the service, and the port that they are read from."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from bll.choices import Recovery
from bll.events import Alarm, BlockProgress, Evaluation

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each that nobody asks for

_CALL = ["grpc_type", "grpc_service", "grpc_method"]  # as in the other gRPC servers: dashboards exist
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_MODEL = ["model", "version"]
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_NATS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7)
_VARIANCES = (0.0001, 0.001, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1, 2, 5, 10, 100)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.grpc_started = Counter("grpc_server_started", "Calls begun.", _CALL, registry=self.registry)
        self.grpc_handled = Counter(
            "grpc_server_handled", "Calls answered, by status.", [*_CALL, "grpc_code"], registry=self.registry
        )
        self.grpc_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from a call's arrival in its handler to its answer.",
            _CALL,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._block_loss = self._of_job("bll_job_block_loss_nats", "Mean local loss since the last report.", "block")
        self._block_kl = self._of_job("bll_job_block_kl_nats", "Mean KL of the mixed from the forward.", "block")
        self._samples = self._of_job("bll_job_samples_per_second", "Recent throughput of a running job.")
        self._steps = self._of_job("bll_job_steps", "Steps that every block of a running job has done.")
        self._accuracy = self._of_job("bll_job_validation_accuracy", "Of the mixture, at the last evaluation.")
        self._alarms = Counter(
            "bll_job_alarms", "Alarms raised by running jobs, by signature.", ["signature"], registry=self.registry
        )
        self._block_wait = self._block_seconds(
            "bll_job_block_receive_wait_seconds", "Time that a block waited for what its neighbours send."
        )
        self._block_send_wait = self._block_seconds(
            "bll_job_block_send_wait_seconds", "Time that a block waited for room in the lines to its neighbours."
        )
        self._block_fill = self._of_job(
            "bll_job_block_inbox_fill_ratio", "How full the line from the left was when the block read it.", "block"
        )
        self._job_series = (
            self._block_loss,
            self._block_kl,
            self._block_wait,
            self._block_send_wait,
            self._block_fill,
            self._samples,
            self._steps,
            self._accuracy,
        )
        self._restarts = Counter(
            "bll_block_restarts",
            "Lost workers that were replaced, by recovery.",
            ["recovery"],
            registry=self.registry,
        )

        self.inference_request_seconds = self._of_model(
            "bll_inference_request_seconds", "Time that a request which was answered spent in its handler.", _SECONDS
        )
        self.inference_compute_seconds = self._of_model(
            "bll_inference_compute_seconds", "Time of one run of the graph.", _SECONDS
        )
        self.inference_queue_seconds = self._of_model(
            "bll_inference_queue_seconds", "Time that a call waited for its model.", _SECONDS
        )
        self.inference_unanswered = Counter(
            "bll_inference_unanswered",
            "Calls that did not run: refused when they came, or dropped when nobody waited any more.",
            [*_MODEL, "outcome"],
            registry=self.registry,
        )
        self.inference_batch_rows = self._of_model("bll_inference_batch_rows", "Rows of one run of the graph.", _ROWS)
        self.inference_entropy = RowHistogram(
            "bll_inference_predictive_entropy_nats",
            "Entropy of the mixture, of every row.",
            _MODEL,
            _NATS,
            self.registry,
        )
        self.inference_variance = RowHistogram(
            "bll_inference_posterior_variance",
            "Variance of a block's latent, mean over its units, of every row and block.",
            _MODEL,
            _VARIANCES,
            self.registry,
        )

    def _of_model(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, _MODEL, buckets=buckets, registry=self.registry)

    def _of_job(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(name, documentation, ["job", *labels], registry=self.registry)

    def _block_seconds(self, name: str, documentation: str) -> Counter:
        return Counter(name, documentation, ["job", "block"], registry=self.registry)

    def count_jobs(self, counts: Callable[[], Mapping[Any, int]]) -> None:
        """Show the number of jobs in each state, asked for at every scrape, so that it is never stale."""
        self.registry.register(_JobStates(counts))

    def block_progressed(self, job_id: str, progress: BlockProgress) -> None:
        """Show how a block fares."""
        self._block_loss.labels(job_id, str(progress.block)).set(progress.loss_nats)
        self._block_kl.labels(job_id, str(progress.block)).set(progress.kl_nats)
        self._block_wait.labels(job_id, str(progress.block)).inc(progress.wait_s)
        self._block_send_wait.labels(job_id, str(progress.block)).inc(progress.send_wait_s)
        self._block_fill.labels(job_id, str(progress.block)).set(progress.inbox_fill)

    def job_progressed(self, job_id: str, step: int, samples_per_s: float) -> None:
        """Show how far a job is."""
        self._steps.labels(job_id).set(step)
        self._samples.labels(job_id).set(samples_per_s)

    def alarm_raised(self, alarm: Alarm) -> None:
        """Count an alarm."""
        self._alarms.labels(alarm.signature).inc()

    def run_rolled_back(self) -> None:
        """Count a lost worker that sent its run back to a checkpoint."""
        self._restarts.labels(Recovery.EXACT).inc()

    def block_continued(self) -> None:
        """Count a block that went on alone when its worker was lost."""
        self._restarts.labels(Recovery.CONTINUE).inc()

    def evaluated(self, job_id: str, evaluation: Evaluation) -> None:
        """Show how good a job's network is, on validation rows."""
        if evaluation.split == "validation":
            self._accuracy.labels(job_id).set(evaluation.mixture.accuracy)

    def job_ended(self, job_id: str) -> None:
        """Take the job's series away: a server that lives long would else collect them without end."""
        for series in self._job_series:
            series.remove_by_labels({"job": job_id})


class RowHistogram(Collector):
    """A histogram that takes a whole batch at once; prometheus_client's takes a lock for each value."""

    def __init__(
        self, name: str, documentation: str, labels: list[str], buckets: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._buckets = np.array(buckets)
        self._names = [*map(floatToGoString, buckets), "+Inf"]
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], np.ndarray[Any, np.dtype[np.int64]]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def observe(self, labels: tuple[str, ...], values: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Count every finite value; one NaN would spoil the sum for ever."""
        total = float(values.sum(dtype=np.float64))
        if not math.isfinite(total):
            values = values[np.isfinite(values)]
            total = float(values.sum(dtype=np.float64))
        counts = np.bincount(self._buckets.searchsorted(values.ravel()), minlength=len(self._names))
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + counts
            self._sums[labels] = self._sums.get(labels, 0.0) + total

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        with self._lock:
            series = [(labels, counts.cumsum(), self._sums[labels]) for labels, counts in self._counts.items()]
        for labels, counts, total in series:
            family.add_metric(labels, list(zip(self._names, counts.tolist(), strict=True)), total)
        return [family]


class _JobStates(Collector):
    def __init__(self, counts: Callable[[], Mapping[Any, int]]) -> None:
        self._counts = counts

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily("bll_jobs", "Jobs in each state.", labels=["state"])]

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("bll_jobs", "Jobs in each state.", labels=["state"])
        for state, count in self._counts().items():
            family.add_metric([str(state)], count)
        return [family]


class MetricsServer:
    """Answers `/metrics` and `/healthz` over HTTP, on a port of its own."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, healthy: Callable[[], bool]) -> None:
        """Listen at once; `port` 0 takes any. Raises OSError if the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # a client that sends nothing must not keep its thread

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(200, content_type, encode(registry))
                elif path == "/healthz":
                    well = healthy()
                    self._answer(200 if well else 503, "text/plain", b"ok\n" if well else b"draining\n")
                else:
                    self._answer(404, "text/plain", b"/metrics and /healthz are here\n")

            def _answer(self, code: int, content_type: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass  # a scrape every few seconds is no news

        self._server = ThreadingHTTPServer((host, port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
