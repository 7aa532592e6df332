"""Tokens, roles and owners through a real server: every method against every role, expected and found."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from bll_client import Client, JobState, NotFound, PermissionDenied, PlaintextToken, Unauthenticated, parse_spec
from bll_client.cli import main
from bll_proto.v1 import training_pb2
from bll_server.app import Server
from bll_server.auth.audit import AUDIT
from bll_server.auth.command import token_command
from bll_server.auth.roles import METHODS, Role
from bll_server.auth.tokens import TOKENS, Tokens
from bll_server.settings import Settings

from .jobs import SPEC, WAIT

LONG_ENOUGH = timedelta(seconds=90)
TRAINING = training_pb2.DESCRIPTOR.services_by_name["TrainingService"]


@dataclass
class Bench:
    """A server with tokens, and what was given to whom."""

    server: Server
    tokens: Tokens
    handlers: dict[str, Any]
    """Every method that the server answers, by path."""

    def token(self, owner: str, role: Role) -> str:
        return self.tokens.create(owner, role, timedelta(hours=1))[1]

    def client(self, owner: str, role: Role) -> Client:
        return Client(self.server.address, token=self.token(owner, role), timeout=LONG_ENOUGH)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("access")
    settings = Settings(port=0, metrics_port=0, data_dir=folder, drain_s=5, cancel_grace_s=5)
    server = Server(settings, WAIT)
    state: Any = server._grpc._state  # type: ignore[attr-defined]  # nothing else tells what is registered
    handlers = dict(state.registered_method_handlers)
    for generic in state.generic_handlers:
        handlers |= generic._method_handlers
    bench = Bench(server, Tokens(folder / TOKENS), handlers)
    bench.token("first", Role.ADMIN)  # from now on, everybody needs one
    yield bench
    server.stop()


@pytest.fixture(scope="module")
def anns(bench: Bench) -> str:
    """The name of a job of ann's."""
    with bench.client("ann", Role.TRAINER) as client:
        return client.create_job(SPEC, job_id="anns").name


def ended(channel: grpc.Channel, path: str, handler: Any, data: bytes, token: str | None) -> grpc.StatusCode:
    """The status of one call; OK for a stream that has begun."""
    sends = "stream" if handler.request_streaming else "unary"
    gets = "stream" if handler.response_streaming else "unary"
    call: Any = getattr(channel, f"{sends}_{gets}")(path)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        answer = call(iter([data]) if handler.request_streaming else data, timeout=30, metadata=metadata)
        if handler.response_streaming:
            next(answer, None)
            answer.cancel()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def refusal(least: Role | None, role: Role | None) -> grpc.StatusCode | None:
    """How a method with that least role answers a caller with that role; None: it lets the caller in."""
    if least is None or (role and role >= least):
        return None
    return grpc.StatusCode.PERMISSION_DENIED if role else grpc.StatusCode.UNAUTHENTICATED


def test_every_method_that_is_served_is_in_the_table_and_no_other(bench: Bench) -> None:
    assert set(METHODS) == set(bench.handlers)


def test_every_method_admits_exactly_the_roles_of_the_table(bench: Bench) -> None:
    refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
    expected, found = {}, {}
    with grpc.insecure_channel(bench.server.address) as channel:
        for role in (None, *Role):
            token = bench.token("matrix", role) if role else None
            for path, handler in bench.handlers.items():
                expected[path, role] = refusal(METHODS[path].least, role)
                code = ended(channel, path, handler, b"", token)
                found[path, role] = code if code in refused else None
    assert found == expected


def test_every_method_about_a_job_hides_it_from_other_trainers(bench: Bench, anns: str) -> None:
    bobs, root = bench.token("bob", Role.TRAINER), bench.token("root", Role.ADMIN)
    named = {m.name: m for m in TRAINING.methods if m.name not in ("CreateJob", "ListJobs")}
    with grpc.insecure_channel(bench.server.address) as channel:
        for name, method in named.items():
            message = GetMessageClass(method.input_type)()
            resource: Any = getattr(message, "job", message)
            setattr(resource, "name" if hasattr(resource, "name") else "parent", anns)
            data, path = message.SerializeToString(), f"/{TRAINING.full_name}/{name}"
            assert ended(channel, path, bench.handlers[path], data, bobs) is grpc.StatusCode.NOT_FOUND, name
            if not METHODS[path].change:
                assert ended(channel, path, bench.handlers[path], data, root) is grpc.StatusCode.OK, name


