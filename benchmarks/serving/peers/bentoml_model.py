"""BentoML: bentoml serve bentoml_model:Fashion --port PORT"""

import base64

import bentoml
import graph
import numpy as np


@bentoml.service
class Fashion:
    def __init__(self) -> None:
        self._run = graph.load()

    @bentoml.api
    def predict(self, data: str) -> list[list[float]]:
        rows = np.frombuffer(base64.b64decode(data), np.float32).reshape(-1, 1, 28, 28)
        answer: list[list[float]] = self._run(rows).tolist()
        return answer
