"""How the client connects: deadlines, retries and limits, the same for both clients."""

from __future__ import annotations

import json
from datetime import timedelta

DEFAULT_TARGET = "127.0.0.1:8470"
DEFAULT_TIMEOUT = timedelta(seconds=30)
"""Deadline of every call that has one answer."""
DEFAULT_RECONNECT = timedelta(seconds=60)
"""How long a watcher tries to reach a server that has gone."""
DEFAULT_DOWNLOAD_TIMEOUT = timedelta(minutes=30)
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
        }
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
