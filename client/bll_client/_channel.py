"""How the client connects: TLS, deadlines, retries and limits, the same for both clients."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from os import PathLike
from pathlib import Path

import grpc

from bll_client._errors import PlaintextToken

DEFAULT_TARGET = "127.0.0.1:8470"
DEFAULT_TIMEOUT = timedelta(seconds=30)
"""Deadline of every call that has one answer."""
DEFAULT_RECONNECT = timedelta(seconds=60)
"""How long a watcher tries to reach a server that has gone."""
DEFAULT_DOWNLOAD_TIMEOUT = timedelta(minutes=30)
DEFAULT_UPLOAD_TIMEOUT = timedelta(hours=4)
"""Deadline of one upload, its broken streams and the check of the data set included."""
DEFAULT_STUDY_TIMEOUT = timedelta(minutes=10)
"""Deadline of the call that creates a study: the server plans every trial before it answers."""
DEFAULT_STUDY_INTERVAL = timedelta(seconds=1)
"""Between two looks at a study that is watched."""
WATCH_TIMEOUT = timedelta(minutes=10)
"""Deadline of one watch stream; a watcher then goes on with the next, so that no stream outlives a dead peer."""

MAX_RECEIVE_BYTES = 256 * 2**20
"""Of one message. A prediction's answer grows with its input, whose size is the caller's choice."""

SERVICE_CONFIG = {
    "methodConfig": [
        {
            # Every service and method: creating a job carries a request id, and all other calls are idempotent.
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
        # But for an upload, which goes on from where the server has it: sent again as it was, it would not fit.
        {"name": [{"service": "bll.v1.DatasetService", "method": "UploadDataset"}]},
    ],
    # A server in trouble is not helped by many clients that all try four times: below half its tokens, a channel
    # stops retrying until answers have come in.
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.5},
}

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    # The server's own limit decides what it takes, and its answer names that limit.
    ("grpc.max_send_message_length", -1),
    # A watched server speaks every 15 s, so that only a dead connection is ever asked for a sign of life.
    ("grpc.keepalive_time_ms", 45_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A restarted server is found again within seconds; the default grows to two minutes.
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(frozen=True)
class TLS:
    """How to check the server's certificate, and which one to show. Files are PEM, read when a client is made."""

    ca: str | PathLike[str] | None = None
    """The CA that the server's certificate must come from; None means the public ones that grpc brings."""
    cert: str | PathLike[str] | None = None
    """Our certificate with its chain, for a server that asks for one (mTLS)."""
    key: str | PathLike[str] | None = None
    """Its key, not encrypted."""
    server_name: str | None = None
    """The name in the server's certificate, where it is not the host of the target."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key must be given together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError if a file cannot be read."""
        ca, key, cert = (Path(path).read_bytes() if path else None for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def options(self) -> tuple[tuple[str, str], ...]:
        """Of the channel, beside `OPTIONS`."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()


def metadata(target: str, tls: TLS | None, token: str | None, insecure: bool) -> tuple[tuple[str, str], ...]:
    """What every call carries: the token, unless others could read it on its way. Raises PlaintextToken, ValueError."""
    if token is None:
        return ()
    if not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise ValueError("a token must be printable ASCII without spaces round it")
    if not (tls or insecure or _is_loopback(target)):
        raise PlaintextToken(f"a token must not be sent to {target} without TLS, unless insecure=True accepts that")
    return (("authorization", f"Bearer {token}"),)


def _is_loopback(target: str) -> bool:
    host = target.removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("dns:").lstrip("/").rpartition(":")[0]
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return target.startswith("unix:")


def open_channel(target: str, tls: TLS | None) -> grpc.Channel:
    """Raises OSError if a file of `tls` cannot be read."""
    if tls is None:
        return grpc.insecure_channel(target, OPTIONS)
    return grpc.secure_channel(target, tls.credentials(), (*OPTIONS, *tls.options()))


def open_aio_channel(target: str, tls: TLS | None) -> grpc.aio.Channel:
    """As `open_channel`; to be called inside the event loop."""
    if tls is None:
        return grpc.aio.insecure_channel(target, OPTIONS)
    return grpc.aio.secure_channel(target, tls.credentials(), (*OPTIONS, *tls.options()))
