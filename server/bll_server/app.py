"""The server put together: one object from the first lock to the last."""

from __future__ import annotations

import fcntl
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import IO

import grpc
import sqlalchemy as sa

from bll.cores import usable_cores
from bll.data import stored
from bll_proto import oip
from bll_proto.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    studies_pb2,
    studies_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from bll_server.auth.audit import AUDIT, Audit
from bll_server.auth.gate import Gate
from bll_server.auth.tokens import TOKENS, Tokens
from bll_server.datasets.quota import Quota
from bll_server.datasets.store import Datasets
from bll_server.datasets.validator import Limits
from bll_server.errors import DatabaseUnavailable, ModelNotReady, StorageFull
from bll_server.interceptors import Boundary
from bll_server.jobs.capacity import Capacity
from bll_server.jobs.database import CannotOpen
from bll_server.jobs.expiry import Expiry
from bll_server.jobs.planner import Planner
from bll_server.jobs.scheduler import Scheduler
from bll_server.jobs.store import Store
from bll_server.metrics import Metrics, MetricsServer
from bll_server.models.batcher import Batcher
from bll_server.models.queue import Budget
from bll_server.models.registry import Registry
from bll_server.models.session import Sessions
from bll_server.services.datasets import DatasetServicer
from bll_server.services.health import Health, add_reflection
from bll_server.services.inference import InferenceServicer
from bll_server.services.models import ModelServicer
from bll_server.services.oip import add_oip
from bll_server.services.studies import StudyServicer
from bll_server.services.training import TrainingServicer
from bll_server.settings import Settings
from bll_server.studies.store import Studies
from bll_server.threads import BoundedThreads
from bll_server.tls import BadCertificate, Certificates
from bll_server.tracing import NoTracing, Tracing, tracing_to

log = logging.getLogger(__name__)

RUNNER = (sys.executable, "-m", "bll_server.jobs.runner")

SERVICES = (
    training_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name,
    models_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    datasets_pb2.DESCRIPTOR.services_by_name["DatasetService"].full_name,
    oip.SERVICE.full_name,
    studies_pb2.DESCRIPTOR.services_by_name["StudyService"].full_name,
    "grpc.health.v1.Health",
)

WATCH = (f"/{SERVICES[0]}/WatchJob", f"/{SERVICES[0]}/TailLogs")

