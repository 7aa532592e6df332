"""Messages of studies from the domain's records: the comparison, the list, the preview."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bll.errors import Violation
from bll_proto.v1 import studies_pb2
from bll_server import convert
from bll_server.errors import InvalidRequest
from bll_server.studies.records import Counts, Metric, Study, Trial, best
from bll_server.studies.search import Values


def metric_of(study: studies_pb2.Study) -> Metric:
    """What its trials are compared by. Raises InvalidRequest for one that this server does not know."""
    number = study.metric or studies_pb2.STUDY_METRIC_NLL
    name = convert.short_names(studies_pb2.StudyMetric.DESCRIPTOR).get(number)
    if name is None:
        raise InvalidRequest(Violation("study.metric", f"must be one of {', '.join(Metric)}, got {study.metric}"))
    return Metric(name)


def study_message(study: Study, trials: Sequence[Trial]) -> studies_pb2.Study:
    """A study with the comparison of its trials."""
    message = _head(study, Counts.of(Counter(trial.job.state for trial in trials)))
    for trial in trials:
        _fill_trial(message.trials.add(number=trial.number), trial)
    if chosen := best(trials, metric_of(message)):
        message.best_trial = chosen.number
        message.best_model_version = chosen.job.model_version
    return message


def summary_message(study: Study, counts: Counts) -> studies_pb2.Study:
    """A study as a list shows it."""
    message = _head(study, counts)
    message.ClearField("base")
    message.ClearField("parameters")
    return message


def preview_message(study: studies_pb2.Study, trials: Sequence[Values]) -> studies_pb2.Study:
    """What would become of a study; nothing has been made."""
    message = asked(study)
    for number, values in enumerate(trials):
        message.trials.add(number=number).parameters.update(values)
    return message


def asked(study: studies_pb2.Study) -> studies_pb2.Study:
    """`study` with the fields alone that a caller sets."""
    given = ("parameters", "num_trials", "seed", "metric", "max_parallel_trials")
    base = convert.asked_job(study.base)
    return studies_pb2.Study(base=base, **{name: getattr(study, name) for name in given})


def _head(study: Study, counts: Counts) -> studies_pb2.Study:
    message = studies_pb2.Study.FromString(study.request)
    message.name = f"studies/{study.study_id}"
    message.owner = study.owner
    message.create_time.FromDatetime(convert.naive(study.create_time))
    message.counts.CopyFrom(studies_pb2.TrialCounts(total=counts.total, **vars(counts)))
    if counts.state:
        message.state = convert.enum_number(studies_pb2.StudyState.DESCRIPTOR, counts.state)
    return message


def _fill_trial(message: studies_pb2.Trial, trial: Trial) -> None:
    job = convert.summary_message(trial.job)
    message.job = job.name
    message.parameters.CopyFrom(job.parameters)
    message.state = job.state
    message.state_reason = job.state_reason
    message.model_version = job.model_version
    if job.HasField("progress"):
        message.progress.CopyFrom(job.progress)
    if trial.validation:
        message.validation.CopyFrom(convert.evaluation_message(trial.validation).mixture)
    if trial.test:
        message.test.CopyFrom(convert.evaluation_message(trial.test).mixture)
