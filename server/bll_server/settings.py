"""The settings of a server: flags, and environment variables named BLL_*, which flags overrule."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """How to run the server."""

    model_config = SettingsConfigDict(
        env_prefix="BLL_", cli_kebab_case=True, cli_implicit_flags=True, cli_avoid_json=True
    )

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; one that is not loopback needs TLS or --insecure."
    )
    port: int = Field(default=8470, ge=0, le=65535, description="gRPC port; 0 takes any free one.")
    metrics_port: int = Field(
        default=8471, ge=0, le=65535, description="HTTP port of /metrics and /healthz; 0: any free one."
    )
    metrics_host: str = Field(
        default="127.0.0.1", description="Address of that HTTP port, which has neither TLS nor authentication."
    )
    tls_cert: Path | None = Field(
        default=None, description="PEM file of the certificate with its chain; read again when it changes."
    )
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's key, not encrypted.")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of the CA whose certificates clients must show (mTLS)."
    )
    insecure: bool = Field(default=False, description="Serve beyond this machine without TLS, or without tokens.")
    data_dir: Path = Field(
        default=Path(".bll"),
        description="Folder of jobs, models, data sets and the job database; one server at a time.",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="Job database in PostgreSQL, as postgresql://user@host/database; without it, a file in data_dir. "
        "A password is better in BLL_DATABASE_URL or ~/.pgpass, where other users cannot see it.",
    )
    max_owner_jobs: int = Field(
        default=100, ge=1, le=100_000, description="Jobs of one owner of tokens that are not over."
    )
    max_study_trials: int = Field(default=100, ge=1, le=1000, description="Trials of one study.")
    max_jobs: int = Field(default=1, ge=1, le=64, description="Jobs that train at the same time.")
    job_niceness: int = Field(
        default=10,
        ge=0,
        le=19,
        description="How far jobs step back where cores are short; as nice(1).",
    )
    job_threads: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="CPU threads of all running jobs together; 0: as many as this process has cores.",
    )
    device_jobs: int = Field(default=1, ge=1, le=64, description="Running jobs that share one CUDA device.")
    max_owner_running: int = Field(default=64, ge=1, le=64, description="Running jobs of one owner of tokens.")
    max_owner_threads: int = Field(
        default=4096, ge=1, le=4096, description="CPU threads of the running jobs of one owner of tokens."
    )
    ray_address: tuple[str, ...] = Field(
        default=(), description="HOST:PORT of a Ray cluster that jobs may run on; may be given again."
    )
    max_message_mb: int = Field(default=64, ge=1, le=1024, description="Largest request or answer, in MiB.")
    max_calls: int = Field(
        default=4096, ge=1, le=65_536, description="Calls and streams that are open at the same time, of all clients."
    )
    max_streams: int = Field(
        default=1024, ge=1, le=65_536, description="The same over one connection; its client holds back what is more."
    )
    max_watchers: int = Field(
        default=256, ge=1, le=4096, description="WatchJob and TailLogs streams that are open at the same time."
    )
    max_dataset_mb: int = Field(default=1024, ge=1, le=2**20, description="Largest file of one data set, in MiB.")
    max_datasets_mb: int = Field(default=10240, ge=1, le=2**24, description="All uploaded data sets together, in MiB.")
    max_owner_datasets_mb: int = Field(
        default=5120, ge=1, le=2**24, description="Uploaded data sets of one owner of tokens together, in MiB."
    )
    keep_uploads_h: float = Field(
        default=24.0, ge=0, le=8760, description="Hours until an unfinished upload that nobody goes on with is removed."
    )
    threads: int = Field(default=16, ge=1, le=256, description="Threads that answer calls other than predictions.")
    max_predictions: int = Field(
        default=128,
        ge=1,
        le=4096,
        description="Predictions in the server at a time; one more is refused at once.",
    )
    max_predictions_mb: int = Field(
        default=256, ge=1, le=2**16, description="Inputs of predictions that wait or run, in MiB."
    )
    batch_delay_ms: float = Field(
        default=0.0, ge=0, le=1000, description="How long a prediction waits for others to run with; 0: not at all."
    )
    drain_s: float = Field(
        default=20.0, ge=0, le=3600, description="Seconds that running jobs are given when the server is told to stop."
    )
    pre_stop_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="Seconds that a server told to stop still takes calls, until balancers see it NOT_SERVING.",
    )
    max_connection_age_s: float = Field(
        default=0.0, ge=0, le=10**6, description="Seconds until a client is asked to connect anew; 0: never."
    )
    log_calls: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Fraction of calls that the log has a line for; above 0, all that fail.",
    )
    trace_endpoint: str = Field(
        default="", description="URL of an OTLP collector (gRPC) that gets a span of each call; needs the extra otel."
    )
    cancel_grace_s: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="Seconds that a cancelled job is given before its processes are killed.",
    )
    pause_grace_s: float = Field(
        default=300.0,
        ge=0,
        le=86_400,
        description="The same of a job that is paused, or has run for as long as it may.",
    )
    log_format: Literal["console", "json"] = Field(default="console", description="Form of the log on stderr.")

    @classmethod
    def from_flags(cls, argv: list[str]) -> Settings:
        """Raises pydantic's ValidationError, and SystemExit for an unknown flag or for --help."""
        return cls(_cli_parse_args=argv, _cli_prog_name="bll serve")  # type: ignore[call-arg]  # of BaseSettings

    @property
    def open_to_others(self) -> bool:
        """More than this machine can reach the server, and nobody has said that this is meant: tokens are a must."""
        return not (self.insecure or _is_loopback(self.host))

    @field_validator("database_url")
    @classmethod
    def _only_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url and not url.get_secret_value().startswith("postgresql://"):  # which may hold a password: not repeated
            raise ValueError("database_url must be postgresql://[user[:password]@]host[:port]/database")
        return url

    @model_validator(mode="after")
    def _whole_tls(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be given together")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("tls_client_ca must be given with tls_cert and tls_key, or not at all")
        return self

    @model_validator(mode="after")
    def _only_loopback_without_tls(self) -> Settings:
        if self.open_to_others and not self.tls_cert:
            raise ValueError(f"host must be loopback unless TLS is on or --insecure is given, got {self.host!r}")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
