"""Who may call what: the one table, of every method that the server answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """What a token is good for. Each role may do all that the roles below it may."""

    VIEWER = 1
    """Reads everything but other people's secrets: jobs, models, data sets."""
    PREDICTOR = 2
    """Asks models for predictions as well."""
    TRAINER = 3
    """Makes and changes jobs and data sets of its own; of jobs, sees those alone."""
    ADMIN = 4
    """Everything, of everybody."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Access:
    """What a method asks of its caller."""

    least: Role | None
    """The lowest role that may call it; None: whoever reaches the port."""
    change: bool = False
    """It changes something: the audit log has every call."""


_ANYBODY = Access(None)
_VIEW = Access(Role.VIEWER)
_PREDICT = Access(Role.PREDICTOR)
_TRAIN = Access(Role.TRAINER, change=True)

METHODS: dict[str, Access] = {
    f"/{service}/{method}": access
    for service, methods in {
        "bll.v1.TrainingService": {
            "CreateJob": _TRAIN,
            "GetJob": _VIEW,
            "ListJobs": _VIEW,
            "WatchJob": _VIEW,
            "ListBlocks": _VIEW,
            "GetJobMetrics": _VIEW,
            "TailLogs": _VIEW,
            "UpdateJob": _TRAIN,
            "CancelJob": _TRAIN,
            "PauseJob": _TRAIN,
            "ResumeJob": _TRAIN,
            "RetryJob": _TRAIN,
            "DeleteJob": _TRAIN,
        },
        "bll.v1.StudyService": {
            "CreateStudy": _TRAIN,
            "GetStudy": _VIEW,
            "ListStudies": _VIEW,
            "CancelStudy": _TRAIN,
            "DeleteStudy": _TRAIN,
        },
        "bll.v1.DatasetService": {
            "UploadDataset": _TRAIN,
            "GetUpload": _VIEW,
            "GetDataset": _VIEW,
            "ListDatasets": _VIEW,
            "DeleteDataset": _TRAIN,
        },
        "bll.v1.ModelService": {"ListModels": _VIEW, "GetModel": _VIEW, "DownloadModel": _VIEW},
        "bll.v1.InferenceService": {"Predict": _PREDICT},
        "inference.GRPCInferenceService": {
            # Probes of load balancers and of KServe carry no token.
            "ServerLive": _ANYBODY,
            "ServerReady": _ANYBODY,
            "ModelReady": _VIEW,
            "ServerMetadata": _VIEW,
            "ModelMetadata": _VIEW,
            "ModelInfer": _PREDICT,
        },
        "grpc.health.v1.Health": {"Check": _ANYBODY, "Watch": _ANYBODY},
        "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _VIEW},
    }.items()
    for method, access in methods.items()
}

_UNLISTED = Access(Role.ADMIN, change=True)


def access(method: str) -> Access:
    """Of the method with that path; the strictest for one that somebody forgot to list, which a test refuses."""
    return METHODS.get(method, _UNLISTED)