SLOW = (f"/{SERVICES[1]}/DownloadModel", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
"""Streams that a slow reader can hold for as long as it likes: predictions must not wait for their threads."""

_SLOW_THREADS = 8

UPLOAD = f"/{SERVICES[3]}/UploadDataset"

PREDICT = (f"/{SERVICES[2]}/Predict", f"/{SERVICES[4]}/ModelInfer")

_MAX_QUEUED_ROWS = 65_536
"""Of all predictions that wait or run: what they hold beside their inputs grows with their rows."""

_UPLOAD_THREADS = 4
"""Files that are taken at the same time; more wait for their turn."""

_LIMITS = Limits(memory_bytes=6 * 2**30, cpu_s=600, wall_s=900, disk_bytes=8 * 2**30)
"""Of checking one data set: its readers take at most 4 GiB of values, and need some of it twice."""

_LONGEST_CALL_S = 5.0
"""Calls in flight are cut off this long after the drain: a health watcher would hold the server for ever."""


class CannotStart(Exception):
    """The data directory, the job database or a port cannot be had, or the certificate is damaged."""


class Server:
    """A server that serves from its construction until `stop`."""

    def __init__(
        self, settings: Settings, command: Sequence[str] = RUNNER, overtaken: Callable[[], None] = lambda: None
    ) -> None:
        """`command` runs a job; see `Scheduler`. `overtaken` is called when another server has taken the job database
        over, and this one is of no more use. Raises CannotStart."""
        self._settings = settings
        self._draining = threading.Event()
        with ExitStack() as stack:  # what has been opened is closed again if a later step fails
            data_dir = settings.data_dir.resolve()
            stack.enter_context(_locked(data_dir))
            metrics = Metrics()
            store = _job_store(settings, data_dir, overtaken, metrics)
            stack.callback(store.close)
            metrics.jobs.count(store.counts)
            registry = Registry(data_dir / "models")
            sessions = Sessions(registry, metrics)
            audit = Audit(data_dir / AUDIT)
            self._health = Health(SERVICES, registry.models())

            def publish(model: str, staging: Path, job: str) -> str:
                version = registry.publish(model, staging, job)
                owner = store.owner(job.removeprefix("jobs/"))
                audit.write(owner or "anybody", "publish", version, grpc.StatusCode.OK.name, job=job)
                with suppress(ModelNotReady):  # logged where it was raised; the version stays, and a call says so
                    sessions.get(model)  # loaded and warm before the first call
                self._health.model_ready(model)
                return version

            self._scheduler = Scheduler(
                store,
                publish,
                metrics,
                data_dir,
                ("nice", "-n", str(settings.job_niceness), *command),
                capacity=_capacity(settings),
                max_watchers=settings.max_watchers,
                cancel_grace_s=settings.cancel_grace_s,
                pause_grace_s=settings.pause_grace_s,
            )

            def expire(job_id: str, etag: str) -> None:
                self._scheduler.delete(job_id, etag)
                audit.write("server", "expire", f"jobs/{job_id}", grpc.StatusCode.OK.name)

            expiry = Expiry(store, expire)
            # A few threads more than may watch, so that there is one to refuse with.
            watchers = ThreadPoolExecutor(settings.max_watchers + 2, thread_name_prefix="watch")
            stack.callback(watchers.shutdown, wait=False)
            slow = ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="slow")
            stack.callback(slow.shutdown, wait=False)
            uploads = ThreadPoolExecutor(_UPLOAD_THREADS, thread_name_prefix="upload")
            stack.callback(uploads.shutdown, wait=False)
            self._predictions = BoundedThreads(settings.max_predictions, "predict")
            stack.callback(self._predictions.shutdown, wait=False)
            pools: dict[str, ThreadPoolExecutor] = {UPLOAD: uploads} | dict.fromkeys(PREDICT, self._predictions)
            pools |= dict.fromkeys(WATCH, watchers) | dict.fromkeys(SLOW, slow)
            studies = Studies(store)
            owners = {"jobs": store.owner, "studies": studies.owner}
            gate = Gate(Tokens(data_dir / TOKENS), owners, always=settings.open_to_others)
            tracing = stack.enter_context(closing(_tracing(settings))) if settings.trace_endpoint else None
            boundary = Boundary(metrics, gate, audit, pools, settings.log_calls, tracing)
            self._grpc = _grpc_server(settings, boundary)
            batcher = _batcher(settings, metrics)
            uploaded = data_dir / "datasets" / stored.FOLDER
            datasets = Datasets(uploaded, _quota(settings), _LIMITS, store.learning_from, metrics.datasets)
            stack.callback(datasets.close)
            metrics.datasets.count(datasets.counts)
            planner = Planner(data_dir / "datasets")
            stack.callback(planner.close)
            training = TrainingServicer(store, planner, self._scheduler, datasets, settings.max_owner_jobs)
            training_pb2_grpc.add_TrainingServiceServicer_to_server(training, self._grpc)
            studies_pb2_grpc.add_StudyServiceServicer_to_server(
                StudyServicer(
                    studies,
                    planner,
                    self._scheduler,
                    datasets,
                    max_owner_jobs=settings.max_owner_jobs,
                    max_trials=settings.max_study_trials,
                ),
                self._grpc,
            )
            models_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(registry), self._grpc)
            datasets_pb2_grpc.add_DatasetServiceServicer_to_server(
                DatasetServicer(datasets, metrics.datasets), self._grpc
            )
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(sessions, batcher), self._grpc)
            add_oip(self._grpc, sessions, batcher, ready=lambda: not self._draining.is_set())
            self._health.add_to(self._grpc)
            add_reflection(self._grpc, SERVICES)
            try:
                http = MetricsServer(
                    settings.metrics_host, settings.metrics_port, metrics.registry, lambda: not self._draining.is_set()
                )
                stack.callback(http.close)
                port = _listen(self._grpc, settings)
            except BadCertificate as error:
                raise CannotStart(str(error)) from error
            except (OSError, RuntimeError) as error:
                raise CannotStart(f"a port cannot be listened on: {error}") from error
            self.address = f"{_in_url(settings.host)}:{port}"
            self.metrics_url = f"http://{_in_url(settings.metrics_host)}:{http.port}/metrics"
            try:
                self._scheduler.start()
            except (DatabaseUnavailable, StorageFull) as error:
                raise CannotStart(str(error)) from error
            expiry.start()
            stack.callback(expiry.close)
            self._grpc.start()
            self._stack = stack.pop_all()

    def stop(self) -> bool:
        """Drain: no new jobs, running ones to their next marker and back into the queue; then end.

        False if a prediction still runs, in a library that does not come back: its thread would keep the process.
        """
        log.info("draining for at most %g s", max(self._settings.drain_s, self._settings.pre_stop_s))
        seen_s = time.monotonic() + self._settings.pre_stop_s
        self._draining.set()
        self._health.drain()
        self._scheduler.drain(self._settings.drain_s)
        time.sleep(max(seen_s - time.monotonic(), 0))  # calls are answered meanwhile
        self._grpc.stop(min(_LONGEST_CALL_S, self._settings.drain_s)).wait()
        self._stack.close()
        return not self._predictions.open_calls


