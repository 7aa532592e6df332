"""Requests, as the servers take them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from benchmarks.serving.bare import METHOD, SERVICE
from benchmarks.serving.effort import FOLDER
from benchmarks.serving.load import Target
from benchmarks.serving.model import NAME, samples
from bll_proto import oip, tensors
from bll_proto.v1 import inference_pb2


def native(address: str, rows: int) -> Target:
    """Our own API."""
    request = inference_pb2.PredictRequest(model=f"models/{NAME}", input=tensors.to_tensor(samples(rows)))
    return Target(address, "/bll.v1.InferenceService/Predict", _file("native", rows, request.SerializeToString()))


def kserve(address: str, rows: int, output: str = "") -> Target:
    """The KServe v2 protocol: of all outputs, or of one."""
    request = oip.ModelInferRequest(model_name=NAME)
    request.inputs.add(name="input", datatype="FP32", shape=samples(rows).shape)
    if output:
        request.outputs.add(name=output)
    request.raw_input_contents.append(samples(rows).tobytes())
    path = "/inference.GRPCInferenceService/ModelInfer"
    return Target(address, path, _file(f"kserve-{output}", rows, request.SerializeToString()))


def raw(address: str, rows: int) -> Target:
    """Bytes of the rows, to the bare loop."""
    return Target(address, f"/{SERVICE}/{METHOD}", _file("raw", rows, samples(rows).tobytes()))


def octets(address: str, path: str, rows: int) -> Target:
    """The same over HTTP."""
    return Target(address, path, _file("raw", rows, samples(rows).tobytes()), "http")


def encoded(address: str, path: str, rows: int) -> Target:
    """Bytes of the rows as base64 in JSON, over HTTP: cheaper than numbers for who takes JSON alone."""
    data = json.dumps({"data": base64.b64encode(samples(rows).tobytes()).decode()}).encode()
    return Target(address, path, _file("json", rows, data), "http")


def _file(kind: str, rows: int, data: bytes) -> str:
    path: Path = FOLDER / "bodies" / f"{kind}-{rows}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)
