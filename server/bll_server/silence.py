"""Ends a stream whose caller has fallen silent, so that its thread serves others again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def heard(requests: Iterator[T], limit_s: float, cancel: Callable[[], object]) -> Iterator[T]:
    """`requests`, while each comes within `limit_s` seconds of being asked for; else the call is cancelled.

    `cancel` is the call's, from any thread: nothing else ends a wait for a message. Raises grpc.RpcError then.
    """
    while True:
        timer = threading.Timer(limit_s, cancel)
        timer.daemon = True
        timer.start()
        try:
            request = next(requests)
        except StopIteration:
            return
        finally:
            timer.cancel()
        yield request
