"""StudyService: many jobs from one request, and how they compare."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import grpc

from bll.errors import Violation
from bll_proto.v1 import studies_pb2, studies_pb2_grpc
from bll_server import convert
from bll_server.auth.caller import caller
from bll_server.datasets.store import Datasets
from bll_server.errors import InvalidRequest
from bll_server.jobs.capacity import admitted
from bll_server.jobs.planner import Planner
from bll_server.jobs.scheduler import Scheduler
from bll_server.services.names import is_uuid
from bll_server.services.study_messages import asked, metric_of, preview_message, study_message, summary_message
from bll_server.services.study_parameters import spec_of, trials_of
from bll_server.studies.records import NewStudy, NewTrial
from bll_server.studies.search import Values
from bll_server.studies.store import Studies

_STUDY_ID = re.compile(r"[a-z][a-z0-9-]{2,55}")
"""With a dash and the number of a trial it is a job's id."""
_PAGE_TOKEN = re.compile(r"[1-9][0-9]{0,17}")
_DEFAULT_PAGE, _LARGEST_PAGE = 50, 1000


class StudyServicer(studies_pb2_grpc.StudyServiceServicer):
    """See `studies.proto`."""

    def __init__(
        self,
        studies: Studies,
        planner: Planner,
        scheduler: Scheduler,
        datasets: Datasets,
        *,
        max_owner_jobs: int,
        max_trials: int,
    ) -> None:
        self._studies = studies
        self._planner = planner
        self._scheduler = scheduler
        self._datasets = datasets
        self._max_owner_jobs = max_owner_jobs
        self._max_trials = max_trials

    def CreateStudy(
        self, request: studies_pb2.CreateStudyRequest, context: grpc.ServicerContext
    ) -> studies_pb2.CreateStudyResponse:
        self._scheduler.check_open()
        _check_create(request)
        body, owner = asked(request.study), caller().owner
        digest = _digest(request.study_id, body)
        if request.request_id and (earlier := self._studies.replayed(request.request_id, digest, owner)):
            return studies_pb2.CreateStudyResponse(study=self._message(earlier))
        values = trials_of(body, self._max_trials)
        trials = self._planned(body, values, context)
        if request.validate_only:
            return studies_pb2.CreateStudyResponse(study=preview_message(body, values))
        study = NewStudy(request.study_id, body.SerializeToString(), body.max_parallel_trials, trials)
        with ExitStack() as kept:
            for name in {trial.plan.config.data.name for trial in trials}:
                kept.enter_context(self._datasets.kept(name))  # until the jobs themselves keep them
            kept.callback(self._scheduler.look_again)  # for the jobs may be there whatever is raised
            study_id = self._studies.create(
                study,
                metadata=convert.metadata(body.base),
                owner=owner,
                most_unfinished=self._max_owner_jobs,
                request_id=request.request_id,
                request_digest=digest,
            )
        return studies_pb2.CreateStudyResponse(study=self._message(study_id))

    def GetStudy(
        self, request: studies_pb2.GetStudyRequest, context: grpc.ServicerContext
    ) -> studies_pb2.GetStudyResponse:
        return studies_pb2.GetStudyResponse(study=self._message(_study_id(request.name)))

    def ListStudies(
        self, request: studies_pb2.ListStudiesRequest, context: grpc.ServicerContext
    ) -> studies_pb2.ListStudiesResponse:
        if not 0 <= request.page_size <= _LARGEST_PAGE:
            rule = f"must be between 0 and {_LARGEST_PAGE}, got {request.page_size}"
            raise InvalidRequest(Violation("page_size", rule))
        if request.page_token and not _PAGE_TOKEN.fullmatch(request.page_token):
            rule = f"must come from a page before, got {request.page_token!r:.200}"
            raise InvalidRequest(Violation("page_token", rule))
        found, following = self._studies.page(
            request.page_size or _DEFAULT_PAGE, int(request.page_token or 0), caller().sees_only
        )
        return studies_pb2.ListStudiesResponse(
            studies=[summary_message(study, counts) for study, counts in found], next_page_token=str(following or "")
        )

    def CancelStudy(
        self, request: studies_pb2.CancelStudyRequest, context: grpc.ServicerContext
    ) -> studies_pb2.CancelStudyResponse:
        study_id = _study_id(request.name)
        self._scheduler.cancel_all(self._studies.unfinished(study_id))
        return studies_pb2.CancelStudyResponse(study=self._message(study_id))

    def DeleteStudy(
        self, request: studies_pb2.DeleteStudyRequest, context: grpc.ServicerContext
    ) -> studies_pb2.DeleteStudyResponse:
        study_id = _study_id(request.name)
        self._scheduler.delete_all(self._studies.job_ids(study_id), lambda: self._studies.delete(study_id))
        return studies_pb2.DeleteStudyResponse()

    def _message(self, study_id: str) -> studies_pb2.Study:
        return study_message(*self._studies.get(study_id))

    def _planned(
        self, study: studies_pb2.Study, values: Sequence[Values], context: grpc.ServicerContext
    ) -> list[NewTrial]:
        """Each trial with its plan. Raises InvalidRequest for the configs at fault, or the first plan that is."""
        violations: list[Violation] = []
        trials = []
        for number, of_trial in enumerate(values):
            spec = spec_of(study.base.spec, of_trial)
            try:
                trials.append((of_trial, spec, convert.config_from_spec(spec)))
            except InvalidRequest as error:
                violations += _of_trial(error, number, of_trial)
        if violations:
            raise InvalidRequest(*violations)
        planned = []
        for number, (of_trial, spec, config) in enumerate(trials):
            if not context.is_active():
                context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")
            try:
                plan = admitted(self._planner.plan(config), caller().owner, self._scheduler.capacity)
            except InvalidRequest as error:
                raise InvalidRequest(*_of_trial(error, number, of_trial)) from error
            planned.append(NewTrial(of_trial, spec.SerializeToString(), plan))
        return planned


