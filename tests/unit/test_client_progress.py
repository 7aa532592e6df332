"""The live view of a job, drawn without a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from rich.console import Console

from bll_client import (
    Alarm,
    AlarmSignature,
    BlockDiagnostics,
    BlockPlan,
    BlockProgress,
    BlocksPlaced,
    BlockWaiting,
    Job,
    JobEvent,
    JobPlan,
    JobProgress,
    JobState,
    PlacedWorker,
    StateChange,
    Unavailable,
)
from bll_client.cli.watching import LineView, LiveView

NOW = datetime(2026, 1, 2, tzinfo=UTC)
BLOCK = BlockPlan(0, ("dense 8",), 72, 144, (8,), 4096)
JOB = Job(
    name="jobs/one",
    spec={},
    resolved_spec={"epochs": 2, "batch_size": 100},
    plan=JobPlan((BLOCK, BLOCK), (4,), ("a", "b"), 10, "", (), ()),
    state=JobState.QUEUED,
    state_reason="",
    error=None,
    progress=None,
    validation=None,
    test=None,
    model_version="",
    create_time=NOW,
    start_time=None,
    end_time=None,
    last_event=1,
    display_name="",
    labels={},
    priority=0,
    etag="",
    queue_position=0,
    owner="",
    preemptible=False,
    max_run_duration=None,
    ttl_after_finish=None,
    run_duration=None,
    expire_time=None,
    study="",
    parameters={},
)


def progress(block: int, step: int, samples_per_s: float) -> JobEvent:
    content = BlockProgress(
        block=block, epoch=0, step=step, loss_nats=1.5, kl_nats=0.1, accuracy=0.5, posterior_variance=0.2,
        agreement=0.3, mixing=1.0, samples_per_s=samples_per_s, wait=timedelta(seconds=0.25),
        send_wait=timedelta(seconds=1.5), inbox_fill=0.75,
    )  # fmt: skip
    return JobEvent(step, NOW, content)


def same() -> Job:
    return JOB


def drawn(view: LiveView) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(view._draw())
    return out.getvalue()


def test_every_block_has_a_line_before_the_first_report() -> None:
    text = drawn(LiveView(JOB, same))
    assert "jobs/one queued" in text
    assert text.count("0/20") == 2


def test_the_time_left_is_what_the_server_says_looked_up_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = 0.0, 0
    monkeypatch.setattr("time.monotonic", lambda: now)

    def look() -> Job:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise Unavailable("the server restarts", status=grpc.StatusCode.UNAVAILABLE)
        left = timedelta(seconds=30.6) if looks == 1 else timedelta(hours=26)
        return replace(JOB, progress=JobProgress(5, 20, 0, 2, 100.0, left, 1.0))

    view = LiveView(JOB, look)
    assert "to go" not in drawn(view)
    for at, shown in ((10.0, "0:00:31"), (11.9, "0:00:31"), (12.0, "0:00:31"), (14.1, "1 day, 2:00:00")):
        now = at
        view.show(progress(0, 10, 100.0))
        assert f"{shown} to go" in drawn(view)
    assert looks == 3
    view.show(JobEvent(9, NOW, StateChange(JobState.SUCCEEDED, "")))
    assert "jobs/one succeeded" in drawn(view)
    assert "to go" not in drawn(view)


def test_blocks_are_shown_even_where_no_plan_is_known() -> None:
    view = LiveView(Job(**{**vars(JOB), "plan": None, "resolved_spec": {}}), same)
    view.show(progress(3, 7, 100.0))
    assert "7/0" not in drawn(view)
    assert "0.5000" in drawn(view)


ALARM = Alarm(AlarmSignature.LOSS_PLATEAU, 2, 4, 40, "it stands still", "a richer latent.readout", ())
_FIGURES: list[Any] = [0] * 25
DIAGNOSTICS = BlockDiagnostics(*_FIGURES)


def test_an_alarm_is_one_line_with_cause_and_remedy_and_diagnostics_are_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = LineView()
    view.show(JobEvent(1, NOW, DIAGNOSTICS))
    view.show(JobEvent(2, NOW, ALARM))
    (shown,) = capsys.readouterr().out.splitlines()
    expected = "alarm loss_plateau, block 2 epoch 4: it stands still; remedy: a richer latent.readout"
    assert shown.endswith(expected)
    live = LiveView(JOB, same)
    live.show(JobEvent(1, NOW, DIAGNOSTICS))
    live.show(JobEvent(2, NOW, ALARM))
    assert expected in drawn(live)


def test_a_blocked_and_a_starved_block_can_be_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveView(JOB, same)
    live.show(progress(0, 10, 100.0))
    assert drawn(live).splitlines()[2].split()[-5:] == ["0.2", "s", "1.5", "s", "75%"]
    LineView().show(progress(0, 10, 100.0))
    assert capsys.readouterr().out.endswith("waited 0.2 s, blocked 1.5 s, inbox 75% full\n")


@pytest.mark.parametrize(
    ("for_room", "said"), [(False, "31 s for block 1"), (True, "31 s for room in the line to block 1")]
)
def test_a_long_wait_is_shown_until_it_is_over(for_room: bool, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    begun, over = (BlockWaiting(2, 1, for_room, timedelta(seconds=31), ended) for ended in (False, True))
    live, lines = LiveView(JOB, same), LineView()
    for number, (event, shown) in enumerate(((begun, True), (over, False))):
        live.show(JobEvent(number, NOW, event))
        lines.show(JobEvent(number, NOW, event))
        assert (f"block 2 has waited {said}" in drawn(live)) == shown
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(f"block 2 has waited {said}")
    assert second.endswith(f"block 2 waited {said}")


def test_who_runs_which_blocks_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    placed = BlocksPlaced(0, True, (PlacedWorker((0, 1), 0.625, (3, 4)), PlacedWorker((2,), 0.375, ())))
    LineView().show(JobEvent(1, NOW, placed))
    said = "workers: blocks 0, 1 (62% of a step) on cores 3, 4 | block 2 (38% of a step)\n"
    assert capsys.readouterr().out.endswith(said)
