"""What no Python server on grpcio can do without: bytes in, one run of the graph, bytes out.

python -m benchmarks.serving.bare MODEL.onnx        prints "serving on ADDRESS", and serves until SIGTERM
"""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from benchmarks.serving.model import INPUT_SHAPE
from benchmarks.serving.peers.graph import load

SERVICE, METHOD = "bare.Loop", "Predict"
_THREADS = 16


def main() -> int:
    run = load(sys.argv[1])

    def predict(data: bytes, context: grpc.ServicerContext) -> bytes:
        rows = np.frombuffer(data, np.float32).reshape(-1, *INPUT_SHAPE)
        answer: bytes = run(rows).tobytes()
        return answer

    server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, Any] = {METHOD: grpc.unary_unary_rpc_method_handler(predict)}
    server.add_registered_method_handlers(SERVICE, handlers)  # as generated code does
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"serving on 127.0.0.1:{port}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop(None).wait()
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    sys.exit(main())
