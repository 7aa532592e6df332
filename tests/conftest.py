"""What all tests share.

The policy on skips: a test that cannot run says why, and where BLL_FAIL_ON_SKIP=1 none may be left out.
A small exported model, for tests that serve one and need not train it: see `export_model`. A PostgreSQL server.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from benchmarks.postgres import Cluster, programs
from bll.calibration import COVERAGES_PER_MILLE, Calibration, HeadCalibration
from bll.config import TrainingConfig
from bll.early_exit import EarlyExit
from bll.events import Evaluation, Scores
from bll.manifest import MODEL_FILE, PAST, GraphFile, Manifest, TensorInfo, file_digest

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
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server, which whoever kills it starts again."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def export_model() -> Callable[..., Manifest]:
    """Writes a small model with every file and output that bll.export promises: random linear exits on the flattened
    input."""
    return _export_model


def _export_model(
    directory: Path,
    *,
    input_shape: tuple[int, ...] = (4,),
    num_classes: int = 3,
    num_blocks: int = 2,
    seed: int = 0,
    in_blocks: bool = True,
) -> Manifest:
    """`in_blocks=False`: as exports were before blocks had graphs of their own, and rows calibrations by depth."""
    import onnx

    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(num_blocks, math.prod(input_shape), num_classes)).astype(np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    whole = _graph(directory / MODEL_FILE, weights, input_shape, num_blocks, ())
    blocks = [
        _graph(directory / f"block-{number}.onnx", weights[number - 1 : number], input_shape, number, CARRIED)
        for number in range(1, num_blocks + 1)
    ]
    labelled = _labelled(directory / "labelled.onnx", num_blocks, num_classes)
    scores = Scores(accuracy=0.5, nll_nats=1.0, ece=0.1, brier=0.7)
    head = HeadCalibration(1.0, tuple(0.5 - index / 250 for index in range(len(COVERAGES_PER_MILLE))))
    # By the deterministic answers below: a confidence is the softmax of probabilities.
    early_exits = tuple(
        EarlyExit(loss, (threshold,) * (num_blocks - 1), 1.5, loss / 2, 2 * loss)
        for loss, threshold in ((0.0, 2.0), (0.002, 0.4), (0.005, 0.0))
    )
    calibration = Calibration(100, head, (head,) * num_blocks, (head,) * num_blocks, early_exits)
    manifest = Manifest(
        config=TrainingConfig(),
        inputs=whole.inputs,
        outputs=whole.outputs,
        class_names=tuple(f"class {i}" for i in range(num_classes)),
        num_blocks=num_blocks,
        evaluations=(Evaluation("test", 0, 10, 100, scores, scores, (scores,) * num_blocks, 0.1),),
        parity=0.0,
        dataset_digest="0" * 64,
        model_digest=whole.digest,
        versions={"onnx": onnx.__version__},
        created="2026-01-02T03:04:05Z",
        calibration=calibration if in_blocks else None,
        blocks=tuple(blocks) if in_blocks else (),
        labelled=labelled if in_blocks else None,
    )
    manifest.write(directory)
    return manifest


CARRIED = ("message", "exit_probabilities", "log_product")


def _graph(
    path: Path, weights: np.ndarray[Any, Any], input_shape: tuple[int, ...], exits: int, carried: tuple[str, ...]
) -> GraphFile:
    """The graph of the last exits that `weights` (exits, features, classes) has, of so many `exits` in all; those
    before, if any, are `carried`."""
    from onnx import TensorProto, helper, numpy_helper

    own, features, classes = weights.shape
    past = exits - own
    shapes = {
        "probabilities": (-1, classes),
        "product_probabilities": (-1, classes),
        "exit_probabilities": (-1, exits, classes),
        "posterior_variance": (-1, exits),
        "posterior_variance_between": (-1, exits),
        "forward_variance": (-1, exits),
        "output_variance": (-1,),
        "entropy": (-1,),
        "exit_disagreement": (-1,),
        "calibrated_probabilities": (-1, classes),
        "ood_score": (-1,),
    }
    more = {"alpha": (-1, 1, classes), "message": (-1, features), "log_product": (-1, classes)} if carried else {}
    inputs = {"input": (-1, *input_shape)}
    if past:
        given = {"message": (-1, features), "exit_probabilities": (-1, past, classes), "log_product": (-1, classes)}
        inputs = {PAST + name: given[name] for name in carried}
    constants: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "weights": weights.transpose(1, 0, 2).reshape(features, own * classes),
        "exits": np.array([-1, own, classes], np.int64),
        "blocks": np.array([1], np.int64),
        "classes": np.array([-1], np.int64),
        "one": np.array(1, np.float32),
        "tiny": np.array(1e-12, np.float32),
    }
    node = helper.make_node
    flat = node("Identity", [PAST + "message"], ["message"]) if past else node("Flatten", ["input"], ["message"])
    nodes = [
        flat,
        node("MatMul", ["message", "weights"], ["joined"]),
        node("Reshape", ["joined", "exits"], ["logits"]),
        node("Identity", ["logits"], ["alpha"]),
        node("Softmax", ["logits"], ["own_probabilities"], axis=-1),
        node("LogSoftmax", ["logits"], ["own_logs"], axis=-1),
        node("ReduceSum", ["own_logs", "blocks"], ["own_product"], keepdims=0),
    ]
    if past:
        nodes += [
            node("Concat", [PAST + "exit_probabilities", "own_probabilities"], ["exit_probabilities"], axis=1),
            node("Add", [PAST + "log_product", "own_product"], ["log_product"]),
        ]
    else:
        nodes += [
            node("Identity", ["own_probabilities"], ["exit_probabilities"]),
            node("Identity", ["own_product"], ["log_product"]),
        ]
    nodes += [
        node("ReduceMean", ["exit_probabilities", "blocks"], ["probabilities"], keepdims=0),
        node("Softmax", ["log_product"], ["product_probabilities"], axis=-1),
        node("Mul", ["exit_probabilities", "exit_probabilities"], ["exit_squares"]),
        node("ReduceSum", ["exit_squares", "classes"], ["forward_variance"], keepdims=0),
        node("ReduceMax", ["exit_probabilities", "classes"], ["posterior_variance"], keepdims=0),
        node("ReduceMin", ["exit_probabilities", "classes"], ["posterior_variance_between"], keepdims=0),
        node("Mul", ["probabilities", "probabilities"], ["squares"]),
        node("ReduceSum", ["squares", "classes"], ["square"], keepdims=0),
        node("Sub", ["one", "square"], ["output_variance"]),
        *_entropy("probabilities", "entropy"),
        *_entropy("exit_probabilities", "exit_entropies"),
        node("ReduceMean", ["exit_entropies", "classes"], ["exit_entropy"], keepdims=0),
        node("Sub", ["entropy", "exit_entropy"], ["exit_disagreement"]),
        node("Softmax", ["probabilities"], ["calibrated_probabilities"], axis=-1),
        node("ReduceMax", ["probabilities", "classes"], ["ood_score"], keepdims=0),
    ]
    types = dict.fromkeys((*inputs, *shapes, *more), TensorProto.FLOAT)
    return _write(
        path, nodes, inputs, shapes | more, types, [numpy_helper.from_array(v, n) for n, v in constants.items()]
    )


def _labelled(path: Path, num_blocks: int, classes: int) -> GraphFile:
    """Of each block: the logits as mean, their squares as variance, and that of the target as divergence."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    nodes, outputs = [node("Unsqueeze", ["target", "last"], ["column"])], dict[str, tuple[int, ...]]()
    for number in range(1, num_blocks + 1):
        mean, variance, kl = (f"{name}_{number}" for name in ("mean", "variance", "kl_nats"))
        nodes += [
            node("Squeeze", [f"alpha_{number}", "second"], [mean]),
            node("Mul", [mean, mean], [variance]),
            node("GatherElements", [mean, "column"], [f"column_{number}"], axis=1),
            node("Squeeze", [f"column_{number}", "second"], [kl]),
        ]
        outputs |= {mean: (-1, classes), variance: (-1, classes), kl: (-1,)}
    inputs: dict[str, tuple[int, ...]] = {"target": (-1,)}
    inputs |= {f"alpha_{number}": (-1, 1, classes) for number in range(1, num_blocks + 1)}
    types = dict.fromkeys((*inputs, *outputs), TensorProto.FLOAT) | {"target": TensorProto.INT64}
    axes = [numpy_helper.from_array(np.array([1], np.int64), name) for name in ("last", "second")]
    return _write(path, nodes, inputs, outputs, types, axes)


def _write(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    types: Mapping[str, Any],
    constants: list[Any],
) -> GraphFile:
    import onnx
    from onnx import TensorProto, helper

    def described(shapes: dict[str, tuple[int, ...]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, types[name], ["rows", *s[1:]]) for name, s in shapes.items()]

    def listed(shapes: dict[str, tuple[int, ...]]) -> tuple[TensorInfo, ...]:
        names: dict[Any, str] = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64"}
        return tuple(TensorInfo(name, names[types[name]], shape) for name, shape in shapes.items())

    graph = helper.make_graph(nodes, "linear_exits", described(inputs), described(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return GraphFile(path.name, file_digest(path), listed(inputs), listed(outputs))


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
