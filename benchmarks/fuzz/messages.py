"""Messages of clients, and the texts in them: as the services read them, without the server round them."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from benchmarks.fuzz.target import Target, texts
from bll.config import TrainingConfig
from bll.data.stored import ID
from bll.plan import BlockPlan, Plan
from bll_proto import oip as protocol
from bll_proto.tensors import InvalidTensor, to_array, to_tensor
from bll_proto.v1 import datasets_pb2, tensor_pb2, training_pb2
from bll_server import convert
from bll_server.auth.gate import Gate, resource_of
from bll_server.auth.roles import Role
from bll_server.auth.tokens import Tokens
from bll_server.errors import ServerError, Unauthenticated
from bll_server.jobs.listing import Listing
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.store import Store
from bll_server.services import datasets, oip, training
from bll_server.services.dataset_messages import header_from_message
from bll_server.services.names import is_uuid
from bll_server.status import status_of

_METHOD = "/bll.v1.TrainingService/GetJob"
_PLAN = Plan(TrainingConfig(), (BlockPlan(0, ("dense",), 1, 2, (4,), 8),), (4,), ("a", "b"), 10, "0" * 64)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Refusals that a client is answered with, and the answer itself. What is no message is refused before that."""
    try:
        yield
    except DecodeError:
        pass
    except ServerError as error:
        status_of(error, "id").SerializeToString()


def _tensor(data: bytes) -> bool:
    with contextlib.suppress(DecodeError, InvalidTensor):
        tensor = tensor_pb2.Tensor.FromString(data)
        assert to_array(tensor).nbytes == len(tensor.data)
        return True
    return False


def _model() -> Any:
    """What a loaded model tells of itself, and takes whatever could be read."""
    names = ["probabilities", "entropy"]
    return SimpleNamespace(input=SimpleNamespace(name="input"), output_names=names, check=lambda rows, **fields: None)


def _infer(data: bytes) -> bool:
    with _refusals():
        request = protocol.ModelInferRequest.FromString(data)
        oip._urgency(request.parameters)
        oip._output_names(request, _model())
        rows = oip._rows(request, _model())
        assert list(rows.shape) == list(request.inputs[0].shape)
        return True
    return False


def _create_job(data: bytes) -> bool:
    with _refusals():
        request = training_pb2.CreateJobRequest.FromString(data)
        resource_of(request)
        training._check_create(request)
        training._digest(request)
        convert.metadata(request.job)
        convert.config_from_spec(request.job.spec)
        return True
    return False


def _update_job(data: bytes) -> bool:
    with _refusals():
        request = training_pb2.UpdateJobRequest.FromString(data)
        training._job_id(request.job.name, "job.name")
        training._changes(request)
        return True
    return False


def _upload(data: bytes) -> bool:
    with _refusals():
        request = datasets_pb2.UploadDatasetRequest.FromString(data)
        assert ID.fullmatch(header_from_message(request.header).dataset_id)
        return True
    return False


def _names(data: bytes) -> bool:
    found = texts(data, 1)
    if found is None:
        return False
    (text,) = found
    accepted = is_uuid(text)
    for parse in (
        lambda: training._job_id(text),
        lambda: datasets._parsed(datasets._NAME, text, "datasets/{dataset_id}"),
        lambda: datasets._parsed(datasets._UPLOAD_NAME, text, "datasets/{dataset_id}/upload"),
        lambda: Metadata(text, {text[:9]: text}),
    ):
        with _refusals():
            parse()
            accepted = True
    return accepted


def _folder() -> Path:
    """One that goes with this process."""
    folder = tempfile.mkdtemp(prefix="bll-fuzz-")
    atexit.register(shutil.rmtree, folder)
    return Path(folder)


@cache
def _store() -> Store:
    """Three jobs."""
    store = Store(_folder() / "bll.db")
    atexit.register(store.close)
    for number in range(3):
        store.create(f"job-{number}", "", b"", _PLAN, metadata=Metadata(labels={"team": "x"}, priority=number))
    return store


def _listing(data: bytes) -> bool:
    if (found := texts(data, 3)) is None:
        return False
    terms, order_by, token = found
    with _refusals():
        jobs, _ = _store().page(2, token, None, listing=Listing(terms, order_by))
        assert len(jobs) <= 2
        return True
    return False


