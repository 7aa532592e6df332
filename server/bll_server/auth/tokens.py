"""The tokens of one data directory: a small file for each, which holds the token's digest and never the token.

A token is 256 random bits, so that its SHA-256 tells nothing of it: the slow, salted hashes that passwords need protect
secrets that can be guessed, and would cost every call its time. A revoked token keeps its file: a server that has once
had tokens must not open itself when the last is taken back. Files are read again when they change, so that what
`bll token` does holds for the next call.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bll.errors import Violation
from bll_server.auth.roles import Role
from bll_server.errors import InvalidRequest, NotFound, Unauthenticated

log = logging.getLogger(__name__)

TOKENS = "tokens"
"""Folder of the data directory."""
OWNER = re.compile(r"[a-z][a-z0-9-]{0,62}")
_ID = re.compile(r"[0-9a-f]{12}")
_REFUSED = "the token is not one of this server's"


@dataclass(frozen=True)
class Token:
    """What is kept of a token."""

    token_id: str
    owner: str
    role: Role
    sha256: str
    """Of the token's text, in hex."""
    create_time: datetime
    expire_time: datetime | None
    revoke_time: datetime | None = None

    def check(self) -> None:
        """Raises Unauthenticated if the token is good no more."""
        if self.revoke_time:
            raise Unauthenticated("the token was revoked")
        if self.expire_time and self.expire_time <= datetime.now(UTC):
            raise Unauthenticated("the token has expired")


class Tokens:
    """Safe to call from many threads, and beside other processes on the same directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[str, tuple[tuple[int, int], Token]] = {}
        self._any = False

    def any(self) -> bool:
        """A token was made here once, whatever has become of it."""
        if not self._any and self._directory.is_dir():
            self._any = any(_ID.fullmatch(path.stem) for path in self._directory.glob("*.json"))
        return self._any

    def create(self, owner: str, role: Role, lifetime: timedelta | None) -> tuple[Token, str]:
        """A new token, and its text, which is nowhere else. Raises InvalidRequest."""
        if not OWNER.fullmatch(owner):
            raise InvalidRequest(Violation("owner", f"must match {OWNER.pattern}, got {owner!r:.100}"))
        if lifetime is not None and lifetime <= timedelta():
            raise InvalidRequest(Violation("lifetime", f"must be positive, got {lifetime}"))
        token_id = secrets.token_hex(6)
        text = f"bll_{token_id}_{secrets.token_urlsafe(32)}"  # the prefix is for scanners of leaked secrets
        now = datetime.now(UTC)
        token = Token(token_id, owner, role, _digest(text), now, now + lifetime if lifetime else None)
        self._write(token)
        return token, text

    def all(self) -> list[Token]:
        """Every token, oldest first."""
        found = (self._find(path.stem) for path in self._directory.glob("*.json"))
        return sorted((token for token in found if token), key=lambda token: token.create_time)

    def revoke(self, token_id: str) -> Token:
        """The token, good no more from now on. Raises NotFound."""
        token = self._find(token_id)
        if token is None:
            raise NotFound(f"no token has the id {token_id!r:.100}")
        if token.revoke_time is None:
            token = replace(token, revoke_time=datetime.now(UTC))
            self._write(token)
        return token

    def authenticate(self, text: str) -> Token:
        """The token with that text. Raises Unauthenticated."""
        prefix, _, rest = text.partition("_")
        token = self._find(rest.partition("_")[0]) if prefix == "bll" else None
        # In constant time: how much of a digest was right must not show. Ids are no secret.
        if token is None or not hmac.compare_digest(token.sha256, _digest(text)):
            raise Unauthenticated(_REFUSED)
        token.check()
        return token

    def check(self, token_id: str) -> None:
        """Raises Unauthenticated if the token that was good when a stream began is so no more."""
        token = self._find(token_id)
        if token is None:
            raise Unauthenticated(_REFUSED)
        token.check()

    def _find(self, token_id: str) -> Token | None:
        if not _ID.fullmatch(token_id):  # it comes from the network, and becomes a file's name
            return None
        path = self._directory / f"{token_id}.json"
        try:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns)
            known = self._read.get(token_id)
            if known is None or known[0] != stamp:
                known = self._read[token_id] = (stamp, _from_dict(json.loads(path.read_bytes())))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("the token %s cannot be read and is refused: %s", token_id, error)
            return None
        return known[1]

    def _write(self, token: Token) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._directory / f"{token.token_id}.json"
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(_to_dict(token), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)  # a revocation that was told of survives power loss
        finally:
            os.close(directory)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _to_dict(token: Token) -> dict[str, Any]:
    times = {name: getattr(token, name) for name in ("create_time", "expire_time", "revoke_time")}
    return {
        "token_id": token.token_id,
        "owner": token.owner,
        "role": str(token.role),
        "sha256": token.sha256,
        **{name: time.isoformat() if time else None for name, time in times.items()},
    }


def _from_dict(values: dict[str, Any]) -> Token:
    expires, revoked = values["expire_time"], values["revoke_time"]
    return Token(
        values["token_id"],
        values["owner"],
        Role[values["role"].upper()],
        values["sha256"],
        datetime.fromisoformat(values["create_time"]),
        datetime.fromisoformat(expires) if expires else None,
        datetime.fromisoformat(revoked) if revoked else None,
    )
