"""A real Prometheus scrapes the server; its own tool accepts the metrics and our configuration."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bll_proto.v1 import training_pb2

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (Debian: apt-get install prometheus)",
)


@pytest.fixture
def prometheus(server: Any, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes the server every second."""
    target = urllib.parse.urlsplit(server.metrics_url)
    config = tmp_path / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                "scrape_configs": [
                    {"job_name": "bll", "metrics_path": target.path, "static_configs": [{"targets": [target.netloc]}]}
                ],
            }
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with (
        (tmp_path / "prometheus.log").open("w") as log,
        subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log) as process,
    ):
        yield address
        process.terminate()


def query(address: str, expression: str) -> list[Any]:
    """The instant vector of `expression`; empty while Prometheus is starting."""
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            result: list[Any] = json.load(reply)["data"]["result"]
            return result
    except (urllib.error.URLError, ConnectionError):
        return []


def test_prometheus_scrapes_the_server_and_finds_its_metrics(
    prometheus: str, job: training_pb2.Job, eventually: Any
) -> None:
    eventually(lambda: [s["value"][1] for s in query(prometheus, 'up{job="bll"}')] == ["1"], 30)
    eventually(lambda: bool(query(prometheus, 'grpc_server_handled_total{grpc_method="CreateJob"} > 0')), 30)
    eventually(lambda: bool(query(prometheus, '{__name__=~"bll_.+"}')), 30)


def test_promtool_accepts_the_metrics(server: Any, job: training_pb2.Job) -> None:
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=server.metrics(), capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stderr) == (0, "")


def test_promtool_accepts_the_scrape_configuration() -> None:
    config = ROOT / "deploy" / "prometheus.yml"
    check = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
