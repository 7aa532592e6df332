"""The model, as every peer runs it. Imported in the peers' environments, which have onnxruntime and not us."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

MODEL = "MODEL"
"""Environment variable with the path of the graph."""


def load(path: str = "") -> Callable[[np.ndarray], np.ndarray]:
    """A function from rows to probabilities, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Any = onnxruntime.InferenceSession(
        path or os.environ[MODEL], sess_options=options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(rows: np.ndarray) -> np.ndarray:
        (probabilities,) = session.run(["probabilities"], {name: rows})
        return probabilities  # type: ignore[no-any-return]

    run(np.zeros((1, 1, 28, 28), np.float32))
    return run
