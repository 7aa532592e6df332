from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bll.config import BlocksConfig, TrainingConfig
from bll.events import BlockProgress, Evaluation, Scores
from bll.plan import BlockPlan, Plan
from bll_server.errors import IllegalState, JobExists, NotFound, QuotaExceeded, RequestIdReused, StudyExists
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.records import Progress, StateChange
from bll_server.jobs.states import State
from bll_server.jobs.store import Store
from bll_server.studies.records import Counts, NewStudy, NewTrial
from bll_server.studies.store import Studies

PLAN = Plan(
    config=TrainingConfig(blocks=BlocksConfig(num_blocks=1), epochs=2),
    blocks=(BlockPlan(0, ("stem",), 100, 2000, (16, 28, 28), 4096),),
    input_shape=(1, 28, 28),
    class_names=("a", "b"),
    steps_per_epoch=10,
    dataset_digest="0" * 64,
)
SCORES = Scores(accuracy=0.9, nll_nats=0.3, ece=0.01, brier=0.1)


@pytest.fixture
def store(job_database: Callable[[], Path | sa.URL]) -> Iterator[Store]:
    store = Store(job_database())
    yield store
    store.close()


@pytest.fixture
def studies(store: Store) -> Studies:
    return Studies(store)


def make(studies: Studies, study_id: str = "sweep", trials: int = 3, max_parallel: int = 0, **more: Any) -> str:
    found = [NewTrial({"epochs": number + 1, "latent.family": "laplace"}, b"spec", PLAN) for number in range(trials)]
    return studies.create(NewStudy(study_id, b"asked", max_parallel, found), **more)


def test_a_study_reads_back_with_a_queued_job_for_each_trial(studies: Studies, store: Store) -> None:
    study, trials = studies.get(make(studies, owner="ann", metadata=Metadata(labels={"team": "x"}, priority=3)))
    assert (study.study_id, study.owner, study.request) == ("sweep", "ann", b"asked")
    assert [trial.job.parameters for trial in trials] == [{"epochs": n, "latent.family": "laplace"} for n in (1, 2, 3)]
    assert [(trial.number, trial.job.job_id, trial.job.study) for trial in trials] == [
        (n, f"sweep-{n}", "sweep") for n in range(3)
    ]
    for trial in trials:
        job = store.get(trial.job.job_id)
        assert (job.state, job.model_id, job.spec, job.plan) == (State.QUEUED, job.job_id, b"spec", PLAN)
        assert (job.owner, job.metadata) == ("ann", Metadata(labels={"team": "x"}, priority=3))
        assert [e.event for e in store.events(job.job_id, 0)] == [StateChange(State.QUEUED)]
    assert [job.job_id for job in store.queue()] == ["sweep-0", "sweep-1", "sweep-2"]
    assert studies.owner("sweep") == "ann"


def test_the_store_chooses_an_id_where_none_is_given(studies: Studies, store: Store) -> None:
    chosen = make(studies, "")
    assert store.get(f"{chosen}-2").study == chosen


def test_scores_of_a_trial_are_read_with_it(studies: Studies, store: Store) -> None:
    make(studies)
    progress = Progress(5, 0, 100.0, None)
    store.append("sweep-1", BlockProgress(0, 0, 5, 1.2, 0.3, 0.5, 0.2, 0.7, 1.0, 100.0, 0.0), progress)
    store.append("sweep-1", Evaluation("validation", 0, 10, 100, SCORES, SCORES, (SCORES,), 0.0))
    store.append("sweep-1", Evaluation("test", 0, 10, 100, SCORES, SCORES, (SCORES,), 0.0))
    _, (first, second, _) = studies.get("sweep")
    assert (first.job.progress, first.validation, first.test) == (None, None, None)
    assert second.job.progress == progress
    assert second.validation is not None
    assert second.test is not None
    assert second.validation.mixture == second.test.mixture == SCORES


def test_what_cannot_be_stored_whole_is_not_stored_at_all(studies: Studies, store: Store) -> None:
    store.create("sweep-2", "", b"", PLAN)
    with pytest.raises(JobExists, match="sweep-2"):
        make(studies)
    with pytest.raises(NotFound, match="no study is named 'studies/sweep'"):
        studies.get("sweep")
    assert [job.job_id for job in store.queue()] == ["sweep-2"]
    make(studies, trials=2)
    with pytest.raises(StudyExists, match="study_id 'sweep' is taken"):
        make(studies, trials=1)


