"""TLS and mTLS: who gets in, and certificates that change under a running server."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bll_client import TLS, AsyncClient, Client, Unavailable
from bll_client.cli import main
from bll_server.app import CannotStart, Server
from bll_server.services.health import Health
from bll_server.settings import Settings
from bll_server.tls import BadCertificate, Certificates

from .certificates import Authority, Pair

HEALTHCHECK = Path(__file__).parents[3] / "deploy" / "healthcheck.py"
AT_ONCE = timedelta(seconds=10)


@contextmanager
def answering(certificates: Certificates) -> Iterator[str]:
    """Where the health service answers with those certificates."""
    server = grpc.server(ThreadPoolExecutor(2))
    Health((), ()).add_to(server)
    port = server.add_secure_port("127.0.0.1:0", certificates.credentials())
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def check(address: str, tls: TLS) -> grpc.StatusCode:
    """How a call over a new connection ends."""
    options = (*tls.options(), ("grpc.use_local_subchannel_pool", 1))
    with grpc.secure_channel(address, tls.credentials(), options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def settings(data_dir: Path, pair: Pair, **more: Any) -> Settings:
    return Settings(port=0, metrics_port=0, data_dir=data_dir, drain_s=1, tls_cert=pair.cert, tls_key=pair.key, **more)


@pytest.fixture(scope="module")
def mutual(authority: Authority, server_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A whole server that wants certificates of its clients."""
    server = Server(settings(tmp_path_factory.mktemp("mutual"), server_pair, tls_client_ca=authority.cert))
    yield server
    server.stop()


def test_both_clients_reach_a_server_that_knows_their_certificate(
    mutual: Server, authority: Authority, client_pair: Pair
) -> None:
    tls = TLS(authority.cert, client_pair.cert, client_pair.key)
    with Client(mutual.address, tls=tls) as client:
        assert list(client.list_jobs()) == []

    async def ask() -> list[Any]:
        async with AsyncClient(mutual.address, tls=tls) as client:
            return [job async for job in client.list_jobs()]

    assert asyncio.run(ask()) == []


def test_a_client_in_plain_text_without_a_certificate_or_with_a_strangers_is_turned_away(
    mutual: Server, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other").sign("stranger")
    for tls in (None, TLS(authority.cert), TLS(authority.cert, other.cert, other.key)):
        with Client(mutual.address, tls=tls, timeout=AT_ONCE) as client, pytest.raises(Unavailable):
            client.get_model("any")


def test_a_client_refuses_a_server_of_another_ca_or_of_another_name(
    authority: Authority, server_pair: Pair, client_pair: Pair, tmp_path: Path
) -> None:
    elsewhere = authority.sign("elsewhere", "DNS:bll.example")
    with answering(Certificates(server_pair.cert, server_pair.key, None)) as address:
        assert check(address, TLS(authority.cert)) is grpc.StatusCode.OK
        assert check(address, TLS(Authority(tmp_path, "other").cert)) is grpc.StatusCode.UNAVAILABLE
    with answering(Certificates(elsewhere.cert, elsewhere.key, None)) as address:
        assert check(address, TLS(authority.cert)) is grpc.StatusCode.UNAVAILABLE
        assert check(address, TLS(authority.cert, server_name="bll.example")) is grpc.StatusCode.OK


def test_the_command_line_takes_its_certificates_from_flags_and_from_the_environment(
    mutual: Server,
    authority: Authority,
    client_pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--ca", authority.cert, "--cert", client_pair.cert, "--key", client_pair.key]
    command = ["jobs", "list", "--server", mutual.address, "-o", "json"]
    assert main([*map(str, flags), *command]) == 0
    assert capsys.readouterr().out == "[]\n"
    for name, path in (("BLL_CA", authority.cert), ("BLL_CERT", client_pair.cert), ("BLL_KEY", client_pair.key)):
        monkeypatch.setenv(name, str(path))
    assert main(command) == 0
    monkeypatch.delenv("BLL_CA")
    assert main(command) == 2  # a certificate that would not be shown
    assert "--ca" in capsys.readouterr().err


def test_the_health_probe_of_the_image_works_over_mutual_tls(
    mutual: Server, authority: Authority, client_pair: Pair
) -> None:
    variables = {"BLL_CA": authority.cert, "BLL_CERT": client_pair.cert, "BLL_KEY": client_pair.key}
    for given, code in ((variables, 0), ({}, 1)):
        environment = os.environ | {name: str(path) for name, path in given.items()}
        probe = [sys.executable, str(HEALTHCHECK), mutual.address]
        assert subprocess.run(probe, env=environment, capture_output=True, timeout=60).returncode == code


def test_a_new_certificate_is_shown_without_a_restart_and_a_broken_one_keeps_the_old(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = authority.sign("first", "DNS:first"), authority.sign("second", "DNS:second")
    used = Pair(tmp_path / "used.pem", tmp_path / "used.key")

    def put(cert: Path, key: Path) -> None:
        for source, target in ((cert, used.cert), (key, used.key)):
            new = target.with_suffix(".new")
            shutil.copy(source, new)
            new.replace(target)

    put(first.cert, first.key)
    with answering(Certificates(used.cert, used.key, None)) as address:

        def shown() -> list[str]:
            names = ("first", "second")
            return [n for n in names if check(address, TLS(authority.cert, server_name=n)) is grpc.StatusCode.OK]

        assert shown() == ["first"]
        put(second.cert, second.key)
        assert shown() == ["second"]
        put(first.cert, second.key)  # half of a change
        assert shown() == ["second"]
        used.cert.unlink()
        assert shown() == ["second"]
        put(first.cert, first.key)
        assert shown() == ["first"]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("the old one stays" in message for message in told)
    assert not any("PRIVATE" in record.getMessage() for record in caplog.records)


def test_the_ca_of_the_clients_is_read_again_too(
    authority: Authority, server_pair: Pair, client_pair: Pair, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    used = tmp_path / "clients.pem"
    shutil.copy(other.cert, used)
    tls = TLS(authority.cert, client_pair.cert, client_pair.key)
    with answering(Certificates(server_pair.cert, server_pair.key, used)) as address:
        assert check(address, tls) is grpc.StatusCode.UNAVAILABLE
        used.write_bytes(authority.cert.read_bytes())
        assert check(address, tls) is grpc.StatusCode.OK


def test_files_that_do_not_belong_together_end_the_start(
    authority: Authority, server_pair: Pair, client_pair: Pair, tmp_path: Path
) -> None:
    encrypted = tmp_path / "encrypted.key"
    command = [
        "openssl",
        "ec",
        "-in",
        str(server_pair.key),
        "-aes256",
        "-passout",
        "pass:secret",
        "-out",
        str(encrypted),
    ]
    subprocess.run(command, check=True, capture_output=True)
    for key in (client_pair.key, encrypted, tmp_path / "none.key"):
        with pytest.raises(BadCertificate, match=key.name):
            Certificates(server_pair.cert, key, None)
    with pytest.raises(CannotStart, match=r"none\.pem"):
        Server(settings(tmp_path / "data", server_pair, tls_client_ca=tmp_path / "none.pem"))
