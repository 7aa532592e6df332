"""Which queued jobs start, which running ones give way, and where every other one stands: one pure function.

Jobs start in the order of the queue. The first one that does not find all that it needs holds back all behind it, so
that none can starve, however large it is; what is free meanwhile stays free. Passed over are those alone that cannot
start whatever becomes free: because of their owner's quota, with all that follow of the same owner, because their
study has as many trials running as may be, or since they need more than the server has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bll_server.jobs.capacity import Capacity, Demand, obstacle


@dataclass(frozen=True)
class Queued:
    """A job that waits."""

    job_id: str
    owner: str
    priority: int
    demand: Demand
    ready: bool = True
    """False while its last run is being cleared away."""
    study: str = ""
    """Of which it is a trial."""
    study_jobs: float = math.inf
    """Trials of the study that may run at the same time."""


@dataclass(frozen=True)
class Running:
    """A job that holds what it needs."""

    job_id: str
    owner: str
    priority: int
    demand: Demand
    preemptible: bool = False
    leaving: bool = False
    """It has been told to stop, for whatever reason."""
    study: str = ""


@dataclass(frozen=True)
class Standing:
    """Where a queued job stands."""

    position: int
    """One more than the jobs that are to start before it."""
    why: str
    """What it waits for, in words; empty: for nothing."""


@dataclass(frozen=True)
class Choice:
    """What is to be done."""

    start: tuple[str, ...]
    """These queued jobs, in this order."""
    give_way: tuple[str, ...]
    """These running jobs are to pause, all of them, so that `to` can start."""
    to: str
    standings: Mapping[str, Standing]
    """Of every queued job."""


def choose(queue: Sequence[Queued], running: Sequence[Running], capacity: Capacity) -> Choice:
    """What follows from the jobs of the `queue`, in its order, and those `running`, in the order of their start."""
    holders = list(running)
    taken = _Taken(holders)
    start: list[str] = []
    give_way: tuple[str, ...] = ()
    standings: dict[str, Standing] = {}
    blocked: Queued | None = None
    held_owners: set[str] = set()
    passed_over = 0
    for ahead, job in enumerate(queue):
        position = 1 + ahead - passed_over
        if why := _held(job, taken, held_owners, capacity):
            passed_over += 1
        elif blocked:
            why = f"waits behind jobs/{blocked.job_id}"
        elif why := taken.lacking(job.demand, capacity):
            blocked = job
            give_way, makes_room = _room_for(job, holders, capacity)
            why += makes_room
        else:
            started = Running(job.job_id, job.owner, job.priority, job.demand, study=job.study)
            holders.append(started)
            taken.add(started)
            start.append(job.job_id)
        standings[job.job_id] = Standing(position, why)
    return Choice(tuple(start), give_way, blocked.job_id if blocked else "", standings)


class _Taken:
    """What some running jobs take together."""

    def __init__(self, holders: Iterable[Running]) -> None:
        self.jobs = self.threads = 0
        self.devices: Counter[str] = Counter()
        self.owner_jobs: Counter[str] = Counter()
        self.owner_threads: Counter[str] = Counter()
        self.study_jobs: Counter[str] = Counter()
        for holder in holders:
            self.add(holder)

    def add(self, holder: Running, sign: int = 1) -> None:
        """Count one more, or with `sign` -1 one less."""
        self.jobs += sign
        self.threads += sign * holder.demand.threads
        for device in holder.demand.devices:
            self.devices[device] += sign
        self.owner_jobs[holder.owner] += sign
        self.owner_threads[holder.owner] += sign * holder.demand.threads
        self.study_jobs[holder.study] += sign

    def lacking(self, demand: Demand, capacity: Capacity) -> str:
        """What a job of that demand has to wait for, in words; "" where it finds all."""
        lacks = []
        free = max(0, capacity.threads - self.threads)
        if demand.threads > free:
            lacks.append(f"{demand.threads} of {capacity.threads} threads ({free} free)")
        lacks += [
            f"a share of {device} ({self.devices[device]} of {capacity.device_jobs} taken)"
            for device in sorted(demand.devices)
            if self.devices[device] >= capacity.device_jobs
        ]
        if self.jobs >= capacity.jobs:
            lacks.append(f"a place ({self.jobs} of {capacity.jobs} taken)")
        return "waits for " + " and ".join(lacks) if lacks else ""


def _held(job: Queued, taken: _Taken, held_owners: set[str], capacity: Capacity) -> str:
    """Why the job is passed over, in words; "" where it is not. Whoever follows of its owner then is as well."""
    if not job.ready:
        return "waits for its last run to end"
    if why := obstacle(job.demand, job.owner, capacity):
        return f"cannot run on this server as it is: {why}"
    if job.study and (trials := taken.study_jobs[job.study]) >= job.study_jobs:
        return f"waits for a trial of studies/{job.study} to end: {trials} run, of {job.study_jobs:g} that may"
    if not job.owner:
        return ""
    if job.owner in held_owners:
        return f"waits behind another job of {job.owner}"
    jobs, threads = taken.owner_jobs[job.owner], taken.owner_threads[job.owner]
    if jobs >= capacity.owner_jobs:
        held_owners.add(job.owner)
        return f"waits for a job of {job.owner} to end: {jobs} run, of {capacity.owner_jobs:g} that may"
    if threads + job.demand.threads > capacity.owner_threads:
        held_owners.add(job.owner)
        most = f"{threads} of {job.owner}'s {capacity.owner_threads:g} threads are taken"
        return f"waits for a job of {job.owner} to end: it needs {job.demand.threads} threads, and {most}"
    return ""


def _room_for(job: Queued, holders: Sequence[Running], capacity: Capacity) -> tuple[tuple[str, ...], str]:
    """The running jobs to pause so that the blocked `job` can start, and who makes room, in words.

    As few as are needed, of the lowest priority and of those the newest, whose loss is smallest. None where room is
    being made already, or where all that may be paused would not be enough.
    """
    staying = [holder for holder in holders if not holder.leaving]
    taken = _Taken(staying)
    if not taken.lacking(job.demand, capacity):
        return (), _stopping(holder for holder in holders if holder.leaving)
    chosen: list[Running] = []
    ranked = sorted(enumerate(staying), key=lambda item: (item[1].priority, -item[0]))
    for _, holder in ranked:
        if holder.preemptible and holder.priority < job.priority:
            taken.add(holder, -1)
            chosen.append(holder)
            if not taken.lacking(job.demand, capacity):
                break
    else:
        return (), ""
    for holder in chosen[::-1]:  # some gave what was not lacking
        taken.add(holder)
        if taken.lacking(job.demand, capacity):
            taken.add(holder, -1)
        else:
            chosen.remove(holder)
    return tuple(holder.job_id for holder in chosen), _stopping(chosen)


def _stopping(leaving: Iterable[Running]) -> str:
    names = [f"jobs/{holder.job_id}" for holder in leaving]
    return f"; {', '.join(names)} {'is' if len(names) == 1 else 'are'} stopping"
