"""What the links' rows say of the rounds."""

from __future__ import annotations

from benchmarks.engine.contenders import Contender, Window
from benchmarks.engine.links import Line
from benchmarks.engine.network import Loopback, Network
from benchmarks.engine.rounds import Rounds
from benchmarks.record import holds

CONTENDER = Contender("ddp", {}, Window(1, 1), ranks=2)


def test_what_is_kept_is_the_median_of_each_rounds_ratio_to_the_nearest() -> None:
    line = Line("DDP", CONTENDER, (0.0, 50.0), target=0.97)
    assert {name: each.round_trip_ms for name, each in line.contenders().items()} == {"DDP, 0 ms": 0, "DDP, 50 ms": 50}
    speeds = {"DDP, 0 ms": [100.0, 50.0, 200.0], "DDP, 50 ms": [98.0, 50.0, 120.0]}
    rounds = Rounds({name: [{"samples_per_s": speed} for speed in each] for name, each in speeds.items()})
    near, far, kept = line.rows(rounds)
    assert (near.value, near.ratio) == (100.0, 1.0)
    assert (far.value, far.ratio) == (98.0, 0.98)
    assert (kept.value, kept.target, holds(kept)) == (0.98, 0.97, True)


def test_only_ranks_that_are_apart_talk_over_a_network() -> None:
    (far,) = Line("DDP", CONTENDER, (50.0,)).contenders().values()
    assert isinstance(far.links(), Network)
    assert isinstance(CONTENDER.links(), Loopback)
    (block_local,) = Line("BLL", Contender("bll", {}, Window(1, 1)), (50.0,)).contenders().values()
    assert isinstance(block_local.links(), Loopback)
