"""What a job's events do to the metrics."""

from __future__ import annotations

from bll.events import Alarm, AlarmSignature
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
