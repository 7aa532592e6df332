"""StudyService through a real server with its real planner; but for one study, jobs run a small program that waits."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from bll_proto.v1 import studies_pb2, studies_pb2_grpc, training_pb2, training_pb2_grpc
from bll_server.app import Server
from bll_server.settings import Settings

# Told apart by the seed, which is in the plan that each job's folder has: those with seed 1 fail.
PROGRAM = """
import json, pathlib, sys
print(json.dumps({"event": "Started"}), flush=True)
if json.loads((pathlib.Path(sys.argv[1]) / "plan.json").read_text())["config"]["seed"] == 1:
    print(json.dumps({"event": "Failed", "kind": "Diverged", "message": "the loss is nan", "block": 0}), flush=True)
    sys.exit(1)
for line in sys.stdin:
    if line == "stop\\n":
        sys.exit()
"""
SPEC = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [8, 8]},
    "blocks": {"num_blocks": 2},
    "latent": {"units": 4, "readout_units": 8},
    "executor": {"name": "EXECUTOR_NAME_SEQUENTIAL"},
    "epochs": 1,
}
BLOCKS = {"field": "blocks.num_blocks", "values": [1, 2]}
FAMILIES = {"field": "latent.family", "values": ["bernoulli", "gaussian"]}
UUID = "7d3f3c1e-4f43-4b57-9d34-0b1d8a7d2f10"
CANCELLED, RUNNING = training_pb2.JOB_STATE_CANCELLED, training_pb2.JOB_STATE_RUNNING


class Bench:
    """A server, and the stubs to call it with."""

    def __init__(self, folder: Path, command: list[str] | None, **more: Any) -> None:
        settings = Settings(port=0, metrics_port=0, data_dir=folder, drain_s=5, cancel_grace_s=5, **more)
        self.server = Server(settings, command) if command else Server(settings)
        self._channel = grpc.insecure_channel(self.server.address)
        self.studies = studies_pb2_grpc.StudyServiceStub(self._channel)
        self.training = training_pb2_grpc.TrainingServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()
        self.server.stop()

    def create(self, *parameters: dict[str, Any], **more: Any) -> studies_pb2.Study:
        return self.studies.CreateStudy(asked(*parameters, **more), timeout=100).study

    def get(self, name: str) -> studies_pb2.Study:
        return self.studies.GetStudy(studies_pb2.GetStudyRequest(name=name), timeout=10).study

    def cancel(self, name: str) -> studies_pb2.Study:
        return self.studies.CancelStudy(studies_pb2.CancelStudyRequest(name=name), timeout=10).study

    def delete(self, name: str) -> None:
        self.studies.DeleteStudy(studies_pb2.DeleteStudyRequest(name=name), timeout=10)

    def jobs(self, filter: str = "") -> list[str]:
        request = training_pb2.ListJobsRequest(filter=filter, page_size=1000, order_by="create_time")
        return [job.name for job in self.training.ListJobs(request, timeout=10).jobs]

    def until(self, job: str, *states: training_pb2.JobState.ValueType) -> None:
        """Returns once the job has come into one of the states."""
        for reply in self.training.WatchJob(training_pb2.WatchJobRequest(name=job), timeout=60):
            if reply.event.HasField("state_change") and reply.event.state_change.state in states:
                return
        raise AssertionError(f"{job} came into none of {states}")


def asked(
    *parameters: dict[str, Any], spec: dict[str, Any] | None = None, **more: Any
) -> studies_pb2.CreateStudyRequest:
    ours: dict[str, Any] = {
        name: more.pop(name) for name in ("study_id", "request_id", "validate_only") if name in more
    }
    study = {"base": {"spec": spec or SPEC, "labels": {"team": "x"}}, "parameters": parameters, **more}
    return json_format.ParseDict({"study": study, **ours}, studies_pb2.CreateStudyRequest())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("studies")
    bench = Bench(folder, [sys.executable, "-c", PROGRAM], max_jobs=2, max_study_trials=6)
    yield bench
    bench.close()


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, dict[str, str], str]:
    """Status, broken rules by field, and reason of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    for detail in rpc_status.from_call(error).details:
        detail.Unpack(bad)
        detail.Unpack(info)
    return error.code(), {v.field: v.description for v in bad.field_violations}, info.reason


def test_a_study_is_one_job_for_each_trial_and_all_know_of_each_other(bench: Bench) -> None:
    study = bench.create(BLOCKS, FAMILIES, study_id="grid")
    assert [dict(trial.parameters) for trial in study.trials] == [
        {"blocks.num_blocks": blocks, "latent.family": family} for blocks in (1, 2) for family in FAMILIES["values"]
    ]
    names = [f"jobs/grid-{number}" for number in range(4)]
    assert (
        [trial.job for trial in study.trials] == bench.jobs("study=grid") == bench.jobs("study=studies/grid") == names
    )
    assert study.base.labels == {"team": "x"}
    job = bench.training.GetJob(training_pb2.GetJobRequest(name=names[3]), timeout=10).job
    assert (job.study, dict(job.parameters)) == ("studies/grid", dict(study.trials[3].parameters))
    assert (dict(job.labels), job.spec.model_id, job.resolved_spec.model_id) == ({"team": "x"}, "", "grid-3")
    assert job.resolved_spec.latent.family == training_pb2.FAMILY_NAME_GAUSSIAN
    assert len(job.plan.blocks) == 2
    bench.cancel("studies/grid")


