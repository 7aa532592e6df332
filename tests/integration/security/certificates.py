"""Certificates for the tests, made by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """A CA that signs what it is asked to."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
        _openssl(
            *("req", "-x509", *_new_key(self._pair.key, self._pair.cert), "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"),
        )

    @property
    def cert(self) -> Path:
        return self._pair.cert

    def sign(self, name: str, alternative_names: str = "IP:127.0.0.1,DNS:localhost") -> Pair:
        """A new certificate in files of that name."""
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        request, extensions = self._directory / f"{name}.csr", self._directory / f"{name}.ext"
        _openssl("req", "-new", *_new_key(pair.key, request), "-subj", f"/CN={name}")
        extensions.write_text(f"subjectAltName={alternative_names}")
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self._pair.cert, "-CAkey", self._pair.key, "-CAcreateserial"),
            *("-days", "1", "-extfile", extensions, "-out", pair.cert),
        )
        return pair


def _new_key(key: Path, out: Path) -> tuple[str | Path, ...]:
    curve = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    return ("-newkey", *curve, "-nodes", "-keyout", key, "-out", out)


def _openssl(*arguments: str | Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("the openssl command makes the certificates of these tests, and is not installed")
    subprocess.run([program, *arguments], check=True, capture_output=True)
