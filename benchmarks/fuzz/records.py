"""Files and lines of the project's own, as damage or a stranger may have left them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save

from benchmarks.fuzz.target import Target, joined, parts
from bll import checkpoint
from bll.config import TrainingConfig
from bll.errors import CheckpointError, ExportError
from bll.events import BlockProgress, BlocksPlaced, Evaluation, PlacedWorker, RunEnded, Scores, from_json, to_json
from bll.manifest import MANIFEST_FILE, Manifest, TensorInfo, read_manifest

_CONFIG, _STEP = "config", 10
_SCORES = Scores(accuracy=0.5, nll_nats=1.0, ece=0.1, brier=0.7)
_EVALUATION = Evaluation("test", 0, 10, 100, _SCORES, _SCORES, (_SCORES,), 0.1)


def _event(data: bytes) -> bool:
    with contextlib.suppress(ValueError):
        return bool(from_json(data.decode(errors="replace")))
    return False


def _event_seeds() -> Iterable[bytes]:
    progress = BlockProgress(0, 0, 5, 1.2, math.nan, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.0)
    placed = BlocksPlaced(0, False, (PlacedWorker((0, 1), 1.0, ()),))
    return [to_json(event).encode() for event in (progress, placed, _EVALUATION, RunEnded(10, True))]


def _model_manifest(data: bytes) -> bool:
    with tempfile.TemporaryDirectory(prefix="bll-fuzz-") as folder:
        Path(folder, MANIFEST_FILE).write_bytes(data)
        with contextlib.suppress(ExportError):
            return bool(read_manifest(Path(folder), check_digest=False))
    return False


def _model_manifest_seeds() -> Iterable[bytes]:
    manifest = Manifest(
        config=TrainingConfig(),
        inputs=(TensorInfo("input", "float32", (-1, 4)),),
        outputs=(TensorInfo("entropy", "float32", (-1,)),),
        class_names=("a", "b"),
        num_blocks=1,
        evaluations=(_EVALUATION,),
        parity=0.0,
        dataset_digest="0" * 64,
        model_digest="0" * 64,
        versions={"onnx": "1"},
        created="2026-01-02T03:04:05Z",
    )
    with tempfile.TemporaryDirectory(prefix="bll-fuzz-") as folder:
        manifest.write(Path(folder))
        return [Path(folder, MANIFEST_FILE).read_bytes()]


def _checkpoint(data: bytes) -> bool:
    """The first part is the manifest; where that is empty, one that fits the second, which is a block's file."""
    pieces = [content for _, content in parts(data)]
    manifest, block = (*pieces, b"", b"")[:2]
    with tempfile.TemporaryDirectory(prefix="bll-fuzz-") as folder:
        cut = Path(folder, "checkpoints", f"step-{_STEP:09d}")
        cut.mkdir(parents=True)
        (cut / "manifest.json").write_bytes(manifest or _manifest_of(block))
        (cut / "block-0.safetensors").write_bytes(block)
        with contextlib.suppress(CheckpointError):
            step, _ = checkpoint.newest_intact(Path(folder), _CONFIG)
            assert step == _STEP
            checkpoint.continuations(Path(folder), _STEP, _CONFIG)
            checkpoint.load_block(Path(folder), _STEP, 0, _CONFIG)
            return True
    return False


def _manifest_of(block: bytes) -> bytes:
    digest = hashlib.sha256(block).hexdigest()
    values = {"format": 1, "step": _STEP, "config": _CONFIG, "blocks": [digest], "continuations": []}
    return json.dumps(values).encode()


def _checkpoint_seeds() -> Iterable[bytes]:
    block = save({"a": torch.zeros(2, 3), "b": torch.arange(4)})
    lost = json.loads(_manifest_of(block)) | {"continuations": [{"block": 0, "step": 5, "from_step": 0}]}
    return [joined((0, b""), (1, block)), joined((0, json.dumps(lost).encode()), (1, block))]


TARGETS: dict[str, Target] = {
    "event": Target(_event, _event_seeds),
    "model-manifest": Target(_model_manifest, _model_manifest_seeds),
    "checkpoint": Target(_checkpoint, _checkpoint_seeds),
}
