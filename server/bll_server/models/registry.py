"""The published models, on disk: `<root>/<model>/<version>/{model.onnx, manifest.json, job.json}`.

A version is complete from the moment that it can be seen (it is moved in by one rename) and never changes after.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bll.errors import BllError, Violation
from bll.manifest import MODEL_FILE, Manifest, read_manifest
from bll_server.errors import InvalidRequest, NotFound

logger = logging.getLogger(__name__)

JOB_FILE = "job.json"
MODEL_ID = re.compile(r"[a-z][a-z0-9-]{0,62}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_NAME = re.compile(rf"models/({MODEL_ID.pattern})(?:/versions/({_NUMBER.pattern}))?")


@dataclass(frozen=True)
class Version:
    """One published network."""

    model: str
    number: int
    directory: Path
    manifest: Manifest
    size_bytes: int
    """Of `model.onnx`."""
    job: str
    """Name of the job that made it, `jobs/{job_id}`."""

    @property
    def name(self) -> str:
        return f"models/{self.model}/versions/{self.number}"


class Registry:
    """The versions below `root` that can be served. Safe to use from any thread; one process owns a root."""

    def __init__(self, root: Path) -> None:
        """Read the manifests below `root`; digests of the graphs are checked when they are loaded."""
        self._root = root
        self._lock = threading.Lock()
        # Replaced, never changed, so that readers need no lock. Numbers fall: the newest version comes first.
        self._models: dict[str, tuple[Version, ...]] = {}
        root.mkdir(parents=True, exist_ok=True)
        for directory in sorted(root.iterdir()):
            if MODEL_ID.fullmatch(directory.name) and directory.is_dir():
                self._scan(directory)
            else:
                logger.warning("%s is not a model's directory and is left alone", directory)

    def publish(self, model: str, staging: Path, job: str) -> str:
        """Move `staging` in as the newest version of `model`; returns `models/{model}/versions/{version}`.

        Safe to repeat after a crash at any point: what `job` has published already is returned, not published again.
        `staging` must be on the same filesystem. Raises ExportError if it holds no sound model, OSError if it cannot
        be written.
        """
        check_model_id(model, "model_id")
        with self._lock:
            digest = read_manifest(staging).model_digest if staging.exists() else None
            for version in self._models.get(model, ()):
                if version.job == job and digest in (None, version.manifest.model_digest):
                    return version.name
            (staging / JOB_FILE).write_text(json.dumps({"job": job}) + "\n")
            for file in staging.iterdir():
                _sync(file)
            _sync(staging)
            parent = self._root / model
            parent.mkdir(exist_ok=True)
            _sync(self._root)
            # Numbers of damaged versions are not given away again: somebody may have seen them when they were sound.
            number = 1 + max(_numbers(parent), default=0)
            staging.rename(parent / str(number))
            _sync(parent)
            version = _read(model, number, parent / str(number))
            self._models = self._models | {model: (version, *self._models.get(model, ()))}
            logger.info("published %s from %s", version.name, job)
            return version.name

    def withdraw(self, version: Version, reason: str) -> None:
        """Serve `version` no more, until the next start finds it sound. Its files stay for whoever looks into it."""
        logger.error("%s is damaged and not served: %s", version.name, reason)
        with self._lock:
            rest = tuple(v for v in self._models.get(version.model, ()) if v.number != version.number)
            others = {model: versions for model, versions in self._models.items() if model != version.model}
            self._models = others | {version.model: rest} if rest else others

    def models(self) -> Mapping[str, tuple[Version, ...]]:
        """All versions of every model at this moment, newest first."""
        return self._models

    def versions(self, model: str) -> tuple[Version, ...]:
        """All versions of a model, newest first. Raises NotFound."""
        versions = self._models.get(model)
        if versions is None:
            raise NotFound(f"there is no model {model!r:.200}")
        return versions

    def version(self, model: str, number: int | None = None) -> Version:
        """One version, by default the newest. Raises NotFound."""
        versions = self.versions(model)
        if number is None:
            return versions[0]
        for version in versions:
            if version.number == number:
                return version
        raise NotFound(f"models/{model} has no version {number}, the newest is {versions[0].number}")

    def _scan(self, directory: Path) -> None:
        versions = []
        for number in sorted(_numbers(directory), reverse=True):
            try:
                versions.append(_read(directory.name, number, directory / str(number)))
            except (BllError, OSError, ValueError, KeyError, TypeError) as error:
                logger.error("models/%s/versions/%s is damaged and not served: %s", directory.name, number, error)
        if versions:
            self._models[directory.name] = tuple(versions)


def parse_name(name: str, field: str) -> tuple[str, int | None]:
    """Model and version number (None: the newest) of `models/{model}` or `models/{model}/versions/{version}`.

    Raises InvalidRequest, naming `field`.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        rule = f"must be models/{{model}} or models/{{model}}/versions/{{version}}, got {name!r:.200}"
        raise InvalidRequest(Violation(field, rule))
    return match[1], int(match[2]) if match[2] else None


def check_model_id(model: str, field: str) -> None:
    """Raises InvalidRequest, naming `field`, if `model` cannot be a model's id."""
    if not MODEL_ID.fullmatch(model):
        raise InvalidRequest(Violation(field, f"must match {MODEL_ID.pattern}, got {model!r:.200}"))


def parse_number(text: str, field: str) -> int:
    """The version number that `text` holds. Raises InvalidRequest, naming `field`."""
    if not _NUMBER.fullmatch(text):
        raise InvalidRequest(Violation(field, f"must be a whole number from 1 up, got {text!r:.200}"))
    return int(text)


def _numbers(directory: Path) -> list[int]:
    return [int(entry.name) for entry in directory.iterdir() if _NUMBER.fullmatch(entry.name)]


def _read(model: str, number: int, directory: Path) -> Version:
    manifest = read_manifest(directory, check_digest=False)
    size_bytes = (directory / MODEL_FILE).stat().st_size
    job = json.loads((directory / JOB_FILE).read_text())["job"]
    return Version(model, number, directory, manifest, size_bytes, job)


def _sync(path: Path) -> None:
    """Have the content of a file, or the names in a directory, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
