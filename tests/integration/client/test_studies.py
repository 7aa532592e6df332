"""Studies: both clients and the command line, against a real server with canned answers."""

from __future__ import annotations

import json
import re
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from google.protobuf import json_format
from google.rpc import code_pb2

import bll_client
from bll_client import JobState, ParameterRange, ParameterScale, StudyMetric, StudyState
from bll_client.cli import main
from bll_client.cli.exits import ExitCode
from bll_proto.v1 import studies_pb2

from .canned_server import SPEC, UNAVAILABLE, CannedServer, rich_status
from .canned_studies import State, study

BASE = {name: value for name, value in SPEC.items() if name != "model_id"}
SOON = timedelta(milliseconds=1)
FILE = {
    "base": BASE,
    "parameters": {"blocks.num_blocks": [1, 2], "optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "scale": "log"}},
    "num_trials": 2,
    "seed": 3,
    "metric": "accuracy",
    "max_parallel_trials": 1,
}
RUNNING, SUCCEEDED = State.STUDY_STATE_RUNNING, State.STUDY_STATE_SUCCEEDED


def created(server: CannedServer) -> dict[str, Any]:
    """The study of the one request that came, as JSON has it."""
    (request,) = server.sent(studies_pb2.CreateStudyRequest)
    found: dict[str, Any] = json_format.MessageToDict(request.study, preserving_proto_field_name=True)
    return found


SENT = {
    "base": {"spec": {"data": {"name": "digits"}, "epochs": 2, "batch_size": 100}, "labels": {"team": "x"}},
    "parameters": [
        {"field": "blocks.num_blocks", "values": [1.0, 2.0]},
        {
            "field": "optimizer.learning_rate",
            "range": {"low": 1e-4, "high": 1e-2, "scale": "PARAMETER_SCALE_LOG"},
        },
    ],
    "num_trials": 2,
    "seed": "3",
    "metric": "STUDY_METRIC_ACCURACY",
    "max_parallel_trials": 1,
}


def test_a_study_is_created_from_mappings_lists_and_ranges(client: Any, server: CannedServer) -> None:
    parameters = {
        "blocks.num_blocks": [1, 2],
        "optimizer.learning_rate": ParameterRange(1e-4, 1e-2, ParameterScale.LOG),
    }
    answer = client.create_study(
        BASE, parameters, study_id="sweep", num_trials=2, seed=3, metric="accuracy", max_parallel_trials=1,
        labels={"team": "x"},
    )  # fmt: skip
    assert created(server) == SENT
    (request,) = server.sent(studies_pb2.CreateStudyRequest)
    assert (request.study_id, request.validate_only) == ("sweep", False)
    assert str(uuid.UUID(request.request_id)) == request.request_id
    assert (answer.name, answer.state, answer.metric) == ("studies/sweep", StudyState.QUEUED, StudyMetric.ACCURACY)
    assert answer.parameters[0].values == (1, 2)
    assert answer.parameters[1].range == ParameterRange(1e-4, 1e-2, ParameterScale.LOG)
    assert answer.base.spec == {"epochs": 2}


def test_numbers_of_numpy_lists_texts_and_flags_are_values(client: Any, server: CannedServer) -> None:
    values = {
        "seed": [np.int64(2), 2**53 - 1],
        "mixing.start": list(np.linspace(0, 1, 2)),
        "network.widths": [(8, 8), [16]],
        "latent.family": ["bernoulli"],
        "executor.pin_cpus": [True, False],
    }
    client.create_study({}, values)
    assert {parameter["field"]: parameter["values"] for parameter in created(server)["parameters"]} == {
        "seed": [2, 2**53 - 1],
        "mixing.start": [0, 1],
        "network.widths": [[8, 8], [16]],
        "latent.family": ["bernoulli"],
        "executor.pin_cpus": [True, False],
    }


def test_everything_that_is_wrong_is_named_and_nothing_is_sent(client: Any, server: CannedServer) -> None:
    wrong: dict[str, Any] = {"a": 7, "b": "text", "c": [2**53], "d": [float("nan"), None], "e": {"from": 1, "low": "x"}}
    with pytest.raises(bll_client.InvalidSpec) as caught:
        client.create_study({"epoch": 1}, wrong, metric="speed", num_trials="many")
    assert {violation.field for violation in caught.value.violations} == {
        "base.epoch", "parameters.a", "parameters.b", "parameters.c[0]", "parameters.d[0]", "parameters.d[1]",
        "parameters.e.from", "parameters.e.low", "metric", "num_trials",
    }  # fmt: skip
    with pytest.raises(bll_client.InvalidSpec, match="parameters: must hold a list of values or a range"):
        client.create_study({}, ["epochs"])
    assert not server.requests


def test_a_study_is_read_with_its_comparison(client: Any, server: CannedServer) -> None:
    found = client.get_study("sweep")
    assert found == client.get_study("studies/sweep")
    assert (found.state, found.best_trial, found.best_model_version) == (
        StudyState.SUCCEEDED,
        0,
        "models/sweep-0/versions/1",
    )
    first, second = found.trials
    assert first.parameters == {"blocks.num_blocks": 1, "optimizer.learning_rate": 0.0025}
    assert (first.validation.nll_nats, first.test.accuracy, first.progress.total_steps) == (0.25, 0.9, 20)
    assert (second.state, second.state_reason, second.validation) == (JobState.FAILED, "the loss is nan", None)
    assert (found.counts.total, found.counts.succeeded, found.counts.failed) == (2, 1, 1)


def test_studies_are_listed_cancelled_and_deleted(client: Any, server: CannedServer) -> None:
    listed = list(client.list_studies())
    assert [found.name for found in listed] == ["studies/s0", "studies/s1", "studies/s2"]
    assert {(found.base, found.trials) for found in listed} == {(None, ())}
    assert client.cancel_study("sweep").state is StudyState.CANCELLED
    assert client.delete_study("sweep") is None
    assert [request.name for request in server.sent(studies_pb2.DeleteStudyRequest)] == ["studies/sweep"]


def test_a_watched_study_is_told_each_time_that_it_has_changed_until_it_is_over(
    client: Any, server: CannedServer
) -> None:
    server.studies.answers = [study(RUNNING, 5), study(RUNNING, 5), study(RUNNING, 9), study(SUCCEEDED)]
    server.failures["GetStudy"] = [UNAVAILABLE] * 5  # more than one call tries by itself
    seen = list(client.watch_study("sweep", interval=SOON))
    assert [(found.state, found.trials[1].progress.step) for found in seen] == [
        (StudyState.RUNNING, 5),
        (StudyState.RUNNING, 9),
        (StudyState.SUCCEEDED, 20),
    ]
    assert client.wait_for_study("sweep").state is StudyState.SUCCEEDED


def test_a_watcher_gives_up_at_its_time_or_at_what_will_not_change(client: Any, server: CannedServer) -> None:
    server.studies.answers = [study(RUNNING, 5)]
    with pytest.raises(bll_client.DeadlineExceeded, match="studies/sweep was not over within"):
        list(client.watch_study("sweep", interval=SOON, timeout=timedelta(seconds=0.2)))
    server.failures["GetStudy"] = [rich_status(code_pb2.NOT_FOUND, "no study")]
    with pytest.raises(bll_client.NotFound):
        client.wait_for_study("sweep")


@pytest.fixture
def canned(server: CannedServer, monkeypatch: pytest.MonkeyPatch) -> CannedServer:
    """The command finds the server through the environment."""
    monkeypatch.setenv("BLL_SERVER", server.target)
    return server


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(FILE))
    return str(path)


