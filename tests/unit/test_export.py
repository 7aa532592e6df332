"""The exported graph against the network that it came from, and the manifest beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import bll.export
from bll import TrainedModel, TrainingConfig, fit
from bll import data as datasets
from bll.config import DataConfig
from bll.errors import ExportError
from bll.lineage import Continuation
from bll.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, read_manifest
from bll.plain import from_dict

pytestmark = pytest.mark.timeout(300)  # tracing the graphs takes most of it

TEST = datasets.load(DataConfig("digits"), 0).test

SPECS = {
    "bernoulli": {"widths": [4, 8]},
    "gaussian": {"widths": [4, 8]},
    "unit_gaussian": {"architecture": "mlp", "widths": [16, 16]},
    "categorical": {"architecture": "mlp", "widths": [16, 16]},
    "laplace": {"architecture": "mlp", "widths": [16, 16]},
}


def train(family: str) -> TrainedModel:
    values = {
        "data": {"name": "digits"},
        "network": SPECS[family],
        "blocks": {"num_blocks": 1 if family == "laplace" else 2},  # its posterior is a large graph
        "latent": {"family": family},
        "backward": {"twin": "chain"},
        "epochs": 1,
    }
    return fit(from_dict(TrainingConfig, values))


@pytest.fixture(scope="module", params=list(SPECS))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainedModel, Path, Manifest]:
    """A model of each family and its export, which tests read and do not change."""
    model, directory = train(request.param), tmp_path_factory.mktemp("model")
    return model, directory, model.export(directory)


def test_graph_answers_as_the_network_does_for_any_batch_size(exported: tuple[TrainedModel, Path, Manifest]) -> None:
    model, directory, manifest = exported
    session = onnxruntime.InferenceSession(directory / MODEL_FILE, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(1)
    for rows in (1, 2, 33):
        inputs = generator.random((rows, 1, 8, 8), dtype=np.float32)
        expected = model.predict(inputs)
        for tensor, found in zip(manifest.outputs, session.run(None, {"input": inputs}), strict=True):
            assert found.shape == (rows, *tensor.shape[1:])
            np.testing.assert_allclose(found, expected[tensor.name], atol=1e-4)
    assert manifest.parity <= 1e-4


def chain(manifest: Manifest, directory: Path, inputs: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """What each block's graph gives, from left to right."""
    found: dict[str, np.ndarray] = {}
    for block in manifest.blocks:
        session = onnxruntime.InferenceSession(directory / block.file, providers=["CPUExecutionProvider"])
        names = [tensor.name for tensor in block.outputs]
        found = dict(zip(names, session.run(names, block.feed(inputs, found)), strict=True))
        for tensor in block.outputs:
            assert found[tensor.name].shape == (len(inputs), *tensor.shape[1:])
        yield found


def test_chained_blocks_answer_after_each_as_the_network_does_and_after_all_as_the_whole_graph_does(
    exported: tuple[TrainedModel, Path, Manifest],
) -> None:
    model, directory, manifest = exported
    whole = onnxruntime.InferenceSession(directory / MODEL_FILE, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(1)
    for rows in (1, 2, 33):
        inputs = generator.random((rows, 1, 8, 8), dtype=np.float32)
        for depth, found in enumerate(chain(manifest, directory, inputs), 1):
            expected = model.predict(inputs, depth)
            assert list(expected) == [tensor.name for tensor in manifest.outputs]
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=f"{name} after {depth}")
            exits_BNC = model.predict(inputs)["exit_probabilities"][:, :depth]
            np.testing.assert_allclose(found["exit_probabilities"], exits_BNC, atol=1e-4)
            np.testing.assert_allclose(found["probabilities"], exits_BNC.mean(1), atol=1e-4)
        assert depth == manifest.num_blocks
        for tensor, values in zip(manifest.outputs, whole.run(None, {"input": inputs}), strict=True):
            np.testing.assert_allclose(found[tensor.name], values, atol=1e-4)


