"""From a trained model to one ONNX graph that needs neither torch nor the backward network, and its manifest."""

from __future__ import annotations

import datetime
import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch

from bll.checkpoint import sync_directory, write_atomically
from bll.errors import ExportError
from bll.manifest import MODEL_FILE, Manifest, TensorInfo

if TYPE_CHECKING:  # the model's own `export` calls this module
    from bll.trained import Trained

TOLERANCE = 1e-4
"""Largest absolute difference allowed between an output of the graph and of the network."""
_WIDER = {"ood_score": 1e-2}
"""The same where another kernel's rounding is magnified: features of which a boundary has little are whitened."""

_INPUT = "input"
_OPSET = 18
_PARITY_ROWS = (1, 7, 64)
"""Batch sizes compared: one alone, an odd one, a full one."""


def export(model: Trained, directory: Path) -> Manifest:
    """Write `model.onnx` and `manifest.json` into `directory`, both on disk when it returns.

    The graph takes `input`, float32 of shape (batch, *input_shape), and answers with every field of
    the model's `predict`. Raises ExportError if an answer differs from the network's by more than TOLERANCE.
    """
    directory.mkdir(parents=True, exist_ok=True)
    graph = _graph(model)
    parity, outputs = _compare(model, graph)
    write_atomically(directory / MODEL_FILE, graph)
    manifest = Manifest(
        config=model.plan.config,
        inputs=(TensorInfo(_INPUT, "float32", (-1, *model.plan.input_shape)),),
        outputs=outputs,
        class_names=model.plan.class_names,
        num_blocks=model.plan.num_blocks,
        **model.scores(),
        continuations=model.continuations,
        parity=parity,
        dataset_digest=model.plan.dataset_digest,
        model_digest=hashlib.sha256(graph).hexdigest(),
        versions={name: metadata.version(name) for name in ("bll", "torch", "onnx")}
        | {"onnxruntime": onnxruntime.__version__},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    manifest.write(directory)
    sync_directory(directory)
    return manifest


def _graph(model: Trained) -> bytes:
    """The network with its exits, heads and uncertainties, class tables as constants, in ONNX."""
    example = torch.zeros(2, *model.plan.input_shape)
    with _quiet_exporter():
        program = torch.onnx.export(
            model.served,
            (example,),
            dynamo=True,
            opset_version=_OPSET,
            input_names=[_INPUT],
            output_names=list(model.output_names),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:  # stack traces with the paths of the machine that exported
        node.ClearField("metadata_props")
    proto.ClearField("metadata_props")
    content: bytes = proto.SerializeToString()
    onnx.checker.check_model(content)
    return content


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide what the exporter says about its own internals and about packages that we do not use."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _compare(model: Trained, graph: bytes) -> tuple[float, tuple[TensorInfo, ...]]:
    """Largest difference between graph and network on validation rows, and the graph's outputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    outputs: tuple[TensorInfo, ...] = ()
    for rows in _PARITY_ROWS:
        inputs = model.validation_inputs(rows)
        expected = model.predict(inputs)
        found = dict(zip(expected, session.run(list(expected), {_INPUT: inputs}), strict=True))
        for name, values in found.items():
            difference = float(np.abs(values - expected[name]).max())
            tolerance = _WIDER.get(name, TOLERANCE)
            if values.shape != expected[name].shape or not difference <= tolerance:
                raise ExportError(
                    f"output {name!r} of the graph: must be within {tolerance:g} of the network's, "
                    f"got {difference:g} on {rows} rows of shape {list(values.shape)}"
                )
            largest = max(largest, difference * TOLERANCE / tolerance)
        outputs = tuple(TensorInfo(name, str(v.dtype), (-1, *v.shape[1:])) for name, v in found.items())
    return largest, outputs