def test_the_command_creates_a_study_from_a_file(
    canned: CannedServer, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "create", file, "--id", "sweep", "--label", "team=x"]) == ExitCode.OK
    assert created(canned) == SENT
    out = capfd.readouterr().out
    assert re.search(r"^name +studies/sweep *$", out, re.MULTILINE)


def test_the_comparison_is_a_table_in_which_the_best_is_marked(
    canned: CannedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "get", "sweep"]) == ExitCode.OK
    out = capfd.readouterr().out
    assert re.search(r"^best +trial 0, by accuracy on validation rows *$", out, re.MULTILINE)
    assert re.search(r"^trials +2: 1 succeeded, 1 failed *$", out, re.MULTILINE)
    assert re.search(r"trial +blocks\.num_blocks +optimizer\.learning_rate +state", out)
    assert re.search(
        r"^\* +0 +1 +0\.0025 +succeeded +20/20 +0\.9000 +0\.2500 +0\.0100 +123 +0\.9000 +sweep-0/versions/1",
        out,
        re.MULTILINE,
    )
    assert re.search(r"^ +1 +2 +0\.0025 +failed +20/20", out, re.MULTILINE)
    assert main(["study", "get", "sweep", "-o", "json"]) == ExitCode.OK
    assert json.loads(capfd.readouterr().out)["trials"][1]["state"] == "failed"