def _listing_seeds() -> list[bytes]:
    lists = [
        ("", ""),
        ("state=QUEUED,RUNNING labels.team=x", "priority desc"),
        ("model_id=job-1", "model_id"),
        ("labels.team=x", "create_time desc"),
    ]
    seeds = []
    for terms, order_by in lists:
        token = _store().page(1, "", None, listing=Listing(terms, order_by))[1]
        seeds.append("\0".join((terms, order_by, token)).encode())
    return seeds


@cache
def _gate() -> tuple[Gate, str]:
    """A gate, and a token that opens it."""
    tokens = Tokens(_folder())
    _, text = tokens.create("ann", Role.VIEWER, None)
    return Gate(tokens, {"jobs": lambda job_id: "ann"}, always=True), text


def _authorization(data: bytes) -> bool:
    if (found := texts(data, 2)) is None:
        return False
    metadata: list[tuple[str, str | bytes]] = [("authorization", found[0]), *([("x", found[1])] if found[1] else [])]
    with contextlib.suppress(Unauthenticated):
        return _gate()[0].identify(_METHOD, metadata).owner == "ann"
    return False


def _authorization_seeds() -> list[bytes]:
    return [f"Bearer {_gate()[1]}".encode(), b"bearer bll_0123456789ab_x", b"Basic YTpi"]


def _wires(*messages: Message) -> Iterable[bytes]:
    return [message.SerializeToString() for message in messages]


def _tensor_seeds() -> Iterable[bytes]:
    return _wires(*(to_tensor(np.arange(6, dtype=dtype).reshape(2, 3)) for dtype in ("f4", "f8", "i8", "u1")))


def _infer_seeds() -> Iterable[bytes]:
    rows = {"name": "input", "datatype": "FP32", "shape": [2, 4]}
    raw = np.zeros((2, 4), "f4").tobytes()
    typed = {**rows, "contents": {"fp32_contents": [0.5] * 8}}
    more: dict[str, Any] = {"outputs": [{"name": "entropy"}], "parameters": {"timeout": {"int64_param": 5}}}
    strings = {**rows, "datatype": "BYTES", "contents": {"bytes_contents": [b"a"] * 8}}
    request: Any = protocol.ModelInferRequest
    return _wires(
        request(model_name="m", inputs=[rows], raw_input_contents=[raw]),
        request(model_name="m", model_version="1", inputs=[typed], **more),
        request(model_name="m", inputs=[strings]),
        request(model_name="m", inputs=[{**rows, "datatype": "BYTES"}], raw_input_contents=[b"\xff\xff\xff\x7fa"]),
    )


def _job() -> training_pb2.Job:
    spec = convert.spec_message(TrainingConfig(), "a-model")
    return training_pb2.Job(name="jobs/job-1", spec=spec, labels={"team": "x"}, display_name="mine", priority=1)


def _job_seeds() -> Iterable[bytes]:
    request_id = "6f1a4c5e-0000-4000-8000-000000000000"
    return _wires(training_pb2.CreateJobRequest(job=_job(), job_id="job-1", request_id=request_id))


def _update_seeds() -> Iterable[bytes]:
    request = training_pb2.UpdateJobRequest(job=_job())
    request.update_mask.paths.extend(["labels", "priority"])
    return _wires(request)


def _upload_seeds() -> Iterable[bytes]:
    form = datasets_pb2.DATASET_FORMAT_NPZ
    header = datasets_pb2.UploadHeader(dataset_id="mine", format=form, total_bytes=9, sha256="0" * 64)
    return _wires(datasets_pb2.UploadDatasetRequest(header=header))


def _name_seeds() -> Iterable[bytes]:
    return [b"jobs/job-1", b"datasets/mine", b"datasets/mine/upload", b"12"]


TARGETS: dict[str, Target] = {
    "tensor": Target(_tensor, _tensor_seeds),
    "infer": Target(_infer, _infer_seeds),
    "create-job": Target(_create_job, _job_seeds),
    "update-job": Target(_update_job, _update_seeds),
    "upload-header": Target(_upload, _upload_seeds),
    "names": Target(_names, _name_seeds),
    "listing": Target(_listing, _listing_seeds),
    "authorization": Target(_authorization, _authorization_seeds),
}
