"""What a job's events do to the metrics."""

from __future__ import annotations

from bll.events import Alarm, AlarmSignature, BlockProgress
from bll_server.metrics import Metrics


def test_alarms_are_counted_by_signature() -> None:
    metrics = Metrics()
    plateau = Alarm(AlarmSignature.LOSS_PLATEAU, 1, 4, 40, "it stands still", "a richer latent.readout", ())
    gap = Alarm(AlarmSignature.END_TO_END_GAP, None, 4, 40, "exits fall", "fewer blocks", ())
    for alarm in (plateau, gap, plateau):
        metrics.alarm_raised(alarm)

    def count(signature: str) -> float | None:
        return metrics.registry.get_sample_value("bll_job_alarms_total", {"signature": signature})

    assert (count("loss_plateau"), count("end_to_end_gap"), count("unstable_uncertainty")) == (2, 1, None)


def test_waits_of_a_block_add_up_until_its_job_ends_and_its_fill_is_the_last() -> None:
    metrics = Metrics()

    def value(name: str, job: str) -> float | None:
        return metrics.registry.get_sample_value(f"bll_job_block_{name}", {"job": job, "block": "1"})

    figures = 1.2, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0
    for wait_s, send_wait_s, fill in ((0.25, 0.5, 0.75), (1.0, 2.0, 0.5)):
        for job in ("one", "two"):
            metrics.block_progressed(job, BlockProgress(1, 0, 5, *figures, wait_s, 0.0, send_wait_s, fill))
    metrics.job_ended("two")
    names = "receive_wait_seconds_total", "send_wait_seconds_total", "inbox_fill_ratio"
    assert [value(name, "one") for name in names] == [1.25, 2.5, 0.5]
    assert [value(name, "two") for name in names] == [None] * 3


def test_lost_workers_are_counted() -> None:
    metrics = Metrics()
    metrics.run_rolled_back()
    metrics.block_continued()
    metrics.run_rolled_back()
    assert metrics.registry.get_sample_value("bll_block_restarts_total", {"recovery": "exact"}) == 2
    assert metrics.registry.get_sample_value("bll_block_restarts_total", {"recovery": "continue"}) == 1
