"""Calls of every sort, and how each must end."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.serving import bodies
from bll_proto import tensors
from bll_proto.v1 import inference_pb2

_CLIENTS = 8
_CODES = grpc.StatusCode
_PREDICT = "/bll.v1.InferenceService/Predict"


class Mixture:
    """Eight clients that call as chance has it, by a seed of their own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channels = [self._connect() for _ in range(_CLIENTS)]
        self._randoms = [random.Random(seed) for seed in range(_CLIENTS)]  # noqa: S311 - to be repeated
        self._lock = threading.Lock()
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        """Calls that ended otherwise than they must, in words."""
        good = [bodies.native(address, rows) for rows in (1, 1, 1, 4, 32)] + [bodies.kserve(address, 1)]
        self._good = [(target.path, Path(target.body).read_bytes()) for target in good]
        bad = inference_pb2.PredictRequest(model="models/fashion", input=tensors.to_tensor(np.zeros((1, 3), "f4")))
        self._bad = (
            (_PREDICT, b"\xff" * 100),
            (_PREDICT, b""),
            (_PREDICT, bad.SerializeToString()),
            (_PREDICT, self._good[0][1][:-7]),
        )
        self._huge = (_PREDICT, bytes(5 * 2**20))

    @property
    def calls(self) -> int:
        return self.ends.total()

    def run(self, seconds: float) -> None:
        """Call for so long."""
        ends_s = time.monotonic() + seconds
        threads = [threading.Thread(target=self._call_until, args=(i, ends_s)) for i in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            channel.close()

    def _connect(self) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        return grpc.insecure_channel(self._address, options)

    def _call_until(self, client: int, ends_s: float) -> None:
        chance = self._randoms[client]
        while time.monotonic() < ends_s:
            kind = chance.random()
            if kind < 0.70:
                self._expect(client, *chance.choice(self._good), (_CODES.OK,))
            elif kind < 0.80:
                self._expect(client, *chance.choice(self._bad), (_CODES.INVALID_ARGUMENT,))
            elif kind < 0.90:
                self._cancel(client, chance)
            elif kind < 0.95:
                ends = (_CODES.OK, _CODES.DEADLINE_EXCEEDED, _CODES.UNAVAILABLE)  # the last: refused for its deadline
                self._expect(client, *chance.choice(self._good), ends, timeout_s=chance.uniform(0, 0.003))
            elif kind < 0.98:
                self._expect(client, *self._huge, (_CODES.RESOURCE_EXHAUSTED,))
            else:
                self._channels[client].close()
                self._channels[client] = self._connect()

    def _expect(
        self, client: int, path: str, body: bytes, allowed: tuple[grpc.StatusCode, ...], timeout_s: float = 30.0
    ) -> None:
        method: Any = self._channels[client].unary_unary(path)
        code, details = _CODES.OK, ""
        try:
            method(body, timeout=timeout_s)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
        self._ended(code, allowed, f"{path} with {len(body)} bytes: {code.name}: {details[:200]}")

    def _cancel(self, client: int, chance: random.Random) -> None:
        path, body = chance.choice(self._good)
        method: Any = self._channels[client].unary_unary(path)
        future = method.future(body, timeout=30)
        time.sleep(chance.uniform(0, 0.003))
        future.cancel()
        code = future.code()
        self._ended(code, (_CODES.OK, _CODES.CANCELLED), f"cancelled: {code}")

    def _ended(self, code: grpc.StatusCode, allowed: tuple[grpc.StatusCode, ...], words: str) -> None:
        with self._lock:
            self.ends[code.name] += 1
            if code not in allowed:
                self.wrong.append(words)
