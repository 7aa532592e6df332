"""NVIDIA PyTriton: python pytriton_model.py HTTP_PORT GRPC_PORT METRICS_PORT"""

import sys

import graph
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

run = graph.load()


@batch
def infer(input: np.ndarray) -> dict[str, np.ndarray]:
    return {"probabilities": run(input)}


http, grpc, metrics = map(int, sys.argv[1:])
with Triton(config=TritonConfig(http_port=http, grpc_port=grpc, metrics_port=metrics)) as triton:
    triton.bind(
        model_name="fashion",
        infer_func=infer,
        inputs=[Tensor(name="input", dtype=np.float32, shape=(1, 28, 28))],
        outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(10,))],
        config=ModelConfig(max_batch_size=64),
    )
    triton.serve()
