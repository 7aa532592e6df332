"""The studies of the canned server: answers in the order in which a test has put them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from bll_proto.v1 import studies_pb2, studies_pb2_grpc, training_pb2

State = studies_pb2.StudyState
JobState = training_pb2.JobState


class CannedStudies(studies_pb2_grpc.StudyServiceServicer):
    """Answers GetStudy with the studies of a list, one after the other, and then with the last."""

    def __init__(self, enter: Callable[[str, Any, Any], None]) -> None:
        self._enter = enter
        self.answers = [study(State.STUDY_STATE_SUCCEEDED)]

    def CreateStudy(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("CreateStudy", request, context)
        created = study(State.STUDY_STATE_QUEUED)
        if request.validate_only:
            for name in ("name", "state", "counts", "best_trial", "best_model_version"):
                created.ClearField(name)
        return studies_pb2.CreateStudyResponse(study=created)

    def GetStudy(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("GetStudy", request, context)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return studies_pb2.GetStudyResponse(study=found)

    def ListStudies(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("ListStudies", request, context)
        number = int(request.page_token or 0)
        found = study(State.STUDY_STATE_RUNNING)
        found.name = f"studies/s{number}"
        for name in ("base", "parameters", "trials"):
            found.ClearField(name)
        return studies_pb2.ListStudiesResponse(studies=[found], next_page_token=str(number + 1) if number < 2 else "")

    def CancelStudy(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("CancelStudy", request, context)
        return studies_pb2.CancelStudyResponse(study=study(State.STUDY_STATE_CANCELLED))

    def DeleteStudy(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("DeleteStudy", request, context)
        return studies_pb2.DeleteStudyResponse()


def study(state: studies_pb2.StudyState.ValueType, step: int = 20) -> studies_pb2.Study:
    """Of two trials; the first has succeeded, the second is at `step`, or has failed when the study is over."""
    over = int(state == State.STUDY_STATE_SUCCEEDED)
    found = studies_pb2.Study(
        name="studies/sweep",
        parameters=[
            studies_pb2.StudyParameter(field="blocks.num_blocks"),
            studies_pb2.StudyParameter(
                field="optimizer.learning_rate",
                range=studies_pb2.ParameterRange(low=1e-4, high=1e-2, scale=studies_pb2.PARAMETER_SCALE_LOG),
            ),
        ],
        num_trials=2,
        metric=studies_pb2.STUDY_METRIC_ACCURACY,
        state=state,
        counts=studies_pb2.TrialCounts(total=2, succeeded=1, failed=over, running=1 - over),
        best_trial=0,
        best_model_version="models/sweep-0/versions/1",
        create_time=Timestamp(seconds=1_700_000_000),
        owner="ann",
    )
    found.base.spec.epochs = 2
    for number, value in enumerate((1, 2)):
        found.parameters[0].values.add(number_value=value)
        trial = found.trials.add(number=number, job=f"jobs/sweep-{number}", state=JobState.JOB_STATE_RUNNING)
        trial.parameters.update({"blocks.num_blocks": value, "optimizer.learning_rate": 0.0025})
        trial.progress.CopyFrom(training_pb2.JobProgress(step=step, total_steps=20, samples_per_s=123.4))
    first, second = found.trials
    first.state, first.model_version = JobState.JOB_STATE_SUCCEEDED, found.best_model_version
    for scores in (first.validation, first.test):
        scores.CopyFrom(training_pb2.Scores(accuracy=0.9, nll_nats=0.25, ece=0.01, brier=0.1))
    if over:
        second.state, second.state_reason = JobState.JOB_STATE_FAILED, "the loss is nan"
    return found