def test_a_preview_shows_parameters_alone(canned: CannedServer, file: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "create", file, "--validate-only", "--watch"]) == ExitCode.OK
    out = capfd.readouterr().out
    assert re.search(r"^ +1 +2 +0\.0025 *$", out, re.MULTILINE)
    assert "state" not in out


def test_watching_tells_of_every_change_and_ends_with_the_comparison(
    canned: CannedServer, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    canned.studies.answers = [study(RUNNING, 5), study(SUCCEEDED)]
    assert main(["study", "create", file, "--watch"]) == ExitCode.OK
    out = capfd.readouterr().out
    told = [line for line in out.splitlines() if line.startswith("trial ")]
    assert [line.split(":")[0] for line in told] == ["trial 0 succeeded", "trial 1 running", "trial 1 failed"]
    assert "(the loss is nan)" in told[2]
    assert re.search(r"^\* +0 ", out, re.MULTILINE)


def test_watching_in_json_prints_the_study_on_a_line_each_time_that_it_has_changed(
    canned: CannedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    failed = study(SUCCEEDED)
    failed.state = State.STUDY_STATE_FAILED
    canned.studies.answers = [study(RUNNING, 5), study(RUNNING, 5), failed]
    assert main(["study", "watch", "sweep", "-o", "json"]) == ExitCode.JOB_FAILED
    documents = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [document["state"] for document in documents] == ["running", "failed"]


def test_watching_on_a_terminal_redraws_the_comparison(
    canned: CannedServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "160"}.items():
        monkeypatch.setenv(name, value)
    canned.studies.answers = [study(RUNNING, 5), study(RUNNING, 5), study(SUCCEEDED)]
    assert main(["study", "watch", "sweep"]) == ExitCode.OK
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().out)
    assert "studies/sweep running · 2: 1 running, 1 succeeded · best so far: trial 0" in out
    assert re.search(r"1 +2 +0\.0025 +running +5/20", out)


def test_lists_and_ends_of_studies_on_the_command_line(canned: CannedServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "list", "--limit", "2"]) == ExitCode.OK
    assert re.search(r"^s1 +running +2: 1 running, 1 succeeded +20", capfd.readouterr().out, re.MULTILINE)
    assert main(["study", "cancel", "sweep"]) == ExitCode.OK
    assert re.search(r"^state +cancelled", capfd.readouterr().out, re.MULTILINE)
    assert main(["study", "delete", "sweep", "other"]) == ExitCode.OK
    assert len(canned.sent(studies_pb2.DeleteStudyRequest)) == 2


def test_a_file_that_is_no_study_is_refused_by_field(
    canned: CannedServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("parameter: {}\nbase: {}\n")
    assert main(["study", "create", str(path)]) == ExitCode.USAGE
    err = capfd.readouterr().err
    assert "bll: parameter: is not a field; those of a study are base, parameters, num_trials" in err
    assert "bll: parameters: must be present" in err
    assert not canned.requests