def test_validate_only_shows_the_trials_and_stores_nothing(bench: Bench) -> None:
    before = bench.jobs()
    range_ = {"low": 1e-4, "high": 1e-2, "scale": "PARAMETER_SCALE_LOG"}
    rate = {"field": "optimizer.learning_rate", "range": range_}
    preview = bench.create(FAMILIES, rate, num_trials=3, seed=5, study_id="preview", validate_only=True)
    assert (preview.name, preview.state, preview.HasField("counts")) == ("", 0, False)
    assert [set(trial.parameters) for trial in preview.trials] == [{"latent.family", "optimizer.learning_rate"}] * 3
    assert bench.jobs() == before
    assert refusal(lambda: bench.get("studies/preview"))[0] is grpc.StatusCode.NOT_FOUND
    study = bench.create(FAMILIES, rate, num_trials=3, seed=5, study_id="preview")
    assert [trial.parameters for trial in study.trials] == [trial.parameters for trial in preview.trials]
    bench.cancel(study.name)


@pytest.mark.parametrize(
    ("parameter", "field", "rule"),
    [
        # The config alone tells.
        (
            {"field": "epochs", "values": [1, 0]},
            "trials[1].epochs",
            "must be a whole number between 1 and 100000, got 0; its parameters are epochs = 0",
        ),
        # The network tells.
        (
            {"field": "blocks.num_blocks", "values": [1, 2, 9]},
            "trials[2].blocks.num_blocks",
            "got 9; its parameters are",
        ),
        # A spec that the service does not serve.
        ({"field": "data.target", "values": ["labels", "inputs"]}, "trials[1].data.target", "must be 'labels'"),
    ],
)
def test_one_bad_trial_refuses_the_whole_study_by_trial_field_rule_and_value(
    bench: Bench, parameter: dict[str, Any], field: str, rule: str
) -> None:
    before = bench.jobs()
    code, broken, _ = refusal(lambda: bench.create(parameter, study_id="bad"))
    assert (code, list(broken)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert rule in broken[field]
    assert bench.jobs() == before
    assert refusal(lambda: bench.get("studies/bad"))[0] is grpc.StatusCode.NOT_FOUND


def test_what_is_wrong_beside_the_trials_is_named_by_its_field(bench: Bench) -> None:
    request = asked(BLOCKS, study_id="Bad", request_id="7", metric=9, max_parallel_trials=-1, spec={"model_id": "mine"})
    request.study.base.labels["team"] = "a b"
    code, broken, _ = refusal(lambda: bench.studies.CreateStudy(request, timeout=10))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(broken) == {
        "study_id", "request_id", "study.metric", "study.max_parallel_trials", "study.base.spec.model_id",
        "study.base.labels",
    }  # fmt: skip
    nothing = studies_pb2.CreateStudyRequest()
    assert set(refusal(lambda: bench.studies.CreateStudy(nothing, timeout=10))[1]) == {"study.base.spec"}
    many = {"field": "seed", "values": list(range(7))}
    assert refusal(lambda: bench.create(many))[1] == {"study.parameters": "must come to at most 6 trials, got 7 = 7"}
    for name in ("grid", "jobs/grid", "studies/", "studies/Grid", "studies/a/b"):
        assert set(refusal(lambda name=name: bench.get(name))[1]) == {"name"}  # type: ignore[misc]  # of a lambda


def test_a_job_whose_id_is_taken_refuses_the_whole_study(bench: Bench) -> None:
    spec = json_format.ParseDict(SPEC, training_pb2.JobSpec())
    request = training_pb2.CreateJobRequest(job=training_pb2.Job(spec=spec), job_id="taken-1")
    bench.training.CreateJob(request, timeout=100)
    before = bench.jobs()
    code, _, reason = refusal(lambda: bench.create(BLOCKS, study_id="taken"))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "JOB_EXISTS")
    assert bench.jobs() == before
    assert refusal(lambda: bench.get("studies/taken"))[0] is grpc.StatusCode.NOT_FOUND
    bench.training.CancelJob(training_pb2.CancelJobRequest(name="jobs/taken-1"), timeout=10)


def test_a_repeated_request_returns_its_study_and_another_body_is_refused(bench: Bench) -> None:
    first = bench.create(BLOCKS, study_id="again", request_id=UUID)
    jobs = bench.jobs()
    assert bench.create(BLOCKS, study_id="again", request_id=UUID).create_time == first.create_time
    assert bench.jobs() == jobs
    code, _, reason = refusal(lambda: bench.create(FAMILIES, study_id="again", request_id=UUID))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    code, _, reason = refusal(lambda: bench.create(BLOCKS, study_id="again"))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "STUDY_EXISTS")
    bench.cancel(first.name)


