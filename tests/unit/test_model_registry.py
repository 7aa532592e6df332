"""The model registry on a real directory, through crashes and damage."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bll.errors import ExportError
from bll.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from bll_server.errors import InvalidRequest, NotFound
from bll_server.models.registry import JOB_FILE, Registry, parse_name

Export = Callable[..., Manifest]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def publish(registry: Registry, export_model: Export, staging: Path, model: str, job: str, seed: int = 0) -> str:
    export_model(staging, seed=seed)
    return registry.publish(model, staging, job)


def test_published_directory_becomes_the_newest_version(root: Path, tmp_path: Path, export_model: Export) -> None:
    registry = Registry(root)
    names = [publish(registry, export_model, tmp_path / "staging", "fashion", f"jobs/{i}", i) for i in range(3)]
    assert names == [f"models/fashion/versions/{n}" for n in (1, 2, 3)]
    assert not (tmp_path / "staging").exists()
    assert [v.number for v in registry.versions("fashion")] == [3, 2, 1]
    assert registry.version("fashion").name == names[-1]
    assert registry.version("fashion", 2).job == "jobs/1"


def test_restart_finds_every_version_again(root: Path, tmp_path: Path, export_model: Export) -> None:
    first = Registry(root)
    for i in range(11):
        publish(first, export_model, tmp_path / "staging", "digits", f"jobs/{i}", i)
    second = Registry(root)
    assert second.models() == first.models()
    assert second.version("digits").number == 11


def test_repeated_publish_of_a_job_returns_its_version(root: Path, tmp_path: Path, export_model: Export) -> None:
    staging = tmp_path / "staging"
    name = publish(Registry(root), export_model, staging, "digits", "jobs/a")
    restarted = Registry(root)
    assert restarted.publish("digits", staging, "jobs/a") == name, "crashed after the rename"
    assert publish(restarted, export_model, staging, "digits", "jobs/a") == name, "exported again after that"
    assert [v.number for v in restarted.versions("digits")] == [1]


def test_another_graph_under_the_same_job_id_is_another_version(
    root: Path, tmp_path: Path, export_model: Export
) -> None:
    registry = Registry(root)
    publish(registry, export_model, tmp_path / "staging", "digits", "jobs/a", seed=1)
    assert publish(registry, export_model, tmp_path / "staging", "digits", "jobs/a", seed=2).endswith("/2")


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_crash_while_publishing_leaves_nothing_half_visible(
    root: Path, tmp_path: Path, export_model: Export, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    staging = tmp_path / "staging"
    export_model(staging)

    def crash(*_: object) -> None:
        raise OSError("power lost")

    registry = Registry(root)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, crash)
        with pytest.raises(OSError, match="power lost"):
            registry.publish("digits", staging, "jobs/a")
    restarted = Registry(root)
    assert not restarted.models()
    assert restarted.publish("digits", staging, "jobs/a") == "models/digits/versions/1"


def test_everything_is_synced_before_the_rename_and_the_name_after(
    root: Path, tmp_path: Path, export_model: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        order.append("rename")
        rename(source, target)

    export_model(tmp_path / "staging")
    registry = Registry(root)
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    registry.publish("digits", tmp_path / "staging", "jobs/a")
    renamed = order.index("rename")
    assert {MODEL_FILE, MANIFEST_FILE, JOB_FILE, "staging", "models"} <= set(order[:renamed])
    assert order[renamed + 1 :] == ["digits"]


def _truncate_manifest(directory: Path) -> None:
    (directory / MANIFEST_FILE).write_text('{"format": 1')


def _remove_manifest(directory: Path) -> None:
    (directory / MANIFEST_FILE).unlink()


def _remove_model(directory: Path) -> None:
    (directory / MODEL_FILE).unlink()


def _remove_job(directory: Path) -> None:
    (directory / JOB_FILE).unlink()


def _write_job_list(directory: Path) -> None:
    (directory / JOB_FILE).write_text("[]")


def _break_config(directory: Path) -> None:
    values = json.loads((directory / MANIFEST_FILE).read_text())
    values["config"]["epochs"] = -1
    (directory / MANIFEST_FILE).write_text(json.dumps(values))


@pytest.mark.parametrize(
    "damage", [_truncate_manifest, _remove_manifest, _remove_model, _remove_job, _write_job_list, _break_config]
)
def test_damaged_version_is_logged_and_not_served_and_its_number_not_given_again(
    root: Path,
    tmp_path: Path,
    export_model: Export,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    registry = Registry(root)
    for i in range(2):
        publish(registry, export_model, tmp_path / "staging", "digits", f"jobs/{i}", i)
    damage(root / "digits" / "2")
    restarted = Registry(root)
    assert [v.number for v in restarted.versions("digits")] == [1]
    assert "models/digits/versions/2 is damaged and not served" in caplog.text
    assert publish(restarted, export_model, tmp_path / "staging", "digits", "jobs/3", 3).endswith("/3")


def test_foreign_entries_in_the_root_are_left_alone(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "Not A Model").mkdir(parents=True)
    (root / "notes").write_text("mine")
    (root / "empty" / "lost+found").mkdir(parents=True)
    assert not Registry(root).models()
    assert (root / "notes").read_text() == "mine"
    assert "Not A Model is not a model's directory" in caplog.text


@pytest.mark.parametrize("model", ["", "..", "../evil", "a/b", "A", "1a", "-a", "a" * 64, "a\n", "a\0", "ä"])
def test_model_id_that_breaks_the_rule_is_refused(root: Path, tmp_path: Path, export_model: Export, model: str) -> None:
    with pytest.raises(InvalidRequest, match=r"model_id: must match \[a-z\]\[a-z0-9-\]\{0,62\}, got"):
        publish(Registry(root), export_model, tmp_path / "staging", model, "jobs/a")
    assert (tmp_path / "staging").exists()
    assert list(root.iterdir()) == []


def test_staging_that_is_no_sound_model_is_not_published(root: Path, tmp_path: Path, export_model: Export) -> None:
    staging = tmp_path / "staging"
    export_model(staging)
    (staging / MODEL_FILE).write_bytes(b"other bytes")
    with pytest.raises(ExportError, match="SHA-256 must be"):
        Registry(root).publish("digits", staging, "jobs/a")
    assert not Registry(root).models()


def test_unknown_names_are_not_found(root: Path, tmp_path: Path, export_model: Export) -> None:
    registry = Registry(root)
    publish(registry, export_model, tmp_path / "staging", "digits", "jobs/a")
    with pytest.raises(NotFound, match="there is no model 'nobody'"):
        registry.version("nobody")
    with pytest.raises(NotFound, match="models/digits has no version 7, the newest is 1"):
        registry.version("digits", 7)


def test_names_are_parsed_into_model_and_version() -> None:
    assert parse_name("models/a-1", "model") == ("a-1", None)
    assert parse_name("models/a/versions/12", "model") == ("a", 12)


@pytest.mark.parametrize(
    "name",
    ["", "a", "models/", "models/../x", "models/a/", "models/a/versions/", "models/a/versions/0",
     "models/a/versions/-1", "models/a/versions/01", "models/a/versions/1/x", "models/a\n", "jobs/a",
     "models/a/versions/99999999999999999999"],
)  # fmt: skip
def test_name_of_another_form_is_refused_under_its_field(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^name: must be models/\{model\} or"):
        parse_name(name, "name")
