"""The files in deploy/ agree with each other and with the server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bll_server.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


@pytest.fixture
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())


def test_compose_builds_a_target_that_the_dockerfile_has(compose: Any) -> None:
    build = compose["services"]["bll"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert build["target"] in re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)


def test_compose_publishes_ports_on_loopback_only(compose: Any) -> None:
    published = [port for service in compose["services"].values() for port in service["ports"]]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_compose_mounts_files_and_volumes_that_exist(compose: Any) -> None:
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in compose["volumes"]


def test_prometheus_scrapes_a_service_of_the_compose_file_on_a_port_that_the_image_exposes(compose: Any) -> None:
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    targets = [t for job in scrape["scrape_configs"] for config in job["static_configs"] for t in config["targets"]]
    exposed = re.findall(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)
    for host, port in (target.split(":") for target in targets):
        assert host in compose["services"]
        assert all(port in line.split() for line in exposed)


def test_both_images_run_as_an_ordinary_user_and_ask_the_server_for_its_health() -> None:
    for target in ("cpu", "cuda"):
        stage = re.search(rf"^FROM \S+ AS {target}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
        assert stage
        assert re.search(r"^USER 10001$", stage[1], re.MULTILINE)
        assert "/opt/bll/healthcheck.py" in stage[1].partition("HEALTHCHECK")[2]


def test_the_images_serve_beyond_loopback_only_with_tls_or_the_consent_of_whoever_runs_them(compose: Any) -> None:
    entries = re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    assert len(entries) == 2
    for entry in entries:
        program, command, *flags = json.loads(entry)
        assert (program, command) == ("bll", "serve")
        with pytest.raises(ValidationError, match="TLS"):
            Settings.from_flags(flags)
        assert Settings.from_flags([*flags, "--tls-cert", "cert.pem", "--tls-key", "key.pem"]).host == "0.0.0.0"
        assert Settings.from_flags([*flags, *compose["services"]["bll"]["command"]]).insecure
