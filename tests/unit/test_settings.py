from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from bll_server.__main__ import serve_command
from bll_server.settings import Settings


def test_flags_overrule_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLL_PORT", "1")
    monkeypatch.setenv("BLL_MAX_JOBS", "3")
    settings = Settings.from_flags(["--port", "0", "--data-dir", "x", "--log-format", "json"])
    assert (settings.port, settings.max_jobs, settings.data_dir) == (0, 3, Path("x"))
    assert settings.log_format == "json"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_consent(host: str) -> None:
    assert Settings.from_flags(["--host", host]).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_any_other_address_is_refused_without_tls_or_insecure(host: str) -> None:
    with pytest.raises(ValidationError, match="loopback"):
        Settings.from_flags([f"--host={host}"])
    assert Settings.from_flags([f"--host={host}", "--insecure"]).insecure
    assert Settings.from_flags([f"--host={host}", "--tls-cert=c", "--tls-key=k"]).tls_cert == Path("c")


@pytest.mark.parametrize("flags", [["--tls-cert=c"], ["--tls-key=k"], ["--tls-client-ca=a"]])
def test_half_of_tls_is_refused(flags: list[str]) -> None:
    with pytest.raises(ValidationError, match=r"together|with tls_cert"):
        Settings.from_flags(flags)


def test_metrics_stay_on_loopback_where_calls_do_not() -> None:
    assert Settings.from_flags(["--host=0.0.0.0", "--insecure"]).metrics_host == "127.0.0.1"


@pytest.mark.parametrize(
    "flags", [["--port", "70000"], ["--max-jobs", "0"], ["--max-message-mb", "x"], ["--log-format", "xml"]]
)
def test_a_flag_out_of_range_ends_the_start_and_is_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_command(flags) == 2
    assert flags[0] in capsys.readouterr().err


def test_a_database_that_is_not_postgres_is_refused_and_its_password_is_not_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert serve_command(["--database-url=mysql://bll:s3cret@host/jobs"]) == 2
    told = capsys.readouterr().err
    assert "postgresql://" in told
    assert "s3cret" not in told + repr(Settings(database_url=SecretStr("postgresql://bll:s3cret@host/jobs")))


def test_a_list_is_given_flag_by_flag_or_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_flags([]).ray_address == ()
    assert Settings.from_flags(["--ray-address", "a:1", "--ray-address=b:2"]).ray_address == ("a:1", "b:2")
    monkeypatch.setenv("BLL_RAY_ADDRESS", '["c:3", "d:4"]')
    assert Settings.from_flags([]).ray_address == ("c:3", "d:4")
