import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bll_server.auth.roles import Role
from bll_server.auth.tokens import Tokens
from bll_server.errors import InvalidRequest, NotFound, Unauthenticated
from bll_server.settings import Settings


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens")


def test_a_token_is_known_by_its_text_which_is_kept_nowhere(tokens: Tokens, tmp_path: Path) -> None:
    token, text = tokens.create("ann", Role.TRAINER, timedelta(days=1))
    assert tokens.authenticate(text) == token
    (file,) = (tmp_path / "tokens").iterdir()
    assert text not in file.read_text()
    assert text.rpartition("_")[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_no_other_text_is_a_token(tokens: Tokens) -> None:
    _, first = tokens.create("ann", Role.ADMIN, None)
    _, second = tokens.create("bob", Role.VIEWER, None)
    mixed = first[:17] + second[17:]
    for text in (mixed, first + "x", first[:-1], first.upper(), "", "bll_", "bll__", "bll_/etc/passwd_", "\udcff"):
        with pytest.raises(Unauthenticated):
            tokens.authenticate(text)


def test_an_expired_token_is_refused(tokens: Tokens, tmp_path: Path) -> None:
    token, text = tokens.create("ann", Role.VIEWER, timedelta(days=1))
    file = tmp_path / "tokens" / f"{token.token_id}.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"expire_time": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}))
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.authenticate(text)


def test_a_revoked_token_is_refused_at_once_listed_and_stays_revoked(tokens: Tokens, tmp_path: Path) -> None:
    token, text = tokens.create("ann", Role.VIEWER, None)
    tokens.authenticate(text)
    other = Tokens(tmp_path / "tokens")
    revoked = other.revoke(token.token_id)
    with pytest.raises(Unauthenticated, match="revoked"):
        tokens.authenticate(text)
    assert other.revoke(token.token_id) == revoked
    assert tokens.all() == [revoked]
    assert tokens.any()
    with pytest.raises(NotFound):
        tokens.revoke("../../etc")


def test_a_damaged_file_refuses_its_token_and_no_other(tokens: Tokens, tmp_path: Path) -> None:
    damaged, text = tokens.create("ann", Role.ADMIN, None)
    _, whole = tokens.create("bob", Role.ADMIN, None)
    (tmp_path / "tokens" / f"{damaged.token_id}.json").write_text("{")
    with pytest.raises(Unauthenticated):
        tokens.authenticate(text)
    assert tokens.authenticate(whole).owner == "bob"


@pytest.mark.parametrize("owner", ["", "Ann", "a:b", "../x", "a" * 64])
def test_an_owner_has_a_plain_name(tokens: Tokens, owner: str) -> None:
    with pytest.raises(InvalidRequest, match="owner"):
        tokens.create(owner, Role.VIEWER, None)


def test_a_server_that_others_reach_asks_for_tokens_before_there_are_any() -> None:
    tls = {"tls_cert": Path("c"), "tls_key": Path("k")}
    assert Settings(host="0.0.0.0", **tls).open_to_others  # type: ignore[arg-type]
    assert not Settings(host="0.0.0.0", insecure=True).open_to_others
    assert not Settings().open_to_others
