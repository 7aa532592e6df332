"""What all tests share.

The policy on skips: a test that cannot run says why, and where BLL_FAIL_ON_SKIP=1 none may be left out.
A small exported model, for tests that serve one and need not train it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from bll.config import TrainingConfig
from bll.events import Evaluation, Scores
from bll.manifest import MODEL_FILE, Manifest, TensorInfo, file_digest

# A busy machine is no failure; pytest-timeout bounds each test.
settings.register_profile("bll", deadline=None)
settings.load_profile("bll")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not expected_failure and os.environ.get("BLL_FAIL_ON_SKIP") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"


@pytest.fixture(scope="session")
def export_model() -> Callable[..., Manifest]:
    """Writes a small model with every output that bll.export promises: random linear exits on the flattened input."""
    return _export_model


def _export_model(
    directory: Path, *, input_shape: tuple[int, ...] = (4,), num_classes: int = 3, num_blocks: int = 2, seed: int = 0
) -> Manifest:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(seed)
    shapes = {
        "probabilities": (-1, num_classes),
        "product_probabilities": (-1, num_classes),
        "exit_probabilities": (-1, num_blocks, num_classes),
        "posterior_variance": (-1, num_blocks),
        "posterior_variance_between": (-1, num_blocks),
        "forward_variance": (-1, num_blocks),
        "output_variance": (-1,),
        "entropy": (-1,),
        "exit_disagreement": (-1,),
        "calibrated_probabilities": (-1, num_classes),
        "ood_score": (-1,),
    }
    constants: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "weights": generator.normal(size=(math.prod(input_shape), num_blocks * num_classes)).astype(np.float32),
        "exits": np.array([-1, num_blocks, num_classes], np.int64),
        "blocks": np.array([1], np.int64),
        "classes": np.array([-1], np.int64),
        "one": np.array(1, np.float32),
        "tiny": np.array(1e-12, np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["joined"]),
        helper.make_node("Reshape", ["joined", "exits"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["exit_probabilities"], axis=-1),
        helper.make_node("ReduceMean", ["exit_probabilities", "blocks"], ["probabilities"], keepdims=0),
        helper.make_node("ReduceSum", ["logits", "blocks"], ["product_logits"], keepdims=0),
        helper.make_node("Softmax", ["product_logits"], ["product_probabilities"], axis=-1),
        helper.make_node("Mul", ["exit_probabilities", "exit_probabilities"], ["exit_squares"]),
        helper.make_node("ReduceSum", ["exit_squares", "classes"], ["forward_variance"], keepdims=0),
        helper.make_node("ReduceMax", ["exit_probabilities", "classes"], ["posterior_variance"], keepdims=0),
        helper.make_node("ReduceMin", ["exit_probabilities", "classes"], ["posterior_variance_between"], keepdims=0),
        helper.make_node("Mul", ["probabilities", "probabilities"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "classes"], ["square"], keepdims=0),
        helper.make_node("Sub", ["one", "square"], ["output_variance"]),
        *_entropy("probabilities", "entropy"),
        *_entropy("exit_probabilities", "exit_entropies"),
        helper.make_node("ReduceMean", ["exit_entropies", "classes"], ["exit_entropy"], keepdims=0),
        helper.make_node("Sub", ["entropy", "exit_entropy"], ["exit_disagreement"]),
        helper.make_node("Softmax", ["probabilities"], ["calibrated_probabilities"], axis=-1),
        helper.make_node("ReduceMax", ["probabilities", "classes"], ["ood_score"], keepdims=0),
    ]
    free = ["rows"]
    graph = helper.make_graph(
        nodes,
        "linear_exits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [*free, *input_shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [*free, *shape[1:]]) for name, shape in shapes.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, directory / MODEL_FILE)
    scores = Scores(accuracy=0.5, nll_nats=1.0, ece=0.1, brier=0.7)
    manifest = Manifest(
        config=TrainingConfig(),
        inputs=(TensorInfo("input", "float32", (-1, *input_shape)),),
        outputs=tuple(TensorInfo(name, "float32", shape) for name, shape in shapes.items()),
        class_names=tuple(f"class {i}" for i in range(num_classes)),
        num_blocks=num_blocks,
        evaluations=(Evaluation("test", 0, 10, 100, scores, scores, (scores,) * num_blocks, 0.1),),
        parity=0.0,
        dataset_digest="0" * 64,
        model_digest=file_digest(directory / MODEL_FILE),
        versions={"onnx": onnx.__version__},
        created="2026-01-02T03:04:05Z",
    )
    manifest.write(directory)
    return manifest


def _entropy(probabilities: str, entropy: str) -> list[Any]:
    from onnx import helper

    safe, logs, terms, total = (f"{entropy}_{part}" for part in ("safe", "logs", "terms", "total"))
    return [
        helper.make_node("Max", [probabilities, "tiny"], [safe]),
        helper.make_node("Log", [safe], [logs]),
        helper.make_node("Mul", [probabilities, logs], [terms]),
        helper.make_node("ReduceSum", [terms, "classes"], [total], keepdims=0),
        helper.make_node("Neg", [total], [entropy]),
    ]
