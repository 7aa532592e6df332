"""Loaded models: the graph of one version behind `infer`, and the sessions that are kept."""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
import time
from typing import Any

import numpy as np

from bll.errors import ExportError, Violation
from bll.manifest import MODEL_FILE, read_manifest
from bll_server.errors import InvalidRequest, ModelNotReady
from bll_server.metrics import Metrics
from bll_server.models.registry import Registry, Version

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]

LOG_ERRORS_ONLY = 3
"""onnxruntime's warnings are about its own optimiser."""


class ModelSession:
    """One version, loaded. Safe to use from any thread; calls run side by side."""

    def __init__(self, version: Version, metrics: Metrics, *, threads: int, max_rows: int) -> None:
        """Load and warm up. Raises ExportError if the files are damaged."""
        import onnxruntime  # 0.2 s and 50 MiB, which a server without models does not pay

        read_manifest(version.directory)
        self.version = version
        (self.input,) = version.manifest.inputs
        self.outputs = version.manifest.outputs
        self.output_names = [output.name for output in self.outputs]
        self._dtype = np.dtype(self.input.dtype)
        self._row_shape = self.input.shape[1:]
        self._max_rows = max_rows
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = LOG_ERRORS_ONLY
        # Waiting threads would spin on cores that training needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            version.directory / MODEL_FILE, sess_options=options, providers=providers()
        )
        # The first run allocates and, on a GPU, compiles.
        self._run(np.zeros((1, *self._row_shape), self._dtype))
        self._metrics = metrics
        self._labels = (version.model, str(version.number))
        self.request_seconds = metrics.inference.request_seconds.labels(*self._labels)
        self._compute_seconds = metrics.inference.compute_seconds.labels(*self._labels)
        self._batch_rows = metrics.inference.batch_rows.labels(*self._labels)

    def infer(self, rows: Array) -> dict[str, Array]:
        """Every output of the graph for `rows`, which have passed `check`.

        Raises InvalidRequest if they are finite, but so large that the network overflows on them.
        """
        started = time.perf_counter()
        outputs = self._run(rows)
        if not np.isfinite(outputs["probabilities"]).all():
            largest = np.abs(rows).max()
            raise InvalidRequest(Violation("input", f"must not overflow the network, got values up to {largest:g}"))
        self._compute_seconds.observe(time.perf_counter() - started)
        self._batch_rows.observe(len(rows))
        self._metrics.inference.entropy.observe(self._labels, outputs["entropy"])
        self._metrics.inference.variance.observe(self._labels, outputs["posterior_variance"])
        return outputs

    def _run(self, rows: Array) -> dict[str, Array]:
        arrays = self._session.run(self.output_names, {self.input.name: rows})
        return dict(zip(self.output_names, arrays, strict=True))

    def check(self, rows: Array, *, dtype: str, shape: str, data: str) -> None:
        """Raises InvalidRequest if the graph cannot take `rows`; the keywords are the fields that they came in."""
        if rows.dtype != self._dtype:
            raise InvalidRequest(Violation(dtype, f"must be {self._dtype.name}, got {rows.dtype.name}"))
        if rows.ndim == 0 or rows.shape[1:] != self._row_shape:
            expected = ", ".join(["rows", *map(str, self._row_shape)])
            raise InvalidRequest(Violation(shape, f"must be [{expected}], got {list(rows.shape)}"))
        if not 1 <= len(rows) <= self._max_rows:
            raise InvalidRequest(Violation(shape, f"must have between 1 and {self._max_rows} rows, got {len(rows)}"))
        finite = np.isfinite(rows)
        if not finite.all():
            index = np.unravel_index(int(finite.argmin()), rows.shape)
            place = [int(i) for i in index]
            raise InvalidRequest(Violation(data, f"must be finite, got {rows[index]} at {place}"))


class Sessions:
    """The loaded versions of a registry, each loaded when it is first asked for. Safe to use from any thread."""

    def __init__(self, registry: Registry, metrics: Metrics, *, threads: int = 1, max_rows: int = 4096) -> None:
        """`threads` work on one call; calls run side by side on the threads of the server, so 1 serves many clients."""
        self.registry = registry
        self._metrics = metrics
        self._threads = threads
        self._max_rows = max_rows
        self._loading = threading.Lock()
        self._sessions: dict[tuple[str, int], ModelSession] = {}

    def get(self, model: str, number: int | None = None) -> ModelSession:
        """The session of one version, by default of the newest that is sound. Raises NotFound, ModelNotReady."""
        while True:
            version = self.registry.version(model, number)
            session = self._sessions.get((model, version.number)) or self._load(version)
            if session is not None:
                return session

    def _load(self, version: Version) -> ModelSession | None:
        """The session of `version`; None if it was damaged, and is now withdrawn."""
        with self._loading:
            key = (version.model, version.number)
            if key in self._sessions:
                return self._sessions[key]
            try:
                session = ModelSession(version, self._metrics, threads=self._threads, max_rows=self._max_rows)
            except ExportError as error:
                self.registry.withdraw(version, str(error))
                return None
            except Exception as error:
                logger.exception("%s does not load", version.name)
                raise ModelNotReady(f"{version.name} does not load") from error
            self._sessions[key] = session
            return session


@functools.cache
def providers() -> list[str]:
    """The execution providers to ask onnxruntime for: CUDA where it would start, and the CPU.

    onnxruntime logs an error when it is asked for CUDA on a machine that lacks a library, so we look first.
    """
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or not _loads("libcuda.so.1"):
        return ["CPUExecutionProvider"]
    onnxruntime.preload_dlls()  # finds CUDA in nvidia's Python packages too
    major = onnxruntime.cuda_version.split(".")[0]
    missing = [
        name for name in (f"libcudart.so.{major}", f"libcublasLt.so.{major}", "libcudnn.so.9") if not _loads(name)
    ]
    if missing:
        logger.warning("models run on the CPU: there is a GPU, but not %s", ", ".join(missing))
        return ["CPUExecutionProvider"]
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