def test_a_trainer_lists_its_own_jobs_a_viewer_all_and_an_admin_cancels_anothers(bench: Bench, anns: str) -> None:
    with bench.client("bob", Role.TRAINER) as bob:
        assert list(bob.list_jobs()) == []
        with pytest.raises(NotFound, match="no job is named 'jobs/anns'"):
            bob.get_job(anns)
        mine = bob.create_job(SPEC, job_id="bobs").name
        assert [job.name for job in bob.list_jobs()] == [mine]
    with bench.client("vic", Role.VIEWER) as viewer:
        assert {(anns, "ann"), (mine, "bob")} <= {(job.name, job.owner) for job in viewer.list_jobs()}
        with pytest.raises(PermissionDenied, match=r"CancelJob needs a token of role trainer or higher, got .* viewer"):
            viewer.cancel_job(mine)
    with bench.client("root", Role.ADMIN) as admin:
        assert admin.cancel_job(mine).state in (JobState.CANCELLING, JobState.CANCELLED)


def test_a_trainer_sees_and_changes_its_own_studies_alone(bench: Bench) -> None:
    with bench.client("ann", Role.TRAINER) as ann:
        study = ann.create_study(SPEC, {"seed": [0, 1]}, study_id="anns-study")
        assert (study.owner, [job.owner for job in ann.list_jobs("study=anns-study")]) == ("ann", ["ann", "ann"])
        assert study.name in [found.name for found in ann.list_studies()]
    with bench.client("bob", Role.TRAINER) as bob:
        assert list(bob.list_studies()) == []
        for call in (bob.get_study, bob.cancel_study, bob.delete_study):
            with pytest.raises(NotFound, match="no study is named 'studies/anns-study'"):
                call(study.name)
    with bench.client("vic", Role.VIEWER) as viewer:
        assert viewer.get_study(study.name).counts == study.counts
        with pytest.raises(PermissionDenied):
            viewer.cancel_study(study.name)
    with bench.client("root", Role.ADMIN) as admin:
        assert {trial.state for trial in admin.cancel_study(study.name).trials} <= {
            JobState.CANCELLING,
            JobState.CANCELLED,
        }
    lines = (bench.server._settings.data_dir / AUDIT).read_text().splitlines()
    told = [
        (line["who"], line["what"], line["outcome"])
        for line in map(json.loads, lines)
        if line.get("resource") == study.name
    ]
    assert told == [
        ("ann", "CreateStudy", "OK"),
        ("bob", "CancelStudy", "NOT_FOUND"),
        ("bob", "DeleteStudy", "NOT_FOUND"),
        ("root", "CancelStudy", "OK"),
    ]


def test_a_revoked_token_is_refused_at_its_next_call_and_ends_a_stream_that_is_open(bench: Bench, anns: str) -> None:
    token, text = bench.tokens.create("vic", Role.VIEWER, None)
    with Client(bench.server.address, token=text, timeout=LONG_ENOUGH) as client:
        events = client.watch_job(anns)
        next(events)
        elsewhere = Tokens(bench.tokens._directory)  # as `bll token revoke` does it, in a process of its own
        elsewhere.revoke(token.token_id)
        with pytest.raises(Unauthenticated, match="revoked"):
            client.get_job(anns)
        with bench.client("root", Role.ADMIN) as admin:
            admin.cancel_job(anns)  # makes an event
        with pytest.raises(Unauthenticated, match="revoked"):
            list(events)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic Ym9iOnB3",
        "Bearer x",
        "Bearer bll_../../etc_x",
        "Bearer bll_{id}_",
        "Bearer {half}",
    ],
)
def test_anything_but_a_whole_token_is_refused(bench: Bench, authorization: str) -> None:
    token, text = bench.tokens.create("ann", Role.ADMIN, None)
    value = authorization.format(id=token.token_id, half=text[:-1])
    with grpc.insecure_channel(bench.server.address) as channel:
        call: Any = channel.unary_unary(f"/{TRAINING.full_name}/ListJobs")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10, metadata=[("authorization", value)])
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert text[:-1] not in str(caught.value)
        with pytest.raises(grpc.RpcError) as caught:  # which of two would count?
            call(b"", timeout=10, metadata=[("authorization", f"Bearer {text}")] * 2)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        call(b"", timeout=10, metadata=[("authorization", f"bearer {text}")])


def test_the_bytes_of_a_stranger_are_not_parsed(bench: Bench) -> None:
    with grpc.insecure_channel(bench.server.address) as channel:
        call: Any = channel.unary_unary(f"/{TRAINING.full_name}/GetJob")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_first_token_closes_a_running_server_and_revoking_the_last_does_not_open_it(tmp_path: Path) -> None:
    server = Server(Settings(port=0, metrics_port=0, data_dir=tmp_path, drain_s=1))
    try:
        with Client(server.address) as client:
            assert list(client.list_jobs()) == []
            token, _ = Tokens(tmp_path / TOKENS).create("ann", Role.ADMIN, None)
            with pytest.raises(Unauthenticated, match="authorization: Bearer TOKEN"):
                list(client.list_jobs())
            Tokens(tmp_path / TOKENS).revoke(token.token_id)
            with pytest.raises(Unauthenticated):
                list(client.list_jobs())
    finally:
        server.stop()