def _study_id(name: str) -> str:
    study_id = name.removeprefix("studies/")
    if study_id == name or not _STUDY_ID.fullmatch(study_id):
        raise InvalidRequest(Violation("name", f"must be studies/{{study_id}}, got {name!r:.200}"))
    return study_id


def _check_create(request: studies_pb2.CreateStudyRequest) -> None:
    """Raises InvalidRequest for every field beside parameters and specs that breaks its rule."""
    violations = []
    study = request.study
    if not study.base.HasField("spec"):
        violations.append(Violation("study.base.spec", "must be present"))
    if study.base.spec.model_id:
        rule = "must be empty: each trial's model is published under its job's id"
        violations.append(Violation("study.base.spec.model_id", f"{rule}, got {study.base.spec.model_id!r:.200}"))
    if study.max_parallel_trials < 0:
        rule = f"must not be negative, got {study.max_parallel_trials}"
        violations.append(Violation("study.max_parallel_trials", rule))
    if request.study_id and not _STUDY_ID.fullmatch(request.study_id):
        violations.append(Violation("study_id", f"must match {_STUDY_ID.pattern}, got {request.study_id!r:.200}"))
    if request.request_id and not is_uuid(request.request_id):
        violations.append(Violation("request_id", f"must be a UUID, got {request.request_id!r:.200}"))
    for check in (lambda: metric_of(study), lambda: convert.metadata(study.base)):
        try:
            check()
        except InvalidRequest as error:
            violations += _of_base(error)
    if violations:
        raise InvalidRequest(*violations)


def _of_base(error: InvalidRequest) -> Iterator[Violation]:
    """What is wrong with the jobs that a study begins with, under its path in the request."""
    for violation in error.violations:
        field = violation.field
        yield Violation(
            f"study.base.{field.removeprefix('job.')}" if field.startswith("job.") else field, violation.description
        )


def _of_trial(error: InvalidRequest, number: int, values: Values) -> Iterator[Violation]:
    """What is wrong with a trial's spec, under the trial's number and with its values."""
    having = ", ".join(f"{field} = {value}" for field, value in values.items())
    for violation in error.violations:
        field = violation.field.removeprefix("job.spec").removeprefix(".")
        where = f"trials[{number}].{field}" if field else f"trials[{number}]"
        yield Violation(where, f"{violation.description}; its parameters are {having}")


def _digest(study_id: str, body: studies_pb2.Study) -> str:
    """SHA-256 of what a repeated request must have in common with the first."""
    whole = studies_pb2.CreateStudyRequest(study_id=study_id, study=body)
    return hashlib.sha256(whole.SerializeToString(deterministic=True)).hexdigest()
