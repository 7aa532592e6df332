"""The soak in small: a killed worker, a stopped one, and what a run must not leave."""

from __future__ import annotations

import signal
import socket
import tempfile
import threading
from pathlib import Path

from benchmarks.engine.chaos import SPECS, Chaos, Outcome, private_temporaries, rows
from benchmarks.engine.leaks import held, left

SPEC = "CNN with lines of one slot, 2 blocks"
KILLED, STOPPED = 6, 3
"""Jobs that the seed hits once, early, with each signal."""


def test_jobs_with_killed_and_stopped_workers_end_with_the_same_bits_and_leave_nothing() -> None:
    with private_temporaries():
        chaos = Chaos({SPEC: SPECS[SPEC]})
        killed, stopped = chaos.job(KILLED), chaos.job(STOPPED)
    assert [hit.split()[0] for hit in killed.struck] == [signal.SIGKILL.name]
    assert [hit.split()[0] for hit in stopped.struck] == [signal.SIGSTOP.name]
    for outcome in (killed, stopped):
        assert outcome.error == ""
        assert outcome.rollbacks == 1
        assert outcome.identical
        assert list(outcome.left) == []


def test_what_is_left_is_named() -> None:
    with private_temporaries():
        before = held()
        assert left(before, held()) == []
        release = threading.Event()
        thread = threading.Thread(target=release.wait)
        thread.start()
        stray = Path(tempfile.gettempdir(), "stray")
        stray.touch()
        with socket.socket():
            found = left(before, held())
        release.set()
        thread.join()
    assert found == ["1 threads", "1 open: socket", str(stray)]


def test_rows_tell_of_every_job_that_went_wrong() -> None:
    well = Outcome(SPEC, ["SIGKILL at step 3", "SIGSTOP at step 4"], rollbacks=2, identical=True)
    other_bits = Outcome(SPEC, ["SIGSTOP at step 9"], rollbacks=1, left=["process 7"])
    failed = Outcome(SPEC, ["SIGKILL at step 1"], error="BlockFailed()")
    values = {row.what: row.value for row in rows([well, other_bits, failed])}
    assert values["workers killed or stopped"] == 4
    assert values["of these killed"] == 2
    assert values["rollbacks"] == 3
    assert values["jobs that did not end"] == 1
    assert values["jobs without the bits of an undisturbed run"] == 2
    assert values["jobs that left something"] == 1
