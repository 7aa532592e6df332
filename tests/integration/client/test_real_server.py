"""Both clients against the real server, which trains a small job."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bll_client
from bll_client import BlockDiagnostics, BlockProgress, BlocksPlaced, CheckpointSaved, Evaluation, JobState, StateChange
from bll_server.app import Server
from bll_server.settings import Settings

SPEC = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [16, 16]},
    "blocks": {"num_blocks": 2},
    "executor": {"name": "sequential"},
    "epochs": 2,
}
LONG_ENOUGH = timedelta(seconds=90)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a real server answers, which has been given the job `small`."""
    data_dir = tmp_path_factory.mktemp("bll")
    flags = ["--port", "0", "--metrics-port", "0", "--data-dir", str(data_dir), "--drain-s", "5"]
    server = Server(Settings.from_flags(flags))
    with bll_client.Client(server.address, timeout=LONG_ENOUGH) as client:
        client.create_job(SPEC, job_id="small")
    yield server.address
    server.stop()


@pytest.fixture
def real(connect: Callable[..., Any], address: str) -> Iterator[Any]:
    with connect(address, timeout=LONG_ENOUGH) as client:
        yield client


@pytest.fixture
def trained(real: Any) -> Any:
    """The job `small` in its final state."""
    return real.wait_for_job("small", timeout=LONG_ENOUGH)


def test_a_job_is_resolved_trained_evaluated_and_published(real: Any, trained: Any) -> None:
    assert trained.state is JobState.SUCCEEDED, trained.error
    assert trained.spec == SPEC
    assert trained.resolved_spec["latent"]["family"] == "bernoulli"
    assert trained.model_version == "models/small/versions/1"
    assert len(trained.test.exits) == 2
    assert "jobs/small" in [job.name for job in real.list_jobs()]


def test_all_events_of_a_job_can_be_watched_after_it(real: Any, trained: Any) -> None:
    events = list(real.watch_job("small"))
    assert [event.number for event in events] == list(range(1, trained.last_event + 1))
    assert {type(event.event) for event in events} == {
        StateChange,
        BlocksPlaced,
        BlockProgress,
        BlockDiagnostics,
        Evaluation,
        CheckpointSaved,
    }
    assert list(real.watch_job("small", trained.last_event)) == []


def test_a_resolved_spec_comes_to_the_same_plan_again(real: Any, trained: Any) -> None:
    assert real.create_job(trained.resolved_spec, validate_only=True).plan == trained.plan


def test_a_job_that_has_succeeded_cannot_be_cancelled(real: Any, trained: Any) -> None:
    with pytest.raises(bll_client.FailedPrecondition) as caught:
        real.cancel_job("small")
    assert caught.value.reason == "JOB_STATE"


def test_the_published_model_predicts(real: Any, trained: Any) -> None:
    prediction = real.predict(trained.model_version, np.zeros((3, 1, 8, 8), np.float32), "product")
    assert prediction.exit_probabilities.shape == (3, 2, 10)
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "words"), [(np.zeros((2, 5), np.float32), "shape"), (np.full((1, 1, 8, 8), np.nan, np.float32), "nan")]
)
def test_an_input_that_does_not_fit_is_refused(real: Any, trained: Any, inputs: Any, words: str) -> None:
    with pytest.raises(bll_client.InvalidArgument, match=words):
        real.predict("small", inputs)


def test_the_published_model_is_downloaded_as_it_is_described(real: Any, trained: Any, tmp_path: Path) -> None:
    model, manifest = sorted(real.download_model("small", tmp_path / "model"), reverse=True)
    (version,) = real.get_model("small").versions
    assert model.stat().st_size == version.size_bytes
    assert json.loads(manifest.read_text())["model_digest"] == version.model_digest
    assert version.resolved_spec == trained.resolved_spec
    assert "models/small" in [listed.name for listed in real.list_models()]


def test_the_servers_refusals_name_field_rule_and_value(real: Any) -> None:
    with pytest.raises(bll_client.InvalidArgument) as caught:
        real.create_job({**SPEC, "epochs": 0, "latent": {"units": -3}})
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert {str(violation) for violation in caught.value.violations} == {
        "job.spec.epochs: must be a whole number between 1 and 100000, got 0",
        "job.spec.latent.units: must be a whole number between 1 and 65536, got -3",
    }


def test_a_request_id_makes_creation_safe_to_repeat(real: Any) -> None:
    request_id = str(uuid.uuid4())
    first = real.create_job(SPEC, request_id=request_id)
    assert real.create_job(SPEC, request_id=request_id).name == first.name
    with pytest.raises(bll_client.AlreadyExists) as caught:
        real.create_job({**SPEC, "epochs": 3}, request_id=request_id)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert real.cancel_job(first.name).state in (JobState.CANCELLING, JobState.CANCELLED)


def test_a_cancelled_job_ends_its_watch(real: Any, request: pytest.FixtureRequest) -> None:
    job_id = f"cancelled-{request.node.callspec.id}"
    real.create_job({**SPEC, "epochs": 100_000}, job_id=job_id)
    for event in real.watch_job(job_id, timeout=LONG_ENOUGH):
        if isinstance(event.event, BlockProgress):
            break
    real.cancel_job(job_id)
    assert real.wait_for_job(job_id, timeout=LONG_ENOUGH).state is JobState.CANCELLED
