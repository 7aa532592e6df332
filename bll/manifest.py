"""The manifest beside an exported model: what it is, where it came from, how good it is. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bll.calibration import (
    Calibration,
    CalibrationScores,
    calibration_from_dict,
    calibration_scores_from_dict,
)
from bll.config import TrainingConfig
from bll.errors import ExportError, InvalidConfig
from bll.events import Evaluation, RegressionEvaluation, evaluation_from_dict, regression_evaluation_from_dict
from bll.lineage import Continuation
from bll.plain import from_dict, to_dict
from bll.regression.calibration import (
    RegressionCalibration,
    RegressionCalibrationScores,
    regression_calibration_from_dict,
    regression_calibration_scores_from_dict,
)

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
INPUT = "input"
"""The name of the samples among the inputs of a graph."""
PAST = "past_"
"""What the name of an input begins with that a block's graph takes from that of the block before."""
_FILE = re.compile(r"[a-z0-9-]{1,60}\.onnx")
FORMAT = 1
"""Raised when a reader of the old layout would misread the new one."""


T = TypeVar("T")


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of the graph; -1 in `shape` is the free batch dimension."""

    name: str
    dtype: str
    """numpy's name of it, such as `float32`."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GraphFile:
    """A graph beside that of the whole network."""

    file: str
    digest: str
    """SHA-256 of the file, in hex."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def __post_init__(self) -> None:
        if not _FILE.fullmatch(self.file):
            raise ValueError(f"file must match {_FILE.pattern}, got {self.file!r:.100}")

    def feed(self, samples: T, before: Mapping[str, T]) -> dict[str, T]:
        """What the graph of a block takes, by name: samples, or what the block before has given."""
        names = [tensor.name for tensor in self.inputs]
        return {name: samples if name == INPUT else before[name.removeprefix(PAST)] for name in names}


@dataclass(frozen=True)
class Manifest:
    """Everything a server needs to know of a model without opening the graph."""

    config: TrainingConfig
    """Resolved."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    class_names: tuple[str, ...]
    num_blocks: int
    evaluations: tuple[Evaluation, ...]
    """The last on validation rows and, where the data set has them, on test rows."""
    parity: float
    """Largest absolute difference between graph and network over the rows checked at export; that of an output with a
    wider tolerance (`bll.export`) is scaled down to the tolerance of the others."""
    dataset_digest: str
    model_digest: str
    """SHA-256 of `model.onnx`, in hex."""
    versions: dict[str, str]
    """Of bll, torch, onnx and onnxruntime that made it."""
    created: str
    """RFC 3339, UTC."""
    calibration: Calibration | None = None
    """Fitted on validation rows; None but for targets of one class a row."""
    calibration_scores: CalibrationScores | None = None
    """How it does on test rows; None where there are none."""
    regression_evaluations: tuple[RegressionEvaluation, ...] = ()
    """As `evaluations`, which are none then, of real-valued targets."""
    regression_calibration: RegressionCalibration | None = None
    """As `calibration`, of real-valued targets."""
    regression_calibration_scores: RegressionCalibrationScores | None = None
    """As `calibration_scores`, of real-valued targets."""
    continuations: tuple[Continuation, ...] = ()
    """Blocks that went on with older weights when their worker was lost, under `executor.recovery` `continue`."""
    blocks: tuple[GraphFile, ...] = ()
    """The graphs of the blocks, from left to right; each answers for all exits so far. None in older manifests, and of
    real-valued targets."""
    labelled: GraphFile | None = None
    """From the `target` and what the blocks give as `alpha`: the posteriors of labelled rows. None as `blocks`."""
    format: int = FORMAT

    @property
    def files(self) -> dict[str, str]:
        """Every graph with the digest of its file."""
        more = (*self.blocks, *([self.labelled] if self.labelled else ()))
        return {MODEL_FILE: self.model_digest} | {graph.file: graph.digest for graph in more}

    def write(self, directory: Path) -> None:
        """Write `manifest.json` to disk, into `directory`, which is not yet visible to readers."""
        values = asdict(self) | {"config": to_dict(self.config)}
        with (directory / MANIFEST_FILE).open("w") as file:
            file.write(json.dumps(values, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_manifest(directory: Path, *, check_digest: bool = True) -> Manifest:
    """The manifest in `directory`. Where the graphs of the blocks are not beside it, it has none.

    Raises ExportError if it is missing, damaged, of another format, or does not belong to the model beside it.
    """
    path = directory / MANIFEST_FILE
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise ExportError(f"{path}: format must be {FORMAT}, got {values['format']!r}")
        manifest = Manifest(
            config=from_dict(TrainingConfig, values.pop("config")),
            inputs=_tensors(values.pop("inputs")),
            outputs=_tensors(values.pop("outputs")),
            class_names=tuple(values.pop("class_names")),
            evaluations=tuple(evaluation_from_dict(e) for e in values.pop("evaluations")),
            regression_evaluations=tuple(
                regression_evaluation_from_dict(e) for e in values.pop("regression_evaluations", ())
            ),
            calibration=_optional(calibration_from_dict, values.pop("calibration", None)),
            calibration_scores=_optional(calibration_scores_from_dict, values.pop("calibration_scores", None)),
            regression_calibration=_optional(
                regression_calibration_from_dict, values.pop("regression_calibration", None)
            ),
            regression_calibration_scores=_optional(
                regression_calibration_scores_from_dict, values.pop("regression_calibration_scores", None)
            ),
            blocks=tuple(map(_graph_file, values.pop("blocks", ()))),
            labelled=_optional(_graph_file, values.pop("labelled", None)),
            continuations=tuple(Continuation(**each) for each in values.pop("continuations", ())),
            **values,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidConfig) as error:
        raise ExportError(f"{path}: not a readable manifest: {error}") from error
    parts = [file for file in manifest.files if file != MODEL_FILE]
    if parts and not any((directory / file).exists() for file in parts):  # somebody kept the whole graph alone
        manifest = replace(manifest, blocks=(), labelled=None)
    for file, digest in manifest.files.items() if check_digest else ():
        if (found := file_digest(directory / file)) != digest:
            raise ExportError(f"{directory / file}: SHA-256 must be {digest}, got {found}")
    return manifest


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises ExportError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error}") from error


def _optional(parse: Callable[[dict[str, Any]], T], values: dict[str, Any] | None) -> T | None:
    return None if values is None else parse(values)


def _graph_file(values: dict[str, Any]) -> GraphFile:
    return GraphFile(values["file"], values["digest"], _tensors(values["inputs"]), _tensors(values["outputs"]))


def _tensors(values: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(v["name"], v["dtype"], tuple(v["shape"])) for v in values)
