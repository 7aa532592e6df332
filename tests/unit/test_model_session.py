"""Loaded models: what is kept, what is refused, and what happens to damaged ones."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bll.manifest import MODEL_FILE, Manifest, file_digest, read_manifest
from bll_server.errors import InvalidRequest, ModelNotReady, NotFound
from bll_server.metrics import Metrics
from bll_server.models import session as session_module
from bll_server.models.registry import Registry
from bll_server.models.session import ModelSession, Sessions, providers


@pytest.fixture
def registry(export_model: Callable[..., Manifest], tmp_path: Path) -> Registry:
    """`digits` has versions 1 and 2."""
    registry = Registry(tmp_path / "models")
    for i in range(2):
        export_model(tmp_path / "staging", seed=i)
        registry.publish("digits", tmp_path / "staging", f"jobs/{i}")
    return registry


@pytest.fixture
def sessions(registry: Registry) -> Sessions:
    return Sessions(registry, Metrics(), max_rows=8)


def test_every_output_of_the_manifest_comes_back_in_its_shape(sessions: Sessions) -> None:
    session = sessions.get("digits")
    outputs = session.infer(np.ones((5, 4), np.float32))
    expected = {info.name: (5, *info.shape[1:]) for info in session.version.manifest.outputs}
    assert {name: array.shape for name, array in outputs.items()} == expected
    assert {array.dtype for array in outputs.values()} == {np.dtype(np.float32)}


def test_finite_input_that_overflows_the_network_is_the_callers_error(sessions: Sessions) -> None:
    rows = np.full((1, 4), np.finfo(np.float32).max, np.float32)
    with pytest.raises(InvalidRequest, match=r"input: must not overflow the network, got values up to 3\.4"):
        sessions.get("digits").infer(rows)


def test_session_is_loaded_once_however_many_ask_at_the_same_time(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    barrier = threading.Barrier(4)
    load = onnxruntime.InferenceSession

    def counted(*args: object, **kwargs: object) -> object:
        loads.append(args)
        return load(*args, **kwargs)

    def ask(_: int) -> ModelSession:
        barrier.wait(10)
        return sessions.get("digits")

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(ask, range(4)))
    assert len(found) == len(loads) == 1


def test_version_published_later_is_the_newest_at_once(
    sessions: Sessions, registry: Registry, export_model: Callable[..., Manifest], tmp_path: Path
) -> None:
    assert sessions.get("digits").version.number == 2
    export_model(tmp_path / "staging", seed=3)
    registry.publish("digits", tmp_path / "staging", "jobs/3")
    assert sessions.get("digits").version.number == 3
    assert sessions.get("digits", 2).version.number == 2


def test_version_whose_digest_differs_is_withdrawn_and_the_one_before_answers(
    sessions: Sessions, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    path = registry.version("digits", 2).directory / MODEL_FILE
    path.write_bytes(path.read_bytes() + b"x")
    assert sessions.get("digits").version.number == 1
    assert "models/digits/versions/2 is damaged and not served" in caplog.text
    with pytest.raises(NotFound, match="models/digits has no version 2"):
        sessions.get("digits", 2)


def test_model_with_no_sound_version_left_is_not_found(sessions: Sessions, registry: Registry) -> None:
    for version in registry.versions("digits"):
        (version.directory / MODEL_FILE).unlink()
    with pytest.raises(NotFound, match="there is no model 'digits'"):
        sessions.get("digits")
    assert not registry.models()


def test_graph_that_onnxruntime_refuses_is_not_ready_and_its_trace_is_logged(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    directory = registry.version("digits", 2).directory
    (directory / MODEL_FILE).write_bytes(b"no graph")
    manifest = (directory / "manifest.json").read_text()
    old = read_manifest(directory, check_digest=False).model_digest
    (directory / "manifest.json").write_text(manifest.replace(old, file_digest(directory / MODEL_FILE)))
    sessions = Sessions(registry, Metrics())
    with pytest.raises(ModelNotReady, match="models/digits/versions/2 does not load"):
        sessions.get("digits")
    assert any(record.exc_info for record in caplog.records)
    assert sessions.get("digits", 1).version.number == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((1, 4)), "d: must be float32, got float64"),
        (np.zeros((2, 5), np.float32), r"s: must be \[rows, 4\], got \[2, 5\]"),
        (np.zeros(4, np.float32), r"s: must be \[rows, 4\], got \[4\]"),
        (np.zeros((0, 4), np.float32), "s: must have between 1 and 8 rows, got 0"),
        (np.zeros((9, 4), np.float32), "s: must have between 1 and 8 rows, got 9"),
        (np.array([[0, 1, np.nan, np.inf]], np.float32), r"v: must be finite, got nan at \[0, 2\]"),
    ],
)
def test_rows_that_the_graph_cannot_take_are_refused_under_their_field(
    sessions: Sessions, rows: np.ndarray, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        sessions.get("digits").check(rows, dtype="d", shape="s", data="v")


def test_cuda_is_asked_for_only_where_its_libraries_load(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def with_libraries(*missing: str) -> list[str]:
        monkeypatch.setattr(session_module, "_loads", lambda name: not name.startswith(missing))
        return providers.__wrapped__()

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0")
    assert with_libraries("none") == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert with_libraries("libcuda.so") == ["CPUExecutionProvider"]
    assert not caplog.records, "a machine without a GPU is no news"
    assert with_libraries("libcudnn.so") == ["CPUExecutionProvider"]
    assert caplog.messages == ["models run on the CPU: there is a GPU, but not libcudnn.so.9"]


def test_onnxruntime_is_imported_only_to_load_a_model_and_torch_never(registry: Registry, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from bll_server.metrics import Metrics
from bll_server.models.registry import Registry
from bll_server.models.session import Sessions
from bll_server.services import inference, models, oip
sessions = Sessions(Registry(Path({str(tmp_path / "models")!r})), Metrics())
assert "onnxruntime" not in sys.modules
sessions.get("digits")
assert "onnxruntime" in sys.modules
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
