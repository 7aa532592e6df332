"""A real Prometheus scrapes the server; its own tool accepts the metrics and our configuration."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bll_client import Client
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
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(ROOT / "deploy" / "alerts.yml")],
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


def ask(address: str, what: str) -> Any:
    """The data of Prometheus's answer; None while it is starting."""
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/{what}", timeout=5) as reply:
            return json.load(reply)["data"]
    except (urllib.error.URLError, ConnectionError):
        return None


def query(address: str, expression: str) -> list[Any]:
    """The instant vector of `expression`; empty while Prometheus is starting."""
    answer = ask(address, f"query?{urllib.parse.urlencode({'query': expression})}")
    return answer["result"] if answer else []


def test_prometheus_scrapes_the_server_and_finds_its_metrics(
    prometheus: str, job: training_pb2.Job, eventually: Any
) -> None:
    eventually(lambda: [s["value"][1] for s in query(prometheus, 'up{job="bll"}')] == ["1"], 30)
    eventually(lambda: bool(query(prometheus, 'grpc_server_handled_total{grpc_method="CreateJob"} > 0')), 30)
    eventually(lambda: bool(query(prometheus, '{__name__=~"bll_.+"}')), 30)


def test_prometheus_knows_every_metric_of_the_page_while_a_job_runs_and_its_series_go_with_it(
    prometheus: str, server: Any, job: training_pb2.Job, eventually: Any
) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    kinds = dict(re.findall(r"^\| `(\w+)` \| (\w+) ", page, re.MULTILINE))
    wanted = {f"{name}_bucket" if kind == "histogram" else name for name, kind in kinds.items()}
    wanted -= {"bll_job_block_restarts_total"}  # no worker is lost here

    def known() -> set[str]:
        return set(ask(prometheus, "label/__name__/values") or ())

    spec = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [16, 16]},
        "blocks": {"num_blocks": 2},
        "epochs": 10_000,
    }
    with Client(server.address, timeout=timedelta(seconds=60)) as client:
        client.predict("digits", np.zeros((2, 1, 8, 8), np.float32))
        live = client.create_job(spec, job_id="live").name
        try:
            eventually(lambda: not wanted - known(), 60)
            eventually(lambda: len(query(prometheus, 'bll_job_block_agreement{exported_job="live"}')) == 2, 10)
        finally:
            client.cancel_job(live)
        client.wait_for_job(live)
    eventually(lambda: query(prometheus, '{exported_job="live"}') == [], 30)
    rules = [rule for group in ask(prometheus, "rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 10
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} <= {("ok", ""), ("unknown", "")}


def test_promtool_accepts_the_metrics(server: Any, job: training_pb2.Job) -> None:
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=server.metrics(), capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stderr) == (0, "")


def test_promtool_accepts_the_scrape_configuration() -> None:
    config = ROOT / "deploy" / "prometheus.yml"
    check = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
