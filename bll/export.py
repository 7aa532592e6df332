"""From a trained model to ONNX graphs that need neither torch nor the backward network, and their manifest.

One graph has the whole network, for whoever wants all of it at once. The others have a block each: chained, they give
the same, and an answer after every block. Both hold all weights, so that each file can be read on its own: ONNX could
share them in a file beside, which every reader would have to find, and a server loads the blocks only when it must.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from bll.checkpoint import sync_directory, write_atomically
from bll.errors import ExportError
from bll.manifest import INPUT, MODEL_FILE, PAST, GraphFile, Manifest, TensorInfo

if TYPE_CHECKING:  # the model's own `export` calls this module
    from bll.trained import Trained

TOLERANCE = 1e-4
"""Largest difference allowed between an output of a graph and of the network; of values beyond 1, relative to them."""
_WIDER = {"ood_score": 1e-2}
"""The same where another kernel's rounding is magnified: features of which a boundary has little are whitened."""

_OPSET = 18
_PARITY_ROWS = (1, 7, 64)
"""Batch sizes compared: one alone, an odd one, a full one."""


def export(model: Trained, directory: Path) -> Manifest:
    """Write the graphs and `manifest.json` into `directory`, all on disk when it returns.

    The graph of `model.onnx` takes `input`, float32 of shape (batch, *input_shape), and answers with every field of
    the model's `predict`; those of `block-1.onnx` and so on answer with the same after each block, and `labelled.onnx`
    with the posteriors of labelled rows. Raises ExportError if an answer differs from the network's by more than
    TOLERANCE.
    """
    directory.mkdir(parents=True, exist_ok=True)
    samples = torch.zeros(2, *model.plan.input_shape)
    whole = _Graph(MODEL_FILE, model.served, (INPUT,), model.output_names, {INPUT: samples})
    blocks, labelled = _parts(model, samples)
    parity = max(_parity(model, whole, blocks, labelled, rows) for rows in _PARITY_ROWS)
    for graph in (whole, *blocks, *labelled):
        write_atomically(directory / graph.info.file, graph.content)
    manifest = Manifest(
        config=model.plan.config,
        inputs=whole.info.inputs,
        outputs=whole.info.outputs,
        class_names=model.plan.class_names,
        num_blocks=model.plan.num_blocks,
        **model.scores(),
        continuations=model.continuations,
        parity=parity,
        dataset_digest=model.plan.dataset_digest,
        model_digest=whole.info.digest,
        versions={name: metadata.version(name) for name in ("bll", "torch", "onnx")}
        | {"onnxruntime": onnxruntime.__version__},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        blocks=tuple(block.info for block in blocks),
        labelled=labelled[0].info if labelled else None,
    )
    manifest.write(directory)
    sync_directory(directory)
    return manifest


class _Graph:
    """A module in ONNX, its class tables and other fixed tensors as constants, and a session that runs it."""

    def __init__(
        self, file: str, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], given: Mapping[str, Tensor]
    ) -> None:
        """Traced on two rows of what is `given` for its inputs."""
        examples = {name: given[name] for name in inputs}
        with torch.no_grad():
            self.example = dict(zip(outputs, module(*examples.values()), strict=True))
        self.content = _traced(module, examples, outputs)
        digest = hashlib.sha256(self.content).hexdigest()
        self.info = GraphFile(file, digest, _tensors(examples), _tensors(self.example))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])

    def run(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output, from what is `given` for its inputs."""
        names = list(self.example)
        feed = {tensor.name: given[tensor.name] for tensor in self.info.inputs}
        return dict(zip(names, self._session.run(names, feed), strict=True))


def _parts(model: Trained, samples: Tensor) -> tuple[list[_Graph], list[_Graph]]:
    """The graphs of the blocks, and that of labelled rows in a list; both empty where the model has no steps."""
    blocks: list[_Graph] = []
    given = {INPUT: samples}
    known = {"target": torch.zeros(len(samples), *model.plan.target_shape, dtype=torch.int64)}
    for number, step in enumerate(model.steps, 1):
        blocks.append(_Graph(f"block-{number}.onnx", step, step.inputs, step.outputs, given))
        given = {PAST + name: values for name, values in blocks[-1].example.items()}
        known[f"alpha_{number}"] = blocks[-1].example["alpha"]
    module = model.labelled
    if module is None:
        return blocks, []
    return blocks, [_Graph("labelled.onnx", module, module.inputs, module.outputs, known)]


class _Positional(nn.Module):
    """A module whose arguments the exporter sees as one list, whatever their number."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        answers: tuple[Tensor, ...] = self.module(*values)
        return answers


def _traced(module: nn.Module, examples: Mapping[str, Tensor], outputs: Sequence[str]) -> bytes:
    """`module` in ONNX, for any number of rows."""
    rows = {0: torch.export.Dim("batch", min=1)}
    with _quiet_exporter():
        program = torch.onnx.export(
            _Positional(module),
            tuple(examples.values()),
            dynamo=True,
            opset_version=_OPSET,
            input_names=list(examples),
            output_names=list(outputs),
            dynamic_shapes=(tuple(rows for _ in examples),),
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


@torch.no_grad()
def _parity(model: Trained, whole: _Graph, blocks: list[_Graph], labelled: list[_Graph], rows: int) -> float:
    """Largest difference between graphs and network on validation rows, the last block's from the whole network too.

    Raises ExportError if one is too large.
    """
    inputs = model.validation_inputs(rows)
    predicted = model.predict(inputs)
    differences = [_difference(whole, predicted, whole.run({INPUT: inputs}))]
    expected, given = {INPUT: torch.from_numpy(inputs)}, {INPUT: inputs}
    target = np.arange(rows * model.plan.num_sites) % max(model.plan.num_classes, 1)
    known = {"target": target.reshape(rows, *model.plan.target_shape)}
    for number, (step, block) in enumerate(zip(model.steps, blocks, strict=True), 1):
        answers = dict(zip(step.outputs, step(*(expected[name] for name in step.inputs)), strict=True))
        found = block.run(given)
        differences.append(_difference(block, {name: answers[name].numpy() for name in step.answers}, found))
        if number == len(blocks):
            differences.append(_difference(block, predicted, found))
        expected = {PAST + name: values for name, values in answers.items()}
        given = {PAST + name: values for name, values in found.items()}
        known[f"alpha_{number}"] = found["alpha"]
    for graph in labelled:
        assert model.labelled is not None, "there would be no graph of it"
        posteriors = model.labelled(*(torch.from_numpy(known[name]) for name in model.labelled.inputs))
        named = {name: values.numpy() for name, values in zip(graph.example, posteriors, strict=True)}
        differences.append(_difference(graph, named, graph.run(known)))
    return max(differences)


def _difference(graph: _Graph, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """The largest of all outputs, in terms of TOLERANCE. Raises ExportError if it is too large."""
    largest = 0.0
    for name, values in expected.items():
        tolerance, difference = _WIDER.get(name, TOLERANCE), np.nan
        if found[name].shape == values.shape:
            difference = float((np.abs(found[name] - values) / np.maximum(np.abs(values), 1)).max())
        if not difference <= tolerance:
            raise ExportError(
                f"output {name!r} of {graph.info.file}: must be within {tolerance:g} of the network's, "
                f"got {difference:g} on {len(values)} rows of shape {list(found[name].shape)}"
            )
        largest = max(largest, difference * TOLERANCE / tolerance)
    return largest


def _tensors(values: Mapping[str, Tensor]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name, str(tensor.dtype).removeprefix("torch."), (-1, *tensor.shape[1:]))
        for name, tensor in values.items()
    )
