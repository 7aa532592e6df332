"""How every command connects: options before the command's name, or the environment."""

from __future__ import annotations

import shlex
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer

from bll_client import TLS, Client
from bll_client._channel import DEFAULT_TARGET

_tls: ContextVar[TLS | None] = ContextVar("TLS of this command line", default=None)

PemFile = Path | None


def options(
    tls: Annotated[bool, typer.Option("--tls", envvar="BLL_TLS", help="Encrypt; trust the public CAs.")] = False,
    ca: Annotated[
        PemFile, typer.Option("--ca", envvar="BLL_CA", help="Encrypt; trust the CA in this PEM file alone.")
    ] = None,
    cert: Annotated[
        PemFile, typer.Option("--cert", envvar="BLL_CERT", help="Our certificate, for a server that asks for one.")
    ] = None,
    key: Annotated[PemFile, typer.Option("--key", envvar="BLL_KEY", help="The certificate's key.")] = None,
    server_name: Annotated[
        str | None,
        typer.Option(envvar="BLL_SERVER_NAME", help="The name in the server's certificate, if not its host."),
    ] = None,
) -> None:
    """Train networks block by block on a bll server, and predict with an uncertainty for every sample."""
    if not (tls or ca) and (cert or key or server_name):
        raise typer.BadParameter("--cert, --key and --server-name need --ca or --tls")
    try:
        _tls.set(TLS(ca, cert, key, server_name) if tls or ca else None)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def connect(server: str) -> Client:
    """A client with the options of this command line."""
    return Client(server, tls=_tls.get())


def again(name: str, server: str) -> str:
    """The command line that goes on watching the job."""
    tls = _tls.get()
    words = ["bll"]
    if tls:
        words += [] if tls.ca else ["--tls"]
        given = {"--ca": tls.ca, "--cert": tls.cert, "--key": tls.key, "--server-name": tls.server_name}
        for flag, value in given.items():
            words += [flag, str(value)] if value else []
    words += ["jobs", "watch", name]
    words += [] if server == DEFAULT_TARGET else ["--server", server]
    return shlex.join(words)