def test_a_cancelled_study_leaves_no_trial_that_goes_on_and_can_be_deleted(bench: Bench, tmp_path: Path) -> None:
    study = bench.create({"field": "seed", "values": [0, 1, 2, 3, 4]}, study_id="whole")
    assert refusal(lambda: bench.delete(study.name))[0] is grpc.StatusCode.FAILED_PRECONDITION
    bench.until("jobs/whole-1", training_pb2.JOB_STATE_FAILED)
    bench.until("jobs/whole-2", RUNNING)
    assert bench.get(study.name).state == studies_pb2.STUDY_STATE_RUNNING
    bench.cancel(study.name)
    for number in (0, 2, 3, 4):
        bench.until(f"jobs/whole-{number}", CANCELLED)
    ended = bench.cancel(study.name)
    assert (ended.state, ended.counts) == (
        studies_pb2.STUDY_STATE_CANCELLED,
        studies_pb2.TrialCounts(total=5, failed=1, cancelled=4),
    )
    assert ended.trials[1].state_reason == "the loss is nan"
    assert not ended.HasField("best_trial")
    for number in (3, 4):  # they never got a slot
        job = bench.training.GetJob(training_pb2.GetJobRequest(name=f"jobs/whole-{number}"), timeout=10).job
        assert not job.HasField("start_time")
    bench.delete(study.name)
    assert bench.jobs("study=whole") == []
    assert refusal(lambda: bench.get(study.name))[0] is grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: bench.cancel(study.name))[0] is grpc.StatusCode.NOT_FOUND
    again = bench.create(BLOCKS, study_id="whole")
    bench.cancel(again.name)


def test_a_trial_that_is_deleted_by_itself_is_in_the_table_no_more(bench: Bench) -> None:
    study = bench.create(BLOCKS, study_id="less")
    bench.cancel(study.name)
    for trial in study.trials:
        bench.until(trial.job, CANCELLED)
    bench.training.DeleteJob(training_pb2.DeleteJobRequest(name="jobs/less-0"), timeout=10)
    left = bench.get(study.name)
    assert ([trial.number for trial in left.trials], left.counts.total) == ([1], 1)


def test_no_more_trials_run_than_the_study_allows_and_other_jobs_pass_them(bench: Bench) -> None:
    study = bench.create({"field": "seed", "values": [0, 2, 3]}, study_id="narrow", max_parallel_trials=1)
    bench.until("jobs/narrow-0", RUNNING)
    spec = json_format.ParseDict(SPEC, training_pb2.JobSpec())
    request = training_pb2.CreateJobRequest(job=training_pb2.Job(spec=spec), job_id="passer")
    bench.training.CreateJob(request, timeout=100)
    bench.until("jobs/passer", RUNNING)
    assert bench.get(study.name).counts == studies_pb2.TrialCounts(total=3, queued=2, running=1)
    bench.training.CancelJob(training_pb2.CancelJobRequest(name="jobs/narrow-0"), timeout=10)
    bench.until("jobs/narrow-1", RUNNING)
    assert bench.get(study.name).counts == studies_pb2.TrialCounts(total=3, queued=1, running=1, cancelled=1)
    bench.cancel(study.name)
    bench.training.CancelJob(training_pb2.CancelJobRequest(name="jobs/passer"), timeout=10)


def test_lists_are_newest_first_page_by_page_and_without_trials(bench: Bench) -> None:
    for number in range(3):
        bench.cancel(bench.create({"field": "seed", "values": [0]}, study_id=f"list-{number}").name)
    request, names = studies_pb2.ListStudiesRequest(page_size=2), []
    while True:
        page = bench.studies.ListStudies(request, timeout=10)
        assert all(not study.trials and not study.parameters and study.counts.total for study in page.studies)
        names += [study.name for study in page.studies]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert names[:3] == ["studies/list-2", "studies/list-1", "studies/list-0"]
    assert len(names) == len(set(names))
    for field, bad in {
        "page_size": studies_pb2.ListStudiesRequest(page_size=-1),
        "page_token": studies_pb2.ListStudiesRequest(page_token="x"),
    }.items():
        assert set(refusal(lambda bad=bad: bench.studies.ListStudies(bad, timeout=10))[1]) == {field}  # type: ignore[misc]


@pytest.mark.timeout(300)
def test_a_study_that_has_trained_names_the_best_model_by_validation_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, None, max_jobs=2)
    try:
        rates = {"field": "optimizer.learning_rate", "values": [1e-8, 5e-3]}
        spec = SPEC | {"epochs": 8, "batch_size": 16}
        study = bench.create(rates, study_id="rates", metric="STUDY_METRIC_ACCURACY", spec=spec)
        for trial in study.trials:
            bench.until(trial.job, training_pb2.JOB_STATE_SUCCEEDED)
        study = bench.get(study.name)
    finally:
        bench.close()
    slow, fast = study.trials
    assert study.state == studies_pb2.STUDY_STATE_SUCCEEDED
    assert fast.validation.accuracy > slow.validation.accuracy
    assert (study.best_trial, study.best_model_version) == (1, "models/rates-1/versions/1")
    assert fast.progress.step == fast.progress.total_steps
    assert slow.model_version == "models/rates-0/versions/1"
    assert slow.HasField("test")
