"""`bll token`: make, list and take back the tokens of a data directory, whether its server runs or not."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path

from bll_server.auth.audit import AUDIT, Audit
from bll_server.auth.roles import Role
from bll_server.auth.tokens import TOKENS, Tokens
from bll_server.errors import ServerError
from bll_server.settings import Settings

_DEFAULT_DAYS = 90.0


def token_command(argv: list[str]) -> int:
    """Carry out the command line; returns its exit status."""
    options = _parser().parse_args(argv)
    tokens = Tokens(options.data_dir / TOKENS)
    try:
        options.run(tokens, options)
    except (ServerError, OSError) as error:
        print(f"bll token: {error}", file=sys.stderr)
        return 1
    return 0


def _create(tokens: Tokens, options: argparse.Namespace) -> None:
    lifetime = timedelta(days=options.days) if options.days else None
    token, text = tokens.create(options.owner, Role[options.role.upper()], lifetime)
    until = f"until {token.expire_time:%Y-%m-%d %H:%M} UTC" if token.expire_time else "until it is revoked"
    _audit(options, "create token", token.token_id, role=str(token.role), owner=token.owner)
    print(f"token {token.token_id} of {token.owner}, {token.role}, {until}; it is shown this once:", file=sys.stderr)
    print(text)


def _list(tokens: Tokens, options: argparse.Namespace) -> None:
    for token in tokens.all():
        times = ((name, getattr(token, f"{name}_time")) for name in ("create", "expire", "revoke"))
        shown = [f"{name}={time:%Y-%m-%dT%H:%M:%SZ}" for name, time in times if time]
        print(token.token_id, token.owner, token.role, *shown)


def _revoke(tokens: Tokens, options: argparse.Namespace) -> None:
    token = tokens.revoke(options.token_id)
    _audit(options, "revoke token", token.token_id)
    print(f"token {token.token_id} of {token.owner} is revoked")


def _audit(options: argparse.Namespace, what: str, token_id: str, **more: str) -> None:
    Audit(options.data_dir / AUDIT).write(f"uid {os.getuid()}", what, f"tokens/{token_id}", "OK", **more)


def _parser() -> argparse.ArgumentParser:
    folder = os.environ.get("BLL_DATA_DIR") or Settings.model_fields["data_dir"].default
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", type=Path, default=Path(folder), help="the server's; by default %(default)s")
    parser = argparse.ArgumentParser(prog="bll token", description=__doc__)
    commands = parser.add_subparsers(required=True)
    create = commands.add_parser("create", parents=[shared], help="print a new token")
    create.add_argument("--owner", required=True, help="whose jobs its holder sees and changes")
    create.add_argument("--role", required=True, choices=[str(role) for role in Role])
    create.add_argument(
        "--days", type=float, default=_DEFAULT_DAYS, help="how long it is good; 0: for ever; by default %(default)g"
    )
    create.set_defaults(run=_create)
    commands.add_parser("list", parents=[shared], help="show all tokens but their secrets").set_defaults(run=_list)
    revoke = commands.add_parser("revoke", parents=[shared], help="refuse a token from its next call on")
    revoke.add_argument("token_id")
    revoke.set_defaults(run=_revoke)
    return parser
