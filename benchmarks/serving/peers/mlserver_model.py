"""MLServer: a custom runtime. Started as `mlserver start FOLDER`, with settings that `peers.py` writes."""

import graph
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Fashion(MLModel):
    async def load(self) -> bool:
        self._run = graph.load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        output = NumpyCodec.encode_output("probabilities", self._run(rows))
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
