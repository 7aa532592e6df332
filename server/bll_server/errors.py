"""Errors of the service's domain. `status.py` is the one table that gives each its gRPC status.

ServerError
├── InvalidRequest    a field of a request breaks its rule; `violations` names each
├── NotFound          no job, study, model or version has that name
├── RequestIdReused   a request_id came again with another body
├── JobExists         the chosen job_id is taken
├── StudyExists       the chosen study_id is taken
├── IllegalState      the job's state does not allow the call
├── StaleEtag         the resource has changed since the caller read it
├── ModelNotReady     the model cannot answer now
├── Busy              the model could not answer in time
├── Overloaded        a limit of this server is reached
├── ShuttingDown      the server is draining
├── StorageFull       the disk is full
├── DatabaseUnavailable  the job database cannot be reached
├── DatasetExists     the id of a data set is taken
├── DatasetInUse      the data set is still needed
├── UploadTakenOver   another stream goes on with the upload
├── QuotaExceeded     more than one owner, or the server, may keep
├── Unauthenticated   no token, or not one of this server's
└── PermissionDenied  the caller's role does not allow the call, or it is another's
"""

from bll.errors import Violation

DOMAIN = "bll"
"""Namespace of the machine-readable reasons that clients see."""


class ServerError(Exception):
    """Root of every error that the service raises on purpose."""


class InvalidRequest(ServerError):
    """One or more fields of a request break their rule."""

    def __init__(self, *violations: Violation) -> None:
        self.violations = violations
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))


class NotFound(ServerError):
    """No job, study, model or version has that name."""


class RequestIdReused(ServerError):
    """A request_id came again with another body."""


class JobExists(ServerError):
    """The chosen job_id is taken."""


class StudyExists(ServerError):
    """The chosen study_id is taken."""


class IllegalState(ServerError):
    """The job's state does not allow the call."""


class StaleEtag(ServerError):
    """The resource has changed since the caller read it."""


class ModelNotReady(ServerError):
    """The model cannot answer now."""


class Busy(ServerError):
    """The model could not answer in time, or has no room for the call."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Overloaded(ServerError):
    """A limit of this server is reached."""


class ShuttingDown(ServerError):
    """The server is draining."""


class StorageFull(ServerError):
    """The disk is full."""


class DatabaseUnavailable(ServerError):
    """The job database cannot be reached."""


class DatasetExists(ServerError):
    """The id of a data set is taken."""


class DatasetInUse(ServerError):
    """The data set is built in, or a job that is not over learns from it."""


class UploadTakenOver(ServerError):
    """Another stream goes on with the upload, or it was given up."""


class QuotaExceeded(ServerError):
    """More than one owner, or the server, may keep."""


class Unauthenticated(ServerError):
    """No token came with the call, or not one of this server's, or it has expired or was revoked."""


class PermissionDenied(ServerError):
    """The caller's role does not allow the call, or what it is about is another's."""
