"""DatasetService through a real server: uploads that break and go on, what is kept, and a job that learns from one."""

import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from bll.config import TrainingConfig
from bll.plan import Plan
from bll_client import AlreadyExists, Client, PermissionDenied
from bll_proto.v1 import datasets_pb2 as pb
from bll_proto.v1 import datasets_pb2_grpc, training_pb2, training_pb2_grpc
from bll_server import app
from bll_server.app import Server
from bll_server.auth.roles import Role
from bll_server.auth.tokens import TOKENS, Tokens
from bll_server.jobs.planner import Planner
from bll_server.services import datasets
from bll_server.settings import Settings

Stub = datasets_pb2_grpc.DatasetServiceStub


def start(data_dir: Path, **more: Any) -> Server:
    fields: dict[str, Any] = {"max_dataset_mb": 1, "max_owner_datasets_mb": 1, "max_datasets_mb": 2} | more
    return Server(Settings(port=0, metrics_port=0, data_dir=data_dir, drain_s=5, cancel_grace_s=5, **fields))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def channel(data_dir: Path) -> Iterator[grpc.Channel]:
    server = start(data_dir)
    with grpc.insecure_channel(server.address) as channel:
        yield channel
    server.stop()


@pytest.fixture
def stub(channel: grpc.Channel) -> Stub:
    return Stub(channel)


