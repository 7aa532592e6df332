"""The exported graph against the network that it came from, and the manifest beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import bll.export
from bll import TrainedModel, TrainingConfig, fit
from bll.errors import ExportError
from bll.lineage import Continuation
from bll.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, read_manifest
from bll.plain import from_dict

pytestmark = pytest.mark.timeout(300)  # tracing the graphs takes most of it

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


def test_graph_needs_no_backward_network_and_tells_no_paths(exported: tuple[TrainedModel, Path, Manifest]) -> None:
    content = (exported[1] / MODEL_FILE).read_bytes()
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
    assert read_manifest(tmp_path, check_digest=False) == continued
    (tmp_path / MODEL_FILE).write_bytes(b"other")
    with pytest.raises(ExportError, match="SHA-256"):
        read_manifest(tmp_path)


def test_graph_that_differs_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bll.export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="output 'probabilities' of the graph: must be within"):
        train("unit_gaussian").export(tmp_path)
    assert list(tmp_path.iterdir()) == []


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
