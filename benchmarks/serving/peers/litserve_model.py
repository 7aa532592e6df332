"""LitServe: python litserve_model.py PORT"""

import base64
import sys
from typing import Any

import graph
import litserve
import numpy as np


class Fashion(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._run = graph.load()

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        return np.frombuffer(base64.b64decode(request["data"]), np.float32).reshape(-1, 1, 28, 28)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._run(x)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    litserve.LitServer(Fashion(), accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False
    )
