"""KServe's Python server: python kserve_model.py HTTP_PORT GRPC_PORT"""

import sys

import graph
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Fashion(Model):
    def __init__(self) -> None:
        super().__init__("fashion")
        self._run = graph.load()
        self.ready = True

    def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None) -> InferResponse:
        probabilities = self._run(payload.inputs[0].as_numpy())
        output = InferOutput("probabilities", list(probabilities.shape), "FP32")
        output.set_data_from_numpy(probabilities, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


ModelServer(http_port=int(sys.argv[1]), grpc_port=int(sys.argv[2]), enable_latency_logging=False).start([Fashion()])