def arrays(rows: int = 40, seed: int = 0) -> bytes:
    """An .npz of two classes that can be told apart."""
    y = np.arange(rows) % 2
    x = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32) + 3 * y[:, None]
    stream = io.BytesIO()
    np.savez(stream, x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    return stream.getvalue()


def header(
    dataset_id: str, content: bytes, form: pb.DatasetFormat.ValueType = pb.DATASET_FORMAT_NPZ
) -> pb.UploadHeader:
    sha256 = hashlib.sha256(content).hexdigest()
    return pb.UploadHeader(dataset_id=dataset_id, format=form, total_bytes=len(content), sha256=sha256)


def requests(
    head: pb.UploadHeader, content: bytes, start: int = 0, size: int = 1000
) -> Iterator[pb.UploadDatasetRequest]:
    yield pb.UploadDatasetRequest(header=head)
    for offset in range(start, len(content), size):
        chunk = pb.UploadChunk(offset=offset, data=content[offset : offset + size])
        yield pb.UploadDatasetRequest(chunk=chunk)


def upload(stub: Stub, dataset_id: str, content: bytes, form: Any = pb.DATASET_FORMAT_NPZ) -> pb.Dataset:
    return stub.UploadDataset(requests(header(dataset_id, content, form), content), timeout=30).dataset


def get(stub: Stub, dataset_id: str) -> pb.Dataset:
    return stub.GetDataset(pb.GetDatasetRequest(name=f"datasets/{dataset_id}"), timeout=10).dataset


def committed(stub: Stub, dataset_id: str) -> int:
    request = pb.GetUploadRequest(name=f"datasets/{dataset_id}/upload")
    return stub.GetUpload(request, timeout=10).upload.committed_bytes


def delete(stub: Stub, dataset_id: str) -> None:
    stub.DeleteDataset(pb.DeleteDatasetRequest(name=f"datasets/{dataset_id}"), timeout=10)


def settled(stub: Stub, dataset_id: str) -> pb.Dataset:
    """The data set once it is no more VALIDATING."""
    deadline = time.monotonic() + 60
    while (dataset := get(stub, dataset_id)).state == pb.DATASET_STATE_VALIDATING:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return dataset


def refused(call: Any, *arguments: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    error: Any = caught.value
    return error.code(), error.details()


def kept(data_dir: Path) -> set[str]:
    return {path.name for path in (data_dir / "datasets" / ".uploaded").iterdir()}


def test_an_upload_that_broke_goes_on_and_a_job_learns_from_it(channel: grpc.Channel, stub: Stub) -> None:
    content = arrays()
    head = header("broken", content)
    cut = stub.UploadDataset.future(_then_wait(head, content[:1500]), timeout=30)
    _until(lambda: committed(stub, "broken") == 1500)
    cut.cancel()
    assert refused(upload, stub, "broken", content)[0] is grpc.StatusCode.INVALID_ARGUMENT  # begins at 0, not at 1500
    dataset = stub.UploadDataset(requests(head, content, committed(stub, "broken")), timeout=30).dataset
    assert dataset.state in (pb.DATASET_STATE_VALIDATING, pb.DATASET_STATE_READY)
    dataset = settled(stub, "broken")
    assert dataset.state == pb.DATASET_STATE_READY, dataset.error
    report = dataset.report
    assert (report.train_rows, report.test_rows, list(report.input_shape), report.dtype) == (40, 10, [4], "float32")
    assert [(c.name, c.train_count, c.test_count) for c in report.classes] == [("0", 20, 5), ("1", 20, 5)]

    assert stub.UploadDataset(requests(head, content), timeout=30).dataset == dataset  # repeated, it changes nothing
    training = training_pb2_grpc.TrainingServiceStub(channel)
    fields: dict[str, Any] = {
        "data": {"name": dataset.data_name},
        "network": {"architecture": "mlp", "widths": [8, 8]},
        "blocks": {"num_blocks": 2},
        "latent": {"units": 4, "readout_units": 8},
        "executor": {"name": training_pb2.EXECUTOR_NAME_SEQUENTIAL},
        "batch_size": 4,
        "epochs": 3,
    }
    spec = training_pb2.JobSpec(**fields)
    request = training_pb2.CreateJobRequest(job=training_pb2.Job(spec=spec), job_id="learns")
    job = training.CreateJob(request, timeout=90).job
    assert job.plan.dataset_digest == report.dataset_digest
    code, why = refused(delete, stub, "broken")
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "jobs/learns" in why
    events = training.WatchJob(training_pb2.WatchJobRequest(name="jobs/learns"), timeout=90)
    assert [e.event.state_change.state for e in events][-1] == training_pb2.JOB_STATE_SUCCEEDED
    job = training.GetJob(training_pb2.GetJobRequest(name="jobs/learns"), timeout=10).job
    assert job.test.rows == 10
    delete(stub, "broken")
    assert refused(get, stub, "broken")[0] is grpc.StatusCode.NOT_FOUND
    code, why = refused(training.CreateJob, training_pb2.CreateJobRequest(job=training_pb2.Job(spec=spec)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "job.spec.data.name: must be datasets/{id} of a data set that this server keeps" in why


def _then_wait(head: pb.UploadHeader, content: bytes) -> Iterator[pb.UploadDatasetRequest]:
    """A client that sends so much and then nothing more, until its call is cancelled."""
    yield from requests(head, content, size=500)
    _until(lambda: False, 5)


def _until(condition: Any, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except grpc.RpcError:
            pass
        time.sleep(0.02)


def test_a_new_stream_takes_over_from_one_that_hangs(stub: Stub) -> None:
    content = arrays(seed=1)
    head = header("hangs", content)
    hanging = stub.UploadDataset.future(_then_wait(head, content[:500]), timeout=30)
    _until(lambda: committed(stub, "hangs") == 500)
    stub.UploadDataset(requests(head, content, 500), timeout=30)
    assert settled(stub, "hangs").state == pb.DATASET_STATE_READY
    hanging.cancel()
    delete(stub, "hangs")


def test_two_data_sets_of_one_file_share_their_content_on_disk(stub: Stub, data_dir: Path) -> None:
    content = arrays(seed=2)
    for dataset_id in ("first", "second"):
        upload(stub, dataset_id, content)
        assert settled(stub, dataset_id).state == pb.DATASET_STATE_READY
    first, second = (data_dir / "datasets" / ".uploaded" / i / "content" for i in ("first", "second"))
    assert all(path.samefile(second / path.name) for path in first.iterdir())
    delete(stub, "first")
    assert np.load(second / "train_inputs.npy").shape == (40, 4)
    assert get(stub, "second").state == pb.DATASET_STATE_READY
    delete(stub, "second")


def test_bad_content_is_kept_as_the_reason_of_a_failed_data_set_that_can_be_replaced(stub: Stub) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        link = tarfile.TarInfo("cat/a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    upload(stub, "hostile", stream.getvalue(), pb.DATASET_FORMAT_IMAGES)
    dataset = settled(stub, "hostile")
    assert dataset.state == pb.DATASET_STATE_FAILED
    assert dataset.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert dataset.error.message.startswith("the upload: 'cat/a.png': must be a plain file or a folder")
    upload(stub, "hostile", arrays(seed=3))
    assert settled(stub, "hostile").state == pb.DATASET_STATE_READY
    assert refused(upload, stub, "hostile", arrays(seed=4))[0] is grpc.StatusCode.ALREADY_EXISTS
    delete(stub, "hostile")


BAD_HEADERS: dict[str, dict[str, Any]] = {
    "header.dataset_id": {"dataset_id": "../../x"},
    "header.format": {"format": 0},
    "header.total_bytes": {"total_bytes": 0},
    "header.sha256": {"sha256": "A" * 64},
}


@pytest.mark.parametrize("field", BAD_HEADERS)
def test_a_bad_header_is_refused_by_field_and_leaves_nothing(stub: Stub, data_dir: Path, field: str) -> None:
    head = header("header", b"content")
    for name, value in BAD_HEADERS[field].items():
        setattr(head, name, value)
    code, why = refused(stub.UploadDataset, requests(head, b"content"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in why
    assert "header" not in kept(data_dir)


def test_the_id_of_a_built_in_data_set_is_nobodys_to_upload_or_delete(stub: Stub) -> None:
    assert refused(upload, stub, "digits", b"x")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert refused(delete, stub, "digits")[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert get(stub, "digits").data_name == "digits"


def test_content_with_another_digest_is_refused_and_removed(stub: Stub, data_dir: Path) -> None:
    head = header("damaged", arrays())
    damaged = bytearray(arrays())
    damaged[100] ^= 1
    code, why = refused(stub.UploadDataset, requests(head, bytes(damaged)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "header.sha256" in why
    assert "damaged" not in kept(data_dir)


def test_a_stream_that_ends_early_keeps_what_it_brought(stub: Stub) -> None:
    content = arrays()
    code, why = refused(stub.UploadDataset, requests(header("early", content), content[:700]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "the upload can go on" in why
    assert committed(stub, "early") == 700
    delete(stub, "early")
    assert refused(committed, stub, "early")[0] is grpc.StatusCode.NOT_FOUND


def test_more_than_the_quota_is_refused_before_it_is_sent(stub: Stub, data_dir: Path) -> None:
    head = header("large", b"")
    head.total_bytes = 2**20 + 1
    code, why = refused(stub.UploadDataset, requests(head, b""))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 1048576 bytes" in why
    for dataset_id in ("announced-1", "announced-2", "announced-3"):
        head = header(dataset_id, b"")
        head.total_bytes = 900_000
        code, why = refused(stub.UploadDataset, requests(head, b""))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED  # the first two ended early, and can go on
    assert "all data sets together" in why
    assert "announced-3" not in kept(data_dir)
    delete(stub, "announced-1")
    delete(stub, "announced-2")


@pytest.mark.parametrize("module", ["disk", "uploads"])
def test_a_full_disk_is_told_and_leaves_nothing(
    stub: Stub, data_dir: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"bll_server.datasets.{module}.os", SimpleNamespace(**{**vars(os), "fsync": full}))
    code, why = refused(upload, stub, "full", arrays())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "No space left" in why
    assert "full" not in kept(data_dir)


def test_built_in_and_uploaded_data_sets_are_listed_by_name_in_pages(stub: Stub) -> None:
    upload(stub, "listed", arrays(seed=5))
    settled(stub, "listed")
    names, token = [], ""
    while True:
        page = stub.ListDatasets(pb.ListDatasetsRequest(page_size=2, page_token=token), timeout=10)
        names += [dataset.name for dataset in page.datasets]
        assert not any(dataset.report.classes for dataset in page.datasets)
        token = page.next_page_token
        if not token:
            break
    built_in = ["cifar-10", "digits", "fashion-mnist", "listed", "mnist", "reversal", "shapes"]
    assert names == [f"datasets/{name}" for name in built_in]
    delete(stub, "listed")


def test_a_check_that_takes_too_long_or_too_much_memory_fails_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = io.BytesIO()
    np.savez_compressed(zeros, x=np.zeros((40, 1_000_000), np.float32), y=np.arange(40) % 2)
    assert len(zeros.getvalue()) < 2**20  # 160 MB of values
    assert np.ones(2**28, np.uint8).all()  # a server that has once been large: its child's limit is not for that
    for limits, why in (
        (replace(app._LIMITS, memory_bytes=2**26), "of memory"),
        (replace(app._LIMITS, disk_bytes=2**20), "no room"),
        (replace(app._LIMITS, wall_s=0.05), "0.05 s in all"),
    ):
        monkeypatch.setattr(app, "_LIMITS", limits)
        server = start(tmp_path / why.replace(" ", "-"), max_datasets_mb=1024)
        with grpc.insecure_channel(server.address) as channel:
            upload(Stub(channel), "zeros", zeros.getvalue())
            dataset = settled(Stub(channel), "zeros")
        server.stop()
        assert dataset.state == pb.DATASET_STATE_FAILED
        assert why in dataset.error.message


def test_a_restart_keeps_what_was_whole_and_gives_up_what_was_abandoned(tmp_path: Path) -> None:
    content = arrays()
    server = start(tmp_path)
    with grpc.insecure_channel(server.address) as channel:
        stub = Stub(channel)
        upload(stub, "whole", content)
        settled(stub, "whole")
        refused(stub.UploadDataset, requests(header("half", content), content[:700]))
    server.stop()
    server = start(tmp_path)
    with grpc.insecure_channel(server.address) as channel:
        assert get(Stub(channel), "whole").state == pb.DATASET_STATE_READY
        assert committed(Stub(channel), "half") == 700
    server.stop()
    part = tmp_path / "datasets" / ".uploaded" / "whole" / "upload.part"
    part.write_bytes(content)  # as a server leaves it that dies when the record is written
    server = start(tmp_path, keep_uploads_h=0)
    server.stop()
    assert kept(tmp_path) == {"whole"}
    assert not part.exists()


def test_a_check_ends_with_its_server(tmp_path: Path) -> None:
    upload, work = tmp_path / "upload", tmp_path / "work"
    os.mkfifo(upload)
    work.mkdir()
    limits = json.dumps(asdict(app._LIMITS))
    command = [sys.executable, "-m", "bll_server.datasets.check", str(upload), "npy", str(work), limits]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as check:
        assert check.stdin is not None
        try:
            writer = os.open(upload, os.O_WRONLY)  # returns once the check reads, and waits for more
            check.stdin.close()
            assert check.wait(30) == 1
            os.close(writer)
        finally:
            check.kill()


def test_a_silent_upload_loses_its_thread_and_can_be_taken_up_again(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "SILENCE_S", 0.3)
    content, over = arrays(seed=77), threading.Event()
    head = header("silent", content)

    def silent() -> Iterator[pb.UploadDatasetRequest]:
        yield pb.UploadDatasetRequest(header=head)
        yield pb.UploadDatasetRequest(chunk=pb.UploadChunk(offset=0, data=content[:500]))
        over.wait(30)

    with pytest.raises(grpc.RpcError) as error:
        stub.UploadDataset(silent(), timeout=30)
    over.set()
    assert error.value.code() is grpc.StatusCode.CANCELLED
    committed = stub.GetUpload(pb.GetUploadRequest(name="datasets/silent/upload")).upload.committed_bytes
    assert committed == 500
    assert stub.UploadDataset(requests(head, content, committed), timeout=30).dataset.name == "datasets/silent"


def test_a_data_set_that_goes_while_a_job_is_planned_refuses_the_job_by_name(
    channel: grpc.Channel, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(stub, "short-lived", arrays(seed=78))
    settled(stub, "short-lived")
    plan = Planner.plan

    def plan_and_delete(planner: Planner, config: TrainingConfig) -> Plan:
        planned = plan(planner, config)
        stub.DeleteDataset(pb.DeleteDatasetRequest(name="datasets/short-lived"), timeout=10)
        return planned

    monkeypatch.setattr(Planner, "plan", plan_and_delete)
    fields: dict[str, Any] = {
        "data": {"name": "datasets/short-lived"},
        "network": {"architecture": "mlp", "widths": [8, 8]},
        "blocks": {"num_blocks": 2},
        "latent": {"units": 4, "readout_units": 8},
        "batch_size": 8,
    }
    spec = training_pb2.JobSpec(**fields)
    jobs = training_pb2_grpc.TrainingServiceStub(channel)
    with pytest.raises(grpc.RpcError) as error:
        jobs.CreateJob(training_pb2.CreateJobRequest(job=training_pb2.Job(spec=spec), job_id="too-late"), timeout=60)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "job.spec.data.name: must be a data set that is there" in str(error.value.details())
    assert not [job for job in jobs.ListJobs(training_pb2.ListJobsRequest()).jobs if job.name == "jobs/too-late"]


def test_a_data_set_is_deleted_by_its_owner_and_by_admins_alone(tmp_path: Path) -> None:
    server = start(tmp_path)
    tokens = Tokens(tmp_path / TOKENS)
    root, ann, bob = (
        Client(server.address, token=tokens.create(owner, role, None)[1])
        for owner, role in (("root", Role.ADMIN), ("ann", Role.TRAINER), ("bob", Role.TRAINER))
    )
    file = tmp_path / "a.npz"
    file.write_bytes(arrays())
    try:
        assert ann.upload_dataset(file, dataset_id="anns").owner == "ann"
        assert ann.upload_dataset(file, dataset_id="anns-too").owner == "ann"
        with pytest.raises(PermissionDenied, match="datasets/anns is another's"):
            bob.delete_dataset("anns")
        assert bob.upload_dataset(file, dataset_id="anns").owner == "ann"  # it is there: nothing to do
        file.write_bytes(arrays(seed=9))
        with pytest.raises(AlreadyExists, match="has other content"):
            bob.upload_dataset(file, dataset_id="anns")
        ann.delete_dataset("anns")
        root.delete_dataset("anns-too")
        assert bob.upload_dataset(file, dataset_id="anns").owner == "bob"  # the name is free again
    finally:
        for client in (root, ann, bob):
            client.close()
        server.stop()


def test_nobody_goes_on_with_anothers_upload_and_each_owner_has_a_quota(tmp_path: Path) -> None:
    server = start(tmp_path, max_datasets_mb=4)
    tokens = Tokens(tmp_path / TOKENS)
    anns, bobs = (tokens.create(owner, Role.TRAINER, None)[1] for owner in ("ann", "bob"))

    def announce(stub: Stub, token: str, dataset_id: str, total_bytes: int) -> tuple[grpc.StatusCode, str]:
        head = header(dataset_id, b"")
        head.total_bytes = total_bytes
        bearer = (("authorization", f"Bearer {token}"),)
        return refused(lambda: stub.UploadDataset(requests(head, b""), metadata=bearer, timeout=30))

    with grpc.insecure_channel(server.address) as channel:
        stub = Stub(channel)
        for dataset_id in ("one", "two"):  # they end early, and can go on
            assert announce(stub, anns, dataset_id, 500_000)[0] is grpc.StatusCode.INVALID_ARGUMENT
        code, why = announce(stub, anns, "three", 100_000)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert re.search(r"ann may keep 1048576 bytes of data sets, has 1000\d{3} and asked for 100000 more", why)
        assert announce(stub, bobs, "three", 100_000)[0] is grpc.StatusCode.INVALID_ARGUMENT
        code, why = announce(stub, bobs, "one", 500_000)
        assert (code, "is another's" in why) == (grpc.StatusCode.ALREADY_EXISTS, True)
    server.stop()
    server = start(tmp_path, max_datasets_mb=4)  # whose they are is on the disk
    with grpc.insecure_channel(server.address) as channel:
        stub = Stub(channel)
        assert announce(stub, bobs, "one", 500_000)[0] is grpc.StatusCode.ALREADY_EXISTS
        assert announce(stub, anns, "three", 100_000)[0] is grpc.StatusCode.ALREADY_EXISTS
        assert announce(stub, anns, "four", 100_000)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.stop()


def test_uploads_and_checks_are_in_the_metrics(tmp_path: Path) -> None:
    server = start(tmp_path)
    content = arrays()
    with grpc.insecure_channel(server.address) as channel:
        stub = Stub(channel)
        upload(stub, "whole", content)
        settled(stub, "whole")
        upload(stub, "broken", b"no .npz at all")
        settled(stub, "broken")
        refused(stub.UploadDataset, requests(header("half", content), content[:700]))
        with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
            page = reply.read().decode()
    server.stop()
    assert f"bll_dataset_upload_bytes_total {len(content) + 14 + 700:.1f}\n" in page
    assert 'bll_dataset_uploads_total{outcome="finished"} 2.0' in page
    assert 'bll_dataset_uploads_total{outcome="cancelled"} 1.0' in page
    assert 'bll_dataset_checks_total{outcome="ready"} 1.0' in page
    assert 'bll_dataset_checks_total{outcome="broken_rule"} 1.0' in page
    assert 'bll_datasets{state="ready"} 1.0' in page
    assert 'bll_datasets{state="uploading"} 1.0' in page
