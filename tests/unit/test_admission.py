"""What starts, what gives way and what waits: of any queue, any running jobs and any capacity."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bll_server.jobs.admission import Queued, Running, choose
from bll_server.jobs.capacity import Capacity, Demand, obstacle

DEMANDS = st.builds(
    Demand,
    threads=st.integers(0, 5),
    devices=st.frozensets(st.sampled_from(["cuda:0", "cuda:1"])),
    address=st.sampled_from(["", "", "", "head:6379", "elsewhere:6379"]),
)
OWNERS = st.sampled_from(["", "ann", "bob"])
PRIORITIES = st.integers(-1, 2)
QUEUED = st.builds(
    Queued,
    job_id=st.just(""),
    owner=OWNERS,
    priority=PRIORITIES,
    demand=DEMANDS,
    ready=st.sampled_from([True, True, False]),
)
RUNNING = st.builds(
    Running,
    job_id=st.just(""),
    owner=OWNERS,
    priority=PRIORITIES,
    demand=DEMANDS,
    preemptible=st.booleans(),
    leaving=st.booleans(),
)
CAPACITIES = st.builds(
    Capacity,
    jobs=st.integers(1, 4),
    threads=st.integers(1, 6),
    device_jobs=st.integers(1, 2),
    owner_jobs=st.integers(1, 4),
    owner_threads=st.integers(1, 6),
    ray_addresses=st.just(frozenset({"head:6379"})),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Queued], list[Running], Capacity]:
    """A queue in its order and running jobs that, as ever, have been started within the capacity."""
    capacity = draw(CAPACITIES)
    waiting = sorted(draw(st.lists(QUEUED, max_size=6)), key=lambda job: -job.priority)
    running: list[Running] = []
    for number, job in enumerate(draw(st.lists(RUNNING, max_size=5))):
        more = [*running, replace(job, job_id=f"r{number}")]
        if not overcommitted(more, capacity):
            running = more
    return [replace(job, job_id=f"q{number}") for number, job in enumerate(waiting)], running, capacity


def as_running(job: Queued) -> Running:
    return Running(job.job_id, job.owner, job.priority, job.demand)


def overcommitted(running: list[Running], capacity: Capacity) -> bool:
    """Whether they take more than there is, of anything."""
    devices = Counter(device for job in running for device in job.demand.devices)
    owners = {job.owner for job in running} - {""}
    return (
        len(running) > capacity.jobs
        or sum(job.demand.threads for job in running) > capacity.threads
        or any(count > capacity.device_jobs for count in devices.values())
        or any(sum(job.owner == owner for job in running) > capacity.owner_jobs for owner in owners)
        or any(
            sum(job.demand.threads for job in running if job.owner == owner) > capacity.owner_threads
            for owner in owners
        )
        or any(obstacle(job.demand, job.owner, capacity) for job in running)
    )


@given(situations())
def test_what_starts_fits_beside_what_runs(situation: tuple[list[Queued], list[Running], Capacity]) -> None:
    queue, running, capacity = situation
    choice = choose(queue, running, capacity)
    started = [as_running(job) for job in queue if job.job_id in choice.start]
    assert not overcommitted(running + started, capacity)
    assert all(job.ready for job in queue if job.job_id in choice.start)


@given(situations())
def test_no_job_overtakes_one_that_waits_for_room(situation: tuple[list[Queued], list[Running], Capacity]) -> None:
    queue, running, capacity = situation
    choice = choose(queue, running, capacity)
    taking, held_owners = list(running), set()
    for place, job in enumerate(queue):
        if job.job_id in choice.start:
            assert job.owner not in held_owners
            taking.append(as_running(job))
            continue
        if not job.ready or obstacle(job.demand, job.owner, capacity) or job.owner in held_owners:
            continue
        of_owner = [other for other in taking if other.owner == job.owner]
        if overcommitted([*of_owner, as_running(job)], replace(capacity, jobs=99, threads=99, device_jobs=99)):
            held_owners.add(job.owner)
            continue
        assert overcommitted([*taking, as_running(job)], capacity)  # else it would have started
        assert choice.to == job.job_id
        assert not set(choice.start) & {other.job_id for other in queue[place:]}
        break
    else:
        assert choice.to == ""


@given(situations())
def test_every_queued_job_that_does_not_start_is_told_why_and_its_place(
    situation: tuple[list[Queued], list[Running], Capacity],
) -> None:
    queue, running, capacity = situation
    choice = choose(queue, running, capacity)
    assert list(choice.standings) == [job.job_id for job in queue]
    for place, job in enumerate(queue, 1):
        standing = choice.standings[job.job_id]
        assert (standing.why == "") == (job.job_id in choice.start)
        assert 1 <= standing.position <= place
    positions = [choice.standings[job_id].position for job_id in choice.start]
    assert positions == list(range(1, len(positions) + 1))


@given(situations())
def test_who_gives_way_may_and_is_of_a_lower_priority_and_none_of_them_could_stay(
    situation: tuple[list[Queued], list[Running], Capacity],
) -> None:
    queue, running, capacity = situation
    choice = choose(queue, running, capacity)
    if not choice.give_way:
        return
    head = next(job for job in queue if job.job_id == choice.to)
    started = [as_running(job) for job in queue if job.job_id in choice.start]
    leaving = [job for job in running if job.job_id in choice.give_way]
    assert all(job.preemptible and not job.leaving and job.priority < head.priority for job in leaving)
    staying = [job for job in running if not job.leaving and job not in leaving]
    assert not overcommitted([*staying, *started, as_running(head)], capacity)
    for job in leaving:
        assert overcommitted([*staying, job, *started, as_running(head)], capacity)


@given(situations())
def test_a_job_that_gave_way_does_not_push_out_the_one_it_gave_way_to(
    situation: tuple[list[Queued], list[Running], Capacity],
) -> None:
    queue, running, capacity = situation
    choice = choose(queue, running, capacity)
    if not choice.give_way:
        return
    head = next(job for job in queue if job.job_id == choice.to)
    back = [Queued(job.job_id, job.owner, job.priority, job.demand) for job in running if job.job_id in choice.give_way]
    holds = [
        *(job for job in running if job.job_id not in choice.give_way),
        replace(as_running(head), preemptible=True),
    ]
    assert head.job_id not in choose(sorted(back, key=lambda job: -job.priority), holds, capacity).give_way


@given(situations(), st.lists(QUEUED, min_size=1, max_size=30))
def test_no_job_starves_while_smaller_ones_keep_coming(
    situation: tuple[list[Queued], list[Running], Capacity], arrivals: list[Queued]
) -> None:
    """Each round one running job ends, and one more comes that is not ahead of those that wait."""
    queue, running, capacity = situation
    eligible = [job for job in queue if job.ready and not obstacle(job.demand, job.owner, capacity)]
    queue = list(eligible)
    lowest = min((job.priority for job in queue), default=0)
    for round_ in range(1 + 2 * capacity.jobs * len(eligible)):
        choice = choose(queue, running, capacity)
        running = [*running, *(as_running(job) for job in queue if job.job_id in choice.start)]
        queue = [job for job in queue if job.job_id not in choice.start]
        running = running[1:]
        newcomer = arrivals[round_ % len(arrivals)]
        queue.append(replace(newcomer, job_id=f"n{round_}", priority=lowest, ready=True))
    waiting = {job.job_id for job in queue}
    assert not waiting & {job.job_id for job in eligible}


def test_a_large_job_waits_for_all_that_it_needs_and_takes_nothing_meanwhile() -> None:
    capacity = Capacity(jobs=4, threads=4)
    running = [Running("a", "", 0, Demand(1)), Running("b", "", 0, Demand(1))]
    queue = [Queued("large", "", 0, Demand(4)), Queued("small", "", 0, Demand(1))]
    choice = choose(queue, running, capacity)
    assert choice.start == ()
    assert choice.standings["large"].why == "waits for 4 of 4 threads (2 free)"
    assert choice.standings["small"].why == "waits behind jobs/large"
    assert [choice.standings[job.job_id].position for job in queue] == [1, 2]
    assert choose(queue, [], capacity).start == ("large",)


def test_all_that_is_lacking_is_told() -> None:
    capacity = Capacity(jobs=1, threads=2)
    running = [Running("a", "", 0, Demand(2, frozenset({"cuda:0"})))]
    choice = choose([Queued("b", "", 0, Demand(1, frozenset({"cuda:0", "cuda:1"})))], running, capacity)
    wanted = "waits for 1 of 2 threads (0 free) and a share of cuda:0 (1 of 1 taken) and a place (1 of 1 taken)"
    assert choice.standings["b"].why == wanted


def test_jobs_over_their_owners_quota_let_those_of_others_pass() -> None:
    capacity = Capacity(jobs=4, threads=8, owner_jobs=1, owner_threads=4)
    running = [Running("a1", "ann", 0, Demand(2))]
    queue = [
        Queued("a2", "ann", 1, Demand(1)),
        Queued("b1", "bob", 0, Demand(4)),
        Queued("a3", "ann", 0, Demand(1)),
    ]
    choice = choose(queue, running, capacity)
    assert choice.start == ("b1",)
    assert choice.standings["a2"].why == "waits for a job of ann to end: 1 run, of 1 that may"
    assert choice.standings["a3"].why == "waits behind another job of ann"
    more = choose([Queued("a2", "ann", 0, Demand(3))], running, replace(capacity, owner_jobs=9))
    wanted = "waits for a job of ann to end: it needs 3 threads, and 2 of ann's 4 threads are taken"
    assert more.standings["a2"].why == wanted


def test_trials_beyond_the_bound_of_their_study_let_all_others_pass() -> None:
    running = [Running("s-0", "ann", 0, Demand(1), study="s")]
    queue = [
        *(Queued(f"s-{number}", "ann", 5, Demand(1), study="s", study_jobs=2) for number in (1, 2, 3)),
        Queued("own", "ann", 0, Demand(1)),
        Queued("t-0", "ann", 0, Demand(1), study="t"),
    ]
    choice = choose(queue, running, Capacity(jobs=9, threads=9))
    assert choice.start == ("s-1", "own", "t-0")
    assert choice.standings["s-2"].why == "waits for a trial of studies/s to end: 2 run, of 2 that may"
    assert choice.standings["own"].position == 2


@pytest.mark.parametrize(
    ("demand", "words"),
    [
        (Demand(3), "needs 3 threads, and a job may have 2 here"),
        (Demand(0, address="x:1"), "the Ray cluster at x:1 is none of this server's"),
    ],
)
def test_what_the_server_is_too_small_for_waits_and_holds_nobody_back(demand: Demand, words: str) -> None:
    queue = [Queued("never", "", 5, demand), Queued("small", "", 0, Demand(1))]
    choice = choose(queue, [], Capacity(threads=2))
    assert choice.start == ("small",)
    assert choice.standings["never"].why == f"cannot run on this server as it is: {words}"
    assert choice.standings["small"].position == 1


def test_the_newest_of_the_lowest_priority_gives_way_and_no_more_than_needed() -> None:
    capacity = Capacity(jobs=4, threads=4)
    running = [
        Running("old", "", 0, Demand(1), preemptible=True),
        Running("new", "", 0, Demand(1), preemptible=True),
        Running("lowest", "", -1, Demand(1), preemptible=True),
        Running("firm", "", -2, Demand(1)),
    ]
    one = choose([Queued("high", "", 1, Demand(1))], running, capacity)
    assert (one.give_way, one.to) == (("lowest",), "high")
    assert one.standings["high"].why.endswith("; jobs/lowest is stopping")
    assert set(choose([Queued("high", "", 1, Demand(2))], running, capacity).give_way) == {"lowest", "new"}
    assert choose([Queued("high", "", 1, Demand(4))], running, capacity).give_way == ()
    assert choose([Queued("equal", "", 0, Demand(2))], running, capacity).give_way == ()
    told = [replace(job, leaving=job.job_id == "lowest") for job in running]
    again = choose([Queued("high", "", 1, Demand(1))], told, capacity)
    assert (again.give_way, again.standings["high"].why) == ((), one.standings["high"].why)


def test_a_job_on_a_cluster_takes_a_place_and_no_thread() -> None:
    capacity = Capacity(jobs=2, threads=1, ray_addresses=frozenset({"head:6379"}))
    queue = [
        Queued("here", "", 0, Demand(1)),
        Queued("there", "", 0, Demand(0, address="head:6379")),
        Queued("too-many", "", 0, Demand(0, address="head:6379")),
    ]
    choice = choose(queue, [], capacity)
    assert choice.start == ("here", "there")
    assert choice.standings["too-many"].why == "waits for a place (2 of 2 taken)"