def test_graph_of_labelled_rows_gives_the_posteriors_of_the_network(
    exported: tuple[TrainedModel, Path, Manifest],
) -> None:
    model, directory, manifest = exported
    assert manifest.labelled is not None
    inputs, target = TEST.inputs[:9], TEST.targets[:9].astype(np.int64)
    floats = datasets.as_float(inputs)
    given = {f"alpha_{k}": found["alpha"] for k, found in enumerate(chain(manifest, directory, floats), 1)}
    session = onnxruntime.InferenceSession(directory / manifest.labelled.file, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in manifest.labelled.outputs]
    found = dict(zip(names, session.run(names, {"target": target, **given}), strict=True))
    for k, expected in enumerate(model.score_labelled(inputs, target), 1):
        for name, values in expected.items():
            np.testing.assert_allclose(found[f"{name}_{k}"], values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_files_of_the_blocks_together_are_about_as_large_as_that_of_the_network(
    exported: tuple[TrainedModel, Path, Manifest],
) -> None:
    _, directory, manifest = exported
    parts = sum(sum(tensor_sizes(directory / block.file)) for block in manifest.blocks)
    assert parts == pytest.approx(sum(tensor_sizes(directory / MODEL_FILE)), rel=0.1)


def tensor_sizes(path: Path) -> list[int]:
    """Of the fixed tensors in a graph, in bytes."""
    return [len(numpy_helper.to_array(tensor).tobytes()) for tensor in onnx.load(path).graph.initializer]


def test_graphs_need_no_backward_network_and_tell_no_paths(exported: tuple[TrainedModel, Path, Manifest]) -> None:
    _, directory, manifest = exported
    for file in manifest.files:
        content = (directory / file).read_bytes()
        graph = onnx.load_from_string(content).graph
        assert not [tensor.name for tensor in graph.initializer if "twin" in tensor.name]
        assert b".py" not in content


def test_manifest_reads_back_and_belongs_to_its_model(
    exported: tuple[TrainedModel, Path, Manifest], tmp_path: Path
) -> None:
    model, directory, manifest = exported
    assert read_manifest(directory) == manifest
    assert [e.split for e in manifest.evaluations] == ["validation", "test"]
    assert manifest.config == model.plan.config
    continued = replace(manifest, continuations=(Continuation(1, 33, 20),))
    continued.write(tmp_path)
    for file in manifest.files:
        shutil.copy(directory / file, tmp_path / file)
    assert read_manifest(tmp_path) == continued
    (tmp_path / file).write_bytes(b"other")
    with pytest.raises(ExportError, match="SHA-256"):
        read_manifest(tmp_path)


def test_graph_that_differs_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bll.export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"output 'probabilities' of model\.onnx: must be within"):
        train("unit_gaussian").export(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_manifest_of_before_blocks_had_graphs_reads_as_one_without(
    exported: tuple[TrainedModel, Path, Manifest], tmp_path: Path
) -> None:
    values = json.loads((exported[1] / MANIFEST_FILE).read_text())
    for name in ("blocks", "labelled"):
        del values[name]
    for name in ("depths", "early_exits"):
        del values["calibration"][name]
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(values))
    found = read_manifest(tmp_path, check_digest=False)
    assert (found.blocks, found.labelled, list(found.files)) == ((), None, [MODEL_FILE])
    assert found.calibration is not None
    assert (found.calibration.depths, found.calibration.early_exits) == ((), ())


@pytest.mark.parametrize("file", ["../model.onnx", "/etc/passwd", "block-1.onnx/..", "", "manifest.json"])
def test_manifest_that_names_a_file_elsewhere_is_refused(
    exported: tuple[TrainedModel, Path, Manifest], tmp_path: Path, file: str
) -> None:
    values = json.loads((exported[1] / MANIFEST_FILE).read_text())
    values["blocks"][0]["file"] = file
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(values))
    with pytest.raises(ExportError, match="file must match"):
        read_manifest(tmp_path)


def test_export_whose_blocks_were_left_out_is_one_without_and_whose_blocks_are_broken_is_none(
    exported: tuple[TrainedModel, Path, Manifest], tmp_path: Path
) -> None:
    for file in (MODEL_FILE, MANIFEST_FILE):
        shutil.copy(exported[1] / file, tmp_path / file)
    assert read_manifest(tmp_path) == replace(exported[2], blocks=(), labelled=None)
    shutil.copy(exported[1] / "block-1.onnx", tmp_path)
    with pytest.raises(ExportError, match="cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 2}', '{"format": 1}'])
def test_damaged_manifest_is_an_error_that_names_it(damage: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(damage)
    with pytest.raises(ExportError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_manifest_with_an_impossible_config_is_an_export_error(
    exported: tuple[TrainedModel, Path, Manifest], tmp_path: Path
) -> None:
    values = json.loads((exported[1] / MANIFEST_FILE).read_text())
    values["config"]["epochs"] = 0
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(values))
    with pytest.raises(ExportError, match="epochs"):
        read_manifest(tmp_path)
