"""How every command connects: options before the command's name, or the environment."""

from __future__ import annotations

import os
import shlex
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bll_client import TLS, Client
from bll_client._channel import DEFAULT_TARGET


@dataclass(frozen=True)
class Connection:
    """How this command line connects."""

    tls: TLS | None = None
    token: str | None = None
    insecure: bool = False
    token_file: Path | None = None


_connection: ContextVar[Connection] = ContextVar("connection", default=Connection())  # noqa: B039 - it is frozen

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
    token_file: Annotated[
        Path | None, typer.Option(envvar="BLL_TOKEN_FILE", help="The file that holds our token, alone.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Send the token to another machine although nothing encrypts it.")
    ] = False,
) -> None:
    """Train networks block by block on a bll server, and predict with an uncertainty for every sample."""
    if not (tls or ca) and (cert or key or server_name):
        raise typer.BadParameter("--cert, --key and --server-name need --ca or --tls")
    try:
        encryption = TLS(ca, cert, key, server_name) if tls or ca else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    # Never a flag: a command line is for every process of the machine to read.
    token = token_file.read_text().strip() if token_file else os.environ.get("BLL_TOKEN")
    _connection.set(Connection(encryption, token, insecure, token_file))


def connect(server: str) -> Client:
    """A client with the options of this command line."""
    connection = _connection.get()
    try:
        return Client(server, tls=connection.tls, token=connection.token, insecure=connection.insecure)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def again(noun: str, name: str, server: str) -> str:
    """The command line that goes on watching the job or study."""
    connection = _connection.get()
    tls = connection.tls
    words = ["bll"]
    words += ["--token-file", str(connection.token_file)] if connection.token_file else []
    words += ["--insecure"] if connection.insecure else []
    if tls:
        words += [] if tls.ca else ["--tls"]
        given = {"--ca": tls.ca, "--cert": tls.cert, "--key": tls.key, "--server-name": tls.server_name}
        for flag, value in given.items():
            words += [flag, str(value)] if value else []
    words += [noun, "watch", name]
    words += [] if server == DEFAULT_TARGET else ["--server", server]
    return shlex.join(words)