def test_all_trials_count_as_unfinished_jobs_of_their_owner(studies: Studies, store: Store) -> None:
    store.create("own", "", b"", PLAN, owner="ann")
    with pytest.raises(QuotaExceeded, match="ann may have 3 jobs that are not over, and has 1"):
        make(studies, owner="ann", most_unfinished=3)
    assert [job.job_id for job in store.queue()] == ["own"]
    make(studies, owner="ann", most_unfinished=4)
    with pytest.raises(QuotaExceeded):
        make(studies, "next", trials=1, owner="ann", most_unfinished=4)
    make(studies, "bobs", owner="bob", most_unfinished=3)


def test_a_request_id_of_an_owner_returns_its_study(studies: Studies, store: Store) -> None:
    asked: dict[str, Any] = {"owner": "ann", "request_id": "r", "request_digest": "d"}
    made = make(studies, "", **asked)
    assert make(studies, "", **asked) == studies.replayed("r", "d", "ann") == made
    assert studies.replayed("r", "d", "bob") == studies.replayed("other", "d", "ann") == ""
    assert make(studies, "bobs", **asked | {"owner": "bob"}) == "bobs"
    with pytest.raises(RequestIdReused, match=f"which made 'studies/{made}'"):
        make(studies, "", **asked | {"request_digest": "other"})
    assert len(store.queue()) == 6


def test_pages_are_newest_first_of_an_owner_with_counts_and_stay_true(studies: Studies, store: Store) -> None:
    for number, owner in enumerate(["ann", "bob", "ann", "ann"]):
        make(studies, f"s{number}", trials=number + 1, owner=owner)
    store.transition("s3-0", State.CANCELLED)
    first, token = studies.page(2, 0, "ann")
    assert [(study.study_id, counts) for study, counts in first] == [
        ("s3", Counts(queued=3, cancelled=1)),
        ("s2", Counts(queued=3)),
    ]
    make(studies, "s4", owner="ann")
    second, end = studies.page(2, token, "ann")
    assert ([study.study_id for study, _ in second], end) == (["s0"], 0)
    assert [study.study_id for study, _ in studies.page(9, 0)[0]] == ["s4", "s3", "s2", "s1", "s0"]


def test_trials_without_a_runner_are_cancelled_before_those_with_one(studies: Studies, store: Store) -> None:
    make(studies, trials=4)
    store.transition("sweep-0", State.STARTING)
    store.transition("sweep-1", State.CANCELLED)
    store.transition("sweep-2", State.PAUSED)
    assert studies.unfinished("sweep") == ["sweep-2", "sweep-3", "sweep-0"]
    with pytest.raises(NotFound):
        studies.unfinished("none")


def test_a_study_is_deleted_whole_or_not_at_all(studies: Studies, store: Store) -> None:
    make(studies)
    store.create("own", "", b"", PLAN)
    for job_id in ("sweep-0", "sweep-1"):
        store.transition(job_id, State.CANCELLED)
    for delete in (studies.job_ids, studies.delete):
        with pytest.raises(IllegalState, match="jobs/sweep-2 is QUEUED"):
            delete("sweep")
    assert len(studies.get("sweep")[1]) == 3
    store.transition("sweep-2", State.PAUSED)
    assert studies.job_ids("sweep") == ["sweep-0", "sweep-1", "sweep-2"]
    studies.delete("sweep")
    with pytest.raises(NotFound):
        studies.delete("sweep")
    assert [job.job_id for job in store.page(9, "")[0]] == ["own"]
    assert store.events("sweep-0", 0) == []
    make(studies)


def test_the_bound_of_a_study_is_told_while_it_has_queued_trials(studies: Studies, store: Store) -> None:
    make(studies, "narrow", max_parallel=2)
    make(studies, "wide")
    assert store.parallel_trials() == {"narrow": 2}
    for number in range(3):
        store.transition(f"narrow-{number}", State.CANCELLED)
    assert store.parallel_trials() == {}
