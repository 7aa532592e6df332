"""What a call has to pass before the server reads its message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bll_server.auth.caller import ANYBODY, Caller
from bll_server.auth.roles import access
from bll_server.auth.tokens import Tokens
from bll_server.errors import NotFound, PermissionDenied, Unauthenticated

_SCHEME = "bearer "
_NOUNS = {"jobs": "job", "studies": "study"}


class Gate:
    """The rules of one server."""

    def __init__(self, tokens: Tokens, owners: Mapping[str, Callable[[str], str]], *, always: bool) -> None:
        """Tokens are asked for `always`, or as soon as there is one.

        `owners` say whose an id is, by the first word of names: `jobs`, `studies`. They raise NotFound.
        """
        self._tokens = tokens
        self._owners = owners
        self._always = always

    def identify(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Who calls the method of that path. Raises Unauthenticated."""
        if access(method).least is None or not (self._always or self._tokens.any()):
            return ANYBODY
        token = self._tokens.authenticate(_bearer(metadata))
        return Caller(token.owner, token.role, token.token_id)

    def permit(self, caller: Caller, method: str) -> None:
        """Raises PermissionDenied if the caller's role is too low for the method of that path."""
        least = access(method).least
        if least is not None and caller.role < least:
            name = method.rpartition("/")[2]
            raise PermissionDenied(f"{name} needs a token of role {least} or higher, got one of role {caller.role}")

    def check_owner(self, caller: Caller, message: Any) -> None:
        """Raises NotFound for a job or study that is another's: not even its existence is told."""
        owner = caller.sees_only
        kind, _, rest = resource_of(message).partition("/")
        if owner is None or kind not in self._owners:
            return
        resource_id = rest.partition("/")[0]
        if self._owners[kind](resource_id) != owner:
            raise NotFound(f"no {_NOUNS[kind]} is named '{kind}/{resource_id}'")

    def check_still(self, caller: Caller) -> None:
        """In the middle of a stream: raises Unauthenticated if the token was revoked or has expired since."""
        if caller.token_id:
            self._tokens.check(caller.token_id)


def resource_of(message: Any) -> str:
    """The name of the resource that a request or an answer is about, or ""."""
    parts = (message, *(getattr(message, part, None) for part in ("job", "study", "dataset", "model")))
    names = (getattr(part, field, "") for part in parts for field in ("name", "parent"))
    return next((name for name in names if isinstance(name, str) and name), "")


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    given = [value for key, value in metadata if key == "authorization"]
    if len(given) != 1:
        raise Unauthenticated("the call must carry one token, as metadata `authorization: Bearer TOKEN`")
    (value,) = given
    if not isinstance(value, str) or not value.lower().startswith(_SCHEME):
        raise Unauthenticated("the authorization must be `Bearer TOKEN`")
    return value[len(_SCHEME) :].strip()