def test_the_command_makes_a_token_that_the_command_line_uses_lists_and_revokes_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BLL_DATA_DIR", str(bench.tokens._directory.parent))
    assert token_command(["create", "--owner", "eve", "--role", "trainer", "--days", "1"]) == 0
    text = capsys.readouterr().out.strip()
    file = tmp_path / "token"
    file.write_text(text + "\n")
    jobs = ["jobs", "list", "--server", bench.server.address, "-o", "json"]
    assert main(jobs) == 5
    assert main(["--token-file", str(file), *jobs]) == 0
    monkeypatch.setenv("BLL_TOKEN", text)
    assert main(jobs) == 0
    capsys.readouterr()
    assert token_command(["list"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " eve " in line)
    token_id = line.split()[0]
    assert "trainer" in line
    assert text not in line
    assert token_command(["revoke", token_id]) == 0
    assert main(jobs) == 5
    assert "revoked" in capsys.readouterr().err
    audit = (bench.tokens._directory.parent / AUDIT).read_text()
    events = [json.loads(line) for line in audit.splitlines()]
    assert [e["what"] for e in events if e.get("resource") == f"tokens/{token_id}"] == ["create token", "revoke token"]
    assert text.split("_", 2)[2] not in audit
    assert token_command(["revoke", "0" * 12]) == 1
    assert token_command(["create", "--owner", "No One", "--role", "viewer"]) == 1


def test_a_token_never_leaves_the_machine_in_plain_text_unless_that_is_accepted() -> None:
    for target in ("bll.example:8470", "192.168.1.2:8470", "dns:///bll.example:8470", "127.0.0.1.example:8470"):
        with pytest.raises(PlaintextToken, match="TLS"):
            Client(target, token="secret")
        Client(target, token="secret", insecure=True).close()
    for target in ("localhost:8470", "[::1]:8470", "127.0.0.1:8470", "ipv4:127.0.0.1:8470", "unix:/run/bll"):
        Client(target, token="secret").close()
    with pytest.raises(ValueError, match="ASCII"):
        Client(token="two\nlines")


def test_every_change_is_in_the_audit_log_with_who_what_and_how_it_ended_and_without_secrets(bench: Bench) -> None:
    path = bench.tokens._directory.parent / AUDIT
    before = len(path.read_text().splitlines()) if path.exists() else 0
    trainer, viewer = bench.token("una", Role.TRAINER), bench.token("vic", Role.VIEWER)
    with grpc.insecure_channel(bench.server.address) as channel:

        def call(method: str, message: Any, token: str, request_id: str) -> None:
            bearer = (("authorization", f"Bearer {token}"), ("x-request-id", request_id))
            with contextlib.suppress(grpc.RpcError):
                send: Any = channel.unary_unary(f"/{TRAINING.full_name}/{method}")
                send(message.SerializeToString(), timeout=90, metadata=bearer)

        job = training_pb2.Job(spec=parse_spec(SPEC))
        call("CreateJob", training_pb2.CreateJobRequest(job=job, job_id="unas"), trainer, "r1")
        call("CreateJob", training_pb2.CreateJobRequest(job=job, validate_only=True), trainer, "r2")
        call("GetJob", training_pb2.GetJobRequest(name="jobs/unas"), trainer, "r3")
        call("CancelJob", training_pb2.CancelJobRequest(name="jobs/unas"), viewer, "r4")
        call("CancelJob", training_pb2.CancelJobRequest(name="jobs/unas"), "nobody's", "r5")
        call("CancelJob", training_pb2.CancelJobRequest(name="jobs/unas"), trainer, "r6")
    lines = path.read_text().splitlines()[before:]
    entries = [json.loads(line) for line in lines]
    fields = ("request_id", "who", "role", "what", "resource", "outcome")
    assert [tuple(entry.get(field, "") for field in fields) for entry in entries] == [
        ("r1", "una", "trainer", "CreateJob", "jobs/unas", "OK"),
        ("r4", "vic", "viewer", "CancelJob", "", "PERMISSION_DENIED"),  # what was asked was not read
        ("r6", "una", "trainer", "CancelJob", "jobs/unas", "OK"),
    ]
    assert all(entry["peer"].startswith("ipv4:127.0.0.1:") and entry["time"] for entry in entries)
    assert not any(text.split("_", 2)[2] in path.read_text() for text in (trainer, viewer))


def test_no_token_is_ever_in_the_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    text = bench.token("ann", Role.ADMIN)
    (bench.tokens._directory / "0123456789ab.json").write_text("{")
    with caplog.at_level(logging.DEBUG), grpc.insecure_channel(bench.server.address) as channel:
        for path, handler in bench.handlers.items():
            ended(channel, path, handler, b"\xff\xff", text)
            ended(channel, path, handler, b"", "bll_0123456789ab_" + text)
    assert "0123456789ab" in caplog.text  # it does log
    assert text.split("_", 2)[2] not in caplog.text
