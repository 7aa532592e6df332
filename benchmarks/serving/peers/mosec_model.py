"""Mosec: python mosec_model.py --port PORT"""

import graph
import numpy as np
from mosec import Server, Worker


class Fashion(Worker):
    def __init__(self) -> None:
        super().__init__()
        self._run = graph.load()

    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.float32).reshape(-1, 1, 28, 28)

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        """Of the calls that came together, which mosec batches."""
        ends = np.cumsum([len(rows) for rows in data])
        return np.split(self._run(np.concatenate(data)), ends[:-1])


if __name__ == "__main__":
    server = Server()
    server.append_worker(Fashion, num=1, max_batch_size=32)
    server.run()
