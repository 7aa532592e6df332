from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bll.events import Evaluation, Scores
from bll_server.jobs.metadata import NO_METADATA
from bll_server.jobs.records import JobSummary
from bll_server.jobs.states import State
from bll_server.studies.records import Counts, Metric, StudyState, Trial, best

JOB = JobSummary(
    job_id="sweep-0", owner="", model_id="sweep-0", metadata=NO_METADATA, etag="", state=State.SUCCEEDED, reason="",
    failure=None, progress=None, total_steps=10, total_epochs=1, checkpoint_step=0, model_version="", last_event=1,
    create_time=datetime.now(UTC), start_time=None, end_time=None, expire_time=None, run_s=0.0, study="sweep",
    parameters={},
)  # fmt: skip


def trial(number: int, state: State = State.SUCCEEDED, **scores: float) -> Trial:
    mixture = Scores(**({"accuracy": 0.5, "nll_nats": 1.0, "ece": 0.1, "brier": 0.5} | scores))
    on_validation = Evaluation("validation", 0, 10, 100, mixture, mixture, (mixture,), 0.0)
    # The test rows say the opposite, and nobody listens.
    opposite = replace(mixture, accuracy=1 - mixture.accuracy, nll_nats=-mixture.nll_nats)
    on_test = replace(on_validation, split="test", mixture=opposite)
    return Trial(number, replace(JOB, job_id=f"sweep-{number}", state=state), on_validation, on_test)


@pytest.mark.parametrize(
    ("metric", "scores"),
    [
        (Metric.NLL, [{"nll_nats": 0.3}, {"nll_nats": 0.2}, {"nll_nats": 0.4}]),
        (Metric.ACCURACY, [{"accuracy": 0.8}, {"accuracy": 0.9}, {"accuracy": 0.7}]),
        (Metric.ECE, [{"ece": 0.02}, {"ece": 0.01}, {"ece": 0.03}]),
        (Metric.BRIER, [{"brier": 0.2}, {"brier": 0.1}, {"brier": 0.3}]),
    ],
)
def test_the_best_trial_is_chosen_on_validation_rows_by_its_metric(metric: Metric, scores: Any) -> None:
    chosen = best([trial(number, **given) for number, given in enumerate(scores)], metric)
    assert chosen is not None
    assert chosen.number == 1


def test_the_best_trial_has_succeeded_and_has_a_finite_score() -> None:
    better = (
        trial(0, State.RUNNING, nll_nats=0.1),
        trial(1, State.FAILED, nll_nats=0.1),
        trial(2, nll_nats=float("nan")),
    )
    unseen = replace(trial(3), validation=None)
    chosen = best([*better, unseen, trial(4, nll_nats=5.0)], Metric.NLL)
    assert chosen is not None
    assert chosen.number == 4
    assert best([*better, unseen], Metric.NLL) is None


def test_of_equal_trials_the_first_is_best() -> None:
    chosen = best([trial(0, nll_nats=2.0), trial(1), trial(2)], Metric.NLL)
    assert chosen is not None
    assert chosen.number == 1


@pytest.mark.parametrize(
    ("jobs", "state"),
    [
        ({State.QUEUED: 3}, StudyState.QUEUED),
        ({State.QUEUED: 2, State.SUCCEEDED: 1}, StudyState.RUNNING),
        ({State.STARTING: 1, State.PAUSED: 1}, StudyState.RUNNING),
        ({State.CANCELLING: 1, State.CANCELLED: 4}, StudyState.RUNNING),
        ({State.PAUSED: 2, State.SUCCEEDED: 1, State.CANCELLED: 1}, StudyState.PAUSED),
        ({State.SUCCEEDED: 1, State.FAILED: 5}, StudyState.SUCCEEDED),
        ({State.SUCCEEDED: 5, State.CANCELLED: 1}, StudyState.CANCELLED),
        ({State.FAILED: 2}, StudyState.FAILED),
        ({}, None),
    ],
)
def test_the_state_of_a_study_follows_from_those_of_its_trials(
    jobs: dict[State, int], state: StudyState | None
) -> None:
    assert Counts.of(jobs).state is state


@given(st.dictionaries(st.sampled_from(State), st.integers(0, 50)))
def test_every_trial_is_counted_once(jobs: dict[State, int]) -> None:
    assert Counts.of(jobs).total == sum(jobs.values())
