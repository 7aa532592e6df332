"""The `bll` command as a user types it, against a server in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bll_proto.v1 import training_pb2

BLL = Path(sys.executable).with_name("bll")
SPEC = """
model_id: typed
data: {name: digits}
network: {architecture: mlp, widths: [16, 16]}
blocks: {num_blocks: 2}
epochs: 2
"""


def bll(server: Any, *arguments: str | Path, code: int = 0) -> str:
    """What `bll ARGUMENTS` prints; it must end with `code`."""
    command = [str(BLL), *map(str, arguments), "--server", server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == code, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def test_train_submits_a_spec_watches_the_job_and_ends_with_its_outcome(server: Any, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    lines = [json.loads(line) for line in bll(server, "train", spec, "--job-id", "typed", "-o", "json").splitlines()]
    *events, job = lines
    assert [event["number"] for event in events] == list(range(1, job["last_event"] + 1))
    assert (job["name"], job["state"], job["model_version"]) == ("jobs/typed", "succeeded", "models/typed/versions/1")

    watched = bll(server, "jobs", "watch", "typed", "--after", "1", "-o", "json").splitlines()
    assert [json.loads(line) for line in watched] == lines[1:]


def test_train_refuses_a_spec_and_names_field_rule_and_value(server: Any, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("data: {name: digits}\nlatent: {units: -3}\nnetwork: {widths: [8, 8, 8, 8], stem_stride: 9}\n")
    told = bll(server, "train", spec, code=2)
    assert "job.spec.latent.units: must be a whole number between 1 and 65536, got -3" in told
    assert "job.spec.network.stem_stride" in told


def test_validate_only_shows_the_plan_and_stores_nothing(server: Any, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    planned = json.loads(bll(server, "train", spec, "--validate-only", "--job-id", "planned", "-o", "json"))
    assert len(planned["plan"]["blocks"]) == 2
    assert "jobs/planned" in bll(server, "jobs", "get", "planned", code=3)


def test_jobs_are_listed_and_shown_as_tables_and_as_json(server: Any, job: training_pb2.Job) -> None:
    listed = json.loads(bll(server, "jobs", "list", "-o", "json"))
    assert job.name in [entry["name"] for entry in listed]
    shown = json.loads(bll(server, "jobs", "get", "short", "-o", "json"))
    assert shown["test"]["mixture"]["accuracy"] == pytest.approx(job.test.mixture.accuracy)
    assert "short" in bll(server, "jobs", "list")
    assert "succeeded" in bll(server, "jobs", "get", job.name)


def test_models_are_listed_shown_and_downloaded(server: Any, job: training_pb2.Job, tmp_path: Path) -> None:
    listed = json.loads(bll(server, "models", "list", "-o", "json"))
    assert "models/digits" in [model["name"] for model in listed]
    shown = json.loads(bll(server, "models", "get", "digits", "-o", "json"))
    assert [version["name"] for version in shown["versions"]] == [job.model_version]
    bll(server, "models", "download", "digits", tmp_path / "digits")
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == ["manifest.json", "model.onnx"]


def test_predict_prints_a_class_and_its_uncertainty_for_each_row(
    server: Any, job: training_pb2.Job, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32))
    answer = json.loads(bll(server, "predict", "digits", tmp_path / "images.npy", "-o", "json"))
    assert np.shape(answer["probabilities"]) == (3, 10)
    assert np.shape(answer["posterior_variance"]) == (3, 4)
    assert "variance" in bll(server, "predict", "digits", tmp_path / "images.npy").lower()


def test_exit_code_tells_what_was_wrong(server: Any, job: training_pb2.Job, tmp_path: Path) -> None:
    np.save(tmp_path / "wrong.npy", np.zeros((3, 5), np.float32))
    assert "nobody" in bll(server, "models", "get", "nobody", code=3)
    assert "shape" in bll(server, "predict", "digits", tmp_path / "wrong.npy", code=2)
    assert "jobs/short is SUCCEEDED" in bll(server, "jobs", "cancel", "short", code=5)


def test_unreachable_server_is_an_exit_code_of_its_own() -> None:
    command = [str(BLL), "jobs", "list", "--server", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert "127.0.0.1:1" in done.stderr
