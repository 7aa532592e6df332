"""Client of a bll server: train networks block by block, and predict with an uncertainty for every sample.

from bll_client import Client

with Client("127.0.0.1:8470") as client:
    job = client.wait_for_job(client.create_job({"data": {"name": "digits"}, "epochs": 3}).name)
    prediction = client.predict(job.model_version, images)
"""

from bll_client._aio import AsyncClient
from bll_client._channel import TLS
from bll_client._client import Client
from bll_client._errors import (
    Aborted,
    AlreadyExists,
    CallError,
    ClientError,
    DamagedDownload,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    InvalidInput,
    InvalidSpec,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from bll_client._spec import parse_spec
from bll_client._types import (
    Alarm,
    AlarmSignature,
    BlockContinued,
    BlockDiagnostics,
    BlockPlan,
    BlockProgress,
    BlocksPlaced,
    BlockWaiting,
    CheckpointDamaged,
    CheckpointSaved,
    Evaluation,
    Figure,
    Head,
    Job,
    JobEvent,
    JobFailure,
    JobPlan,
    JobProgress,
    JobState,
    Model,
    ModelVersion,
    PlacedWorker,
    Prediction,
    RolledBack,
    Scores,
    StateChange,
    TensorSpec,
)
from bll_proto.v1.training_pb2 import JobSpec

__all__ = [
    "TLS",
    "Aborted",
    "Alarm",
    "AlarmSignature",
    "AlreadyExists",
    "AsyncClient",
    "BlockContinued",
    "BlockDiagnostics",
    "BlockPlan",
    "BlockProgress",
    "BlockWaiting",
    "BlocksPlaced",
    "CallError",
    "CheckpointDamaged",
    "CheckpointSaved",
    "Client",
    "ClientError",
    "DamagedDownload",
    "DeadlineExceeded",
    "Evaluation",
    "FailedPrecondition",
    "FieldViolation",
    "Figure",
    "Head",
    "InvalidArgument",
    "InvalidInput",
    "InvalidSpec",
    "Job",
    "JobEvent",
    "JobFailure",
    "JobPlan",
    "JobProgress",
    "JobSpec",
    "JobState",
    "Model",
    "ModelVersion",
    "NotFound",
    "PlacedWorker",
    "Prediction",
    "ResourceExhausted",
    "RolledBack",
    "Scores",
    "StateChange",
    "TensorSpec",
    "Unavailable",
    "parse_spec",
]