def _tracing(settings: Settings) -> Tracing:
    try:
        return tracing_to(settings.trace_endpoint)
    except NoTracing as error:
        raise CannotStart(str(error)) from error


def _quota(settings: Settings) -> Quota:
    return Quota(
        upload_bytes=settings.max_dataset_mb * 2**20,
        owner_bytes=settings.max_owner_datasets_mb * 2**20,
        total_bytes=settings.max_datasets_mb * 2**20,
        abandoned_after_s=settings.keep_uploads_h * 3600,
    )


def _batcher(settings: Settings, metrics: Metrics) -> Batcher:
    budget = Budget(settings.max_predictions, _MAX_QUEUED_ROWS, settings.max_predictions_mb * 2**20)
    return Batcher(metrics, budget, parallel=usable_cores(), delay_s=settings.batch_delay_ms / 1000)


def _capacity(settings: Settings) -> Capacity:
    return Capacity(
        jobs=settings.max_jobs,
        threads=settings.job_threads or usable_cores(),
        device_jobs=settings.device_jobs,
        owner_jobs=settings.max_owner_running,
        owner_threads=settings.max_owner_threads,
        ray_addresses=frozenset(settings.ray_address),
    )


def _grpc_server(settings: Settings, boundary: Boundary) -> grpc.Server:
    size_bytes = settings.max_message_mb * 2**20
    return grpc.server(
        ThreadPoolExecutor(settings.threads, thread_name_prefix="call"),
        interceptors=[boundary],
        maximum_concurrent_rpcs=settings.max_calls,
        options=[
            ("grpc.so_reuseport", 0),  # else a second server on the port would start, and take every other call
            ("grpc.max_concurrent_streams", settings.max_streams),
            ("grpc.max_receive_message_length", size_bytes),
            ("grpc.max_send_message_length", size_bytes),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            *_connection_age(settings),
        ],
    )


def _connection_age(settings: Settings) -> list[tuple[str, int]]:
    """Clients that connect anew spread over servers that were added since; streams are given time to end."""
    if not settings.max_connection_age_s:
        return []
    return [
        ("grpc.max_connection_age_ms", round(1000 * settings.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", round(1000 * _LONGEST_CALL_S)),
    ]


def _listen(server: grpc.Server, settings: Settings) -> int:
    """The port that `server` answers on. Raises BadCertificate, RuntimeError."""
    address = f"{_in_url(settings.host)}:{settings.port}"
    if settings.tls_cert and settings.tls_key:
        certificates = Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        return server.add_secure_port(address, certificates.credentials())
    return server.add_insecure_port(address)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _job_store(settings: Settings, data_dir: Path, overtaken: Callable[[], None], metrics: Metrics) -> Store:
    """Raises CannotStart."""
    where: Path | sa.URL = data_dir / "bll.db"
    if settings.database_url:
        try:
            where = sa.make_url(settings.database_url.get_secret_value())
        except (sa.exc.ArgumentError, ValueError):  # whose text may have the password in it
            raise CannotStart("database_url cannot be read: special characters in it must be %-encoded") from None
    try:
        return Store(where, overtaken, metrics)
    except (CannotOpen, DatabaseUnavailable, StorageFull) as error:
        raise CannotStart(str(error)) from error


def _locked(data_dir: Path) -> IO[str]:
    """A file that holds the directory for this process until it is closed. Raises CannotStart."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = (data_dir / "lock").open("w")
    except OSError as error:
        raise CannotStart(f"the data directory cannot be used: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise CannotStart(f"the data directory {data_dir} is in use by another server") from error
    return file
