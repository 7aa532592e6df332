"""A server that is killed outright while a study is made, and while it runs: every trial exactly once."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from bll_proto.v1 import models_pb2, models_pb2_grpc, studies_pb2, studies_pb2_grpc, training_pb2, training_pb2_grpc

REQUEST = {
    "study_id": "sweep",
    "request_id": "7d3f3c1e-4f43-4b57-9d34-0b1d8a7d2f10",
    "study": {
        "base": {
            "spec": {
                "data": {"name": "digits"},
                "network": {"architecture": "mlp", "widths": [8, 8]},
                "blocks": {"num_blocks": 2},
                "latent": {"units": 4, "readout_units": 8},
                "executor": {"name": "EXECUTOR_NAME_SEQUENTIAL"},
                "batch_size": 32,
            }
        },
        "parameters": [
            {"field": "epochs", "values": [2, 12]},
            {"field": "optimizer.learning_rate", "range": {"low": 1e-3, "high": 1e-2}},
        ],
        "num_trials": 3,
        "seed": 1,
    },
}


class Stubs:
    def __init__(self, process: subprocess.Popen[str], channel: grpc.Channel) -> None:
        self.process = process
        self.studies = studies_pb2_grpc.StudyServiceStub(channel)
        self.training = training_pb2_grpc.TrainingServiceStub(channel)
        self.models = models_pb2_grpc.ModelServiceStub(channel)

    def create(self, **more: Any) -> studies_pb2.Study:
        request = json_format.ParseDict(REQUEST | more, studies_pb2.CreateStudyRequest())
        return self.studies.CreateStudy(request, timeout=100).study

    def get(self) -> studies_pb2.Study:
        return self.studies.GetStudy(studies_pb2.GetStudyRequest(name="studies/sweep"), timeout=10).study

    def jobs(self) -> list[str]:
        listing = training_pb2.ListJobsRequest(order_by="create_time")
        return [job.name for job in self.training.ListJobs(listing, timeout=10).jobs]

    def events(self, job: str) -> Iterator[training_pb2.JobEvent]:
        replies = self.training.WatchJob(training_pb2.WatchJobRequest(name=job), timeout=200)
        return (reply.event for reply in replies if reply.HasField("event"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def serving(data_dir: Path) -> Iterator[Stubs]:
    command = [sys.executable, "-m", "bll_server", "--port", "0", "--metrics-port", "0", "--data-dir", str(data_dir)]
    with subprocess.Popen([*command, "--drain-s", "30"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split(",")[0].removeprefix("bll: serving on ")
            with grpc.insecure_channel(address) as channel:
                yield Stubs(process, channel)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        except BaseException:
            process.kill()
            raise


@pytest.mark.timeout(300)
def test_a_study_of_a_killed_server_trains_every_trial_exactly_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        made = server.create()
        first = made.trials[0].job
        next(event for event in server.events(first) if event.HasField("checkpoint_saved"))
        server.kill()
    with serving(tmp_path) as server:
        events = {trial.job: list(server.events(trial.job)) for trial in made.trials}
        study = server.get()
        assert server.jobs() == [trial.job for trial in made.trials]
        assert server.create().create_time == made.create_time
        assert len(server.jobs()) == 3
        models = server.models.ListModels(models_pb2.ListModelsRequest(), timeout=10).models
    assert study.state == studies_pb2.STUDY_STATE_SUCCEEDED, study
    assert [trial.parameters for trial in study.trials] == [trial.parameters for trial in made.trials]
    assert study.HasField("best_trial")
    assert [model.versions[0].name for model in models] == [trial.model_version for trial in study.trials]
    assert all(trial.model_version.endswith("/versions/1") for trial in study.trials)
    for job in events:
        assert [event.number for event in events[job]] == list(range(1, len(events[job]) + 1))
    reasons = [e.state_change.reason for e in events[first] if e.state_change.reason]
    assert len(reasons) == 1
    assert reasons[0].startswith("the server died; goes on from step ")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("delay_s", [0.01, 0.1])
def test_a_server_killed_while_it_makes_a_study_has_all_of_its_jobs_or_none(tmp_path: Path, delay_s: float) -> None:
    with serving(tmp_path) as server, ThreadPoolExecutor(1) as calls:
        server.create(validate_only=True)  # the planner is warm now
        call = calls.submit(server.create)
        threading.Event().wait(delay_s)
        server.kill()
        answered = None
        with suppress(grpc.RpcError):
            answered = call.result(100)
    with serving(tmp_path) as server:
        found = server.jobs()
        assert found in ([], [f"jobs/sweep-{number}" for number in range(3)])
        assert found or not answered
        study = server.create()
        assert server.jobs() == [trial.job for trial in study.trials] == [f"jobs/sweep-{number}" for number in range(3)]
        server.studies.CancelStudy(studies_pb2.CancelStudyRequest(name=study.name), timeout=10)
