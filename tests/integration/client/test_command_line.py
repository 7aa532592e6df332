"""The `bll` command against a real server with canned answers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from google.rpc import code_pb2, error_details_pb2

from bll_client import JobState, cli
from bll_client.cli import main
from bll_client.cli.exits import ExitCode
from bll_proto import tensors
from bll_proto.v1 import inference_pb2, training_pb2

from .canned_server import SPEC, CannedServer, State, chunks, job, rich_status, run_events

BLL = [sys.executable, "-c", "import sys; from bll_client.cli import main; sys.exit(main())"]


@pytest.fixture
def canned(server: CannedServer, monkeypatch: pytest.MonkeyPatch) -> CannedServer:
    """The server with one job and its events; the command finds it through the environment."""
    monkeypatch.setenv("BLL_SERVER", server.target)
    server.jobs["jobs/one"] = job("jobs/one")
    server.events = run_events()
    return server


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return str(path)


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_train_prints_a_line_for_each_event_and_succeeds(
    canned: CannedServer, spec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", spec, "--job-id", "demo"]) == ExitCode.OK
    out = capfd.readouterr().out
    assert "warning: few rows\njobs/demo: 2 blocks\n" in out
    assert re.search(r"block 1 epoch 0 step 10: loss 1\.5000, accuracy 0\.5000, .*100 samples/s, waited 0\.2 s", out)
    assert "validation epoch 1 step 20: accuracy 0.9000" in out
    assert re.search(r"^state +succeeded", out, re.MULTILINE)
    assert "\x1b" not in out


@pytest.mark.parametrize("final", [State.JOB_STATE_FAILED, State.JOB_STATE_CANCELLED])
def test_the_exit_code_of_a_watched_job_is_its_outcome(
    canned: CannedServer, spec: str, final: training_pb2.JobState.ValueType, capfd: pytest.CaptureFixture[str]
) -> None:
    canned.events = run_events(final)
    assert main(["train", spec]) == ExitCode.JOB_FAILED
    assert main(["jobs", "watch", "one"]) == ExitCode.JOB_FAILED
    assert "block 1: died" in capfd.readouterr().out


def test_train_can_detach(canned: CannedServer, spec: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", spec, "--detach", "-o", "json"]) == ExitCode.OK
    assert json.loads(capfd.readouterr().out)["name"] == "jobs/chosen"
    assert not canned.sent(training_pb2.WatchJobRequest)


def test_train_can_validate_only(canned: CannedServer, spec: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", spec, "--validate-only"]) == ExitCode.OK
    assert "dense 8" in capfd.readouterr().out
    assert canned.sent(training_pb2.CreateJobRequest)[0].validate_only
    assert list(canned.jobs) == ["jobs/one"]


def test_watching_in_json_prints_a_document_on_each_line_and_the_job_last(
    canned: CannedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["jobs", "watch", "one", "--after", "2", "-o", "json"]) == ExitCode.OK
    documents = lines(capfd.readouterr().out)
    kinds = [document["kind"] for document in documents]
    assert kinds == ["BlockProgress", "BlockProgress", "Evaluation", "CheckpointSaved", "StateChange", "Job"]
    assert [document["number"] for document in documents[:-1]] == [3, 4, 5, 6, 7]
    assert documents[0]["wait"] == 0.25
    assert documents[-1]["state"] == JobState.SUCCEEDED


def test_watching_on_a_terminal_draws_a_bar_for_each_block(
    canned: CannedServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["jobs", "watch", "one"]) == ExitCode.OK
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().out)
    assert re.search(r"jobs/one succeeded · validation accuracy 0\.9000", out)
    for block in "01":
        assert re.search(rf"{block} +[━╺╸]+ +10/20 +1\.5000 +0\.5000 +0\.2000 +100 +0\.2 s", out)


def test_lists_and_single_things_are_shown_as_tables(canned: CannedServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "list"]) == main(["jobs", "get", "one"]) == ExitCode.OK
    assert main(["models", "list"]) == main(["models", "get", "fashion"]) == ExitCode.OK
    assert main(["jobs", "cancel", "one"]) == ExitCode.OK
    out = capfd.readouterr().out
    assert re.search(r"^one +queued +fashion +20", out, re.MULTILINE)
    assert re.search(r"^fashion/versions/2 +2 +2 +0\.9000 +1234 +20", out, re.MULTILINE)
    assert re.search(r"^state +cancelled", out, re.MULTILINE)


@pytest.mark.parametrize(("verb", "state"), [("pause", "paused"), ("resume", "queued"), ("retry", "queued")])
def test_a_job_is_paused_resumed_and_retried_by_its_verb(
    canned: CannedServer, verb: str, state: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["jobs", verb, "one"]) == ExitCode.OK
    assert re.search(rf"^state +{state}", capfd.readouterr().out, re.MULTILINE)
    assert type(canned.requests[-1]).__name__ == f"{verb.capitalize()}JobRequest"


def test_labels_are_added_and_removed_and_what_came_in_between_is_not_overwritten(
    canned: CannedServer, spec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["train", spec, "--detach", "--label", "team=x", "--label", "stage=a", "--priority", "2"]) == ExitCode.OK
    )
    created = canned.sent(training_pb2.CreateJobRequest)[0].job
    assert (dict(created.labels), created.priority) == ({"team": "x", "stage": "a"}, 2)
    canned.jobs["jobs/one"].labels.update({"team": "x", "stage": "a"})
    canned.jobs["jobs/one"].etag = "seen"
    assert main(["jobs", "update", "one", "--label", "run=3", "--remove-label", "stage", "--name", "Night"]) == 0
    (request,) = canned.sent(training_pb2.UpdateJobRequest)
    assert (dict(request.job.labels), request.job.etag) == ({"team": "x", "run": "3"}, "seen")
    assert set(request.update_mask.paths) == {"labels", "display_name"}
    assert re.search(r"^labels +run=3 team=x", capfd.readouterr().out, re.MULTILINE)
    assert main(["jobs", "update", "one", "--label", "run"]) == ExitCode.USAGE


def test_a_job_is_given_its_time_and_whether_it_gives_way(
    canned: CannedServer, spec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--deadline", "1.5h", "--ttl", "7d", "--preemptible"]
    assert main(["train", spec, "--detach", *given]) == ExitCode.OK
    created = canned.sent(training_pb2.CreateJobRequest)[0].job
    durations = (created.max_run_duration.ToTimedelta(), created.ttl_after_finish.ToTimedelta())
    assert (*durations, created.preemptible) == (timedelta(minutes=90), timedelta(days=7), True)
    assert main(["jobs", "update", "one", "--deadline", "90s", "--ttl", "0", "--not-preemptible"]) == ExitCode.OK
    (request,) = canned.sent(training_pb2.UpdateJobRequest)
    assert set(request.update_mask.paths) == {"max_run_duration", "ttl_after_finish", "preemptible"}
    assert request.job.max_run_duration.ToTimedelta() == timedelta(seconds=90)
    assert not request.job.preemptible
    assert re.search(r"^deadline +0:01:30", capfd.readouterr().out, re.MULTILINE)
    assert main(["train", spec, "--deadline", "soon"]) == ExitCode.USAGE
    assert "must be a number with one of s, m, h, d, such as 90s or 1.5h, got 'soon'" in capfd.readouterr().err


def test_blocks_and_metrics_are_tables_for_people_and_documents_for_programs(
    canned: CannedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["jobs", "blocks", "one"]) == main(["jobs", "metrics", "one", "--points", "7"]) == ExitCode.OK
    out = capfd.readouterr().out
    assert re.search(r"^0 +training +0 +cpu +10 +100 +0\.2 s +0\.0 s +10 at 20", out, re.MULTILINE)
    assert re.search(r"^1 +idle +cuda:1", out, re.MULTILINE)
    assert re.search(r"^0 +10 +1\.5000", out, re.MULTILINE)
    assert "validation step 20: accuracy 0.9000" in out
    assert canned.sent(training_pb2.GetJobMetricsRequest)[0].max_points == 7
    assert main(["jobs", "blocks", "one", "-o", "json"]) == ExitCode.OK
    assert [block["worker"] for block in json.loads(capfd.readouterr().out)] == [0, None]
    assert main(["jobs", "metrics", "one", "-o", "json"]) == ExitCode.OK
    assert json.loads(capfd.readouterr().out)["blocks"][0]["reports"][1]["step"] == 10


def test_a_log_is_printed_once_though_its_connection_breaks(
    canned: CannedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    canned.log_breaks = 2
    assert main(["jobs", "logs", "one", "--follow"]) == ExitCode.OK
    assert capfd.readouterr().out == "first line\nlast line\n"
    requests = canned.sent(training_pb2.TailLogsRequest)
    assert [(request.offset, request.follow) for request in requests] == [(0, True), (4, True), (8, True)]
    assert main(["jobs", "logs", "one", "--offset", "6"]) == ExitCode.OK
    assert capfd.readouterr().out == "line\nlast line\n"


def test_jobs_are_deleted_by_name(canned: CannedServer) -> None:
    canned.jobs["jobs/two"] = job("jobs/two")
    assert main(["jobs", "delete", "one", "jobs/two"]) == ExitCode.OK
    assert canned.jobs == {}
    assert main(["jobs", "delete", "one"]) == ExitCode.NOT_FOUND


@pytest.mark.parametrize(
    "command",
    [["jobs", "list"], ["jobs", "get", "one"], ["jobs", "cancel", "one"], ["models", "list"], ["models", "get", "m1"]],
    ids=" ".join,
)
def test_json_output_is_one_document(
    canned: CannedServer, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "-o", "json"]) == ExitCode.OK
    assert json.loads(capfd.readouterr().out)


def test_a_limit_stops_the_list_and_its_pages(canned: CannedServer, capfd: pytest.CaptureFixture[str]) -> None:
    canned.jobs = {f"jobs/j{i}": job(f"jobs/j{i}") for i in range(9)}
    assert main(["jobs", "list", "--limit", "3", "-o", "json"]) == ExitCode.OK
    assert len(json.loads(capfd.readouterr().out)) == 3
    assert len(canned.sent(training_pb2.ListJobsRequest)) == 2


def test_a_filter_and_an_order_go_with_every_page(canned: CannedServer) -> None:
    canned.jobs = {f"jobs/j{i}": job(f"jobs/j{i}") for i in range(3)}
    assert main(["jobs", "list", "--filter", "state=RUNNING", "--order-by", "priority desc"]) == ExitCode.OK
    requests = canned.sent(training_pb2.ListJobsRequest)
    assert [(r.filter, r.order_by, r.page_token) for r in requests] == [
        ("state=RUNNING", "priority desc", token) for token in ("", "2")
    ]


def test_text_from_the_server_is_never_markup(canned: CannedServer, capfd: pytest.CaptureFixture[str]) -> None:
    canned.jobs["jobs/one"].state_reason = "[bold]odd[/nothing]"
    assert main(["jobs", "get", "one"]) == ExitCode.OK
    assert "queued: [bold]odd[/nothing]" in capfd.readouterr().out


def test_a_model_is_downloaded(canned: CannedServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    canned.download = chunks("model.onnx", b"0123456789")
    target = tmp_path / "model"
    assert main(["models", "download", "fashion", str(target), "-o", "json"]) == ExitCode.OK
    assert json.loads(capfd.readouterr().out) == {"files": [str(target / "model.onnx")]}
    assert main(["models", "download", "fashion", str(target)]) == ExitCode.REFUSED
    assert "must not exist or be empty" in capfd.readouterr().err


def test_predictions_are_printed_row_by_row(
    canned: CannedServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "images.npy", np.full((2, 1, 8, 8), 255, np.uint8))
    command = ["predict", "fashion", str(tmp_path / "images.npy"), "--head", "product"]
    assert main(command) == ExitCode.OK
    assert re.search(
        r"^1 +boot +0\.7500 +0\.5000 +0\.5000 +0\.5000 +0\.1250 0\.1250", capfd.readouterr().out, re.MULTILINE
    )
    (request,) = canned.sent(inference_pb2.PredictRequest)
    assert request.head == inference_pb2.HEAD_PRODUCT
    np.testing.assert_array_equal(tensors.to_array(request.input), np.ones((2, 1, 8, 8), np.float32))
    assert main([*command, "-o", "json"]) == ExitCode.OK
    assert np.shape(json.loads(capfd.readouterr().out)["exit_probabilities"]) == (2, 3, 2)


def test_an_array_of_an_npz_file_is_chosen_by_name(
    canned: CannedServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "images.npz")
    np.savez(path, x_test=np.zeros((1, 4)), y_test=np.zeros(1, np.int64))
    assert main(["predict", "fashion", path]) == ExitCode.USAGE
    assert "--array must name one of x_test, y_test, got None" in capfd.readouterr().err
    assert main(["predict", "fashion", path, "--array", "x_test"]) == ExitCode.OK


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "readable"), (b"PK\x03\x04junk", "readable"), (b"\x93NUMPY\x01", "readable")]
)
def test_an_input_that_is_no_array_is_refused(
    canned: CannedServer, tmp_path: Path, content: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.npy").write_bytes(content)
    assert main(["predict", "fashion", str(tmp_path / "bad.npy")]) == ExitCode.USAGE
    assert message in capfd.readouterr().err


def test_objects_and_text_are_refused_as_input(
    canned: CannedServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "objects.npy", np.array([print]), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    assert main(["predict", "fashion", str(tmp_path / "objects.npy")]) == ExitCode.USAGE
    assert main(["predict", "fashion", str(tmp_path / "text.npy")]) == ExitCode.USAGE
    assert "must hold numbers, got <U1" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["jobs", "get", "nobody"], ExitCode.NOT_FOUND, "no job 'jobs/nobody'"),
        (["jobs", "watch", "nobody"], ExitCode.NOT_FOUND, "no job 'jobs/nobody'"),
        (["models", "get", "nobody"], ExitCode.NOT_FOUND, "no model 'models/nobody'"),
        (["jobs", "get"], ExitCode.USAGE, "Missing argument"),
        (["jobs", "list", "--limit", "0"], ExitCode.USAGE, "--limit"),
        (["jobs", "get", "one", "-o", "xml"], ExitCode.USAGE, "xml"),
        (["train", "missing.yaml"], ExitCode.USAGE, "does not exist"),
        (["dance"], ExitCode.USAGE, "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_failure_has_a_code_and_one_line(
    canned: CannedServer, command: list[str], code: ExitCode, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == code
    captured = capfd.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_wrong_spec_names_every_field_and_sends_nothing(
    canned: CannedServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text("latent: {family: poisson}\nepoch: 3\n")
    assert main(["train", str(tmp_path / "bad.yaml")]) == ExitCode.USAGE
    assert capfd.readouterr().err.splitlines()[0].startswith("bll: latent.family: must be one of bernoulli")
    assert not canned.requests


def test_the_servers_violations_are_printed_one_by_one(
    canned: CannedServer, spec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=f"job.spec.{name}", description="must be more, got 0")
        for name in ("epochs", "batch_size")
    ]
    bad_request = error_details_pb2.BadRequest(field_violations=violations)
    canned.failures["CreateJob"] = [rich_status(code_pb2.INVALID_ARGUMENT, "both", bad_request)]
    assert main(["train", spec]) == ExitCode.USAGE
    assert capfd.readouterr().err.splitlines() == [
        "bll: job.spec.epochs: must be more, got 0",
        "bll: job.spec.batch_size: must be more, got 0",
    ]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (code_pb2.FAILED_PRECONDITION, ExitCode.REFUSED),
        (code_pb2.INTERNAL, ExitCode.REFUSED),
        (code_pb2.DEADLINE_EXCEEDED, ExitCode.UNREACHABLE),
    ],
)
def test_the_servers_refusals_have_codes(canned: CannedServer, code: int, exit_code: ExitCode) -> None:
    canned.failures["CancelJob"] = [rich_status(code, "no")]
    assert main(["jobs", "cancel", "one"]) == exit_code


def test_a_missing_server_is_told_with_its_address(server: CannedServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.stop()
    assert main(["jobs", "list", "--server", server.target]) == ExitCode.UNREACHABLE
    assert server.target in capfd.readouterr().err


def test_ctrl_c_detaches_and_says_how_to_go_on(canned: CannedServer) -> None:
    canned.hang_after = 4
    # As in a terminal: where the tests run in the background, the shell has them and their children ignore Ctrl-C.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {BLL[-1]}"
    with subprocess.Popen(
        [*BLL[:-1], code, "jobs", "watch", "one", "--server", canned.target],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            for _ in range(4):
                assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == ExitCode.DETACHED
    # The fourth line may be out before the fourth event counts as seen.
    again = rf"bll jobs watch jobs/one --server {canned.target} --after [34]"
    assert re.fullmatch(rf"Detached: jobs/one goes on\. To watch it again: {again}", err.splitlines()[-1])
    assert canned.left.wait(10)


def without(*modules: str) -> str:
    """Code that runs `bll` as if `modules` were not installed."""
    return f"import sys; sys.modules.update(dict.fromkeys({modules!r})); {BLL[-1]}"


@pytest.mark.parametrize("module", ["typer", "rich", "yaml"])
def test_the_base_install_says_how_to_get_the_command(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", without(module), "jobs", "list"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.count("\n") == 1
    assert "pip install 'bll[cli]'" in done.stderr


def provide(monkeypatch: pytest.MonkeyPatch, *commands: EntryPoint) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda **wanted: EntryPoints(commands).select(**wanted))


def test_a_command_of_an_extra_gets_the_rest_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    provide(monkeypatch, EntryPoint("show", "json:dumps", "bll.commands"))
    monkeypatch.setattr(json, "dumps", lambda rest: len(rest))
    assert main(["show", "--a", "b", "c"]) == 3


@pytest.mark.parametrize("commands", [[], [EntryPoint("serve", "not_installed:serve", "bll.commands")]])
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, commands: list[EntryPoint], capfd: pytest.CaptureFixture[str]
) -> None:
    provide(monkeypatch, *commands)
    assert main(["serve", "--port", "0"]) == ExitCode.USAGE
    assert "pip install 'bll[serve]'" in capfd.readouterr().err


def test_a_fault_of_our_own_is_not_taken_for_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, EntryPoint("serve", "bll_nowhere:serve", "bll.commands"))
    with pytest.raises(ModuleNotFoundError):
        main(["serve"])


def test_help_lists_every_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == ExitCode.OK
    out = capfd.readouterr().out
    assert all(re.search(rf"^ +{code.value}  {re.escape(code.meaning)}$", out, re.MULTILINE) for code in ExitCode)
