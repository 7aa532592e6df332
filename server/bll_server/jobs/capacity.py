"""What jobs take of a server while they run, and what it has for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bll.cores import usable_cores
from bll.errors import Violation
from bll.placement import crowding, num_workers
from bll.plan import Plan
from bll_server.errors import InvalidRequest


@dataclass(frozen=True)
class Demand:
    """What one job takes, all of it or nothing, beside one of the places of running jobs."""

    threads: int
    """CPU threads of this machine."""
    devices: frozenset[str] = frozenset()
    """Devices of this machine, such as `cuda:0`, of each of which it takes one share."""
    address: str = ""
    """Of the Ray cluster that it runs on instead; empty: it runs on this machine."""


@dataclass(frozen=True)
class Capacity:
    """What the running jobs of a server may take together."""

    jobs: int = 1
    threads: int = 1
    device_jobs: int = 1
    """Jobs that share one device."""
    owner_jobs: float = math.inf
    """Running jobs of one owner; without tokens there are no owners, and no such limit."""
    owner_threads: float = math.inf
    """The same of threads."""
    ray_addresses: frozenset[str] = frozenset()
    """Of the clusters that jobs may name."""

    def threads_of(self, owner: str) -> int:
        """The most that one job of `owner` may take."""
        return int(min(self.threads, self.owner_threads)) if owner else self.threads


def demand(plan: Plan, owner: str, capacity: Capacity) -> Demand:
    """What the job of `plan` takes. A cluster has threads and devices of its own."""
    executor = plan.config.executor
    if executor.address:
        return Demand(0, address=executor.address)
    threads = _workers(plan, owner, capacity) * executor.threads_per_block
    return Demand(threads, frozenset(executor.devices) - {"cpu"})


def obstacle(demand: Demand, owner: str, capacity: Capacity) -> str:
    """Why a job of that demand cannot run on this server, whoever else runs; "" where it can."""
    if demand.address and demand.address not in capacity.ray_addresses:
        return f"the Ray cluster at {demand.address} is none of this server's"
    if demand.threads > (most := capacity.threads_of(owner)):
        return f"needs {demand.threads} threads, and a job may have {most} here"
    return ""


def admitted(plan: Plan, owner: str, capacity: Capacity) -> Plan:
    """`plan`, with warnings that are true of this server. Raises InvalidRequest for one that can never run on it."""
    executor, wanted = plan.config.executor, demand(plan, owner, capacity)
    if obstacle(wanted, owner, capacity):
        raise InvalidRequest(_violation(plan, owner, capacity))
    if executor.address:
        return plan
    asked, given, cores = num_workers(plan), _workers(plan, owner, capacity), usable_cores()
    warnings = [warning for warning in plan.warnings if warning != crowding(plan, asked, cores)]
    if given < asked:
        most = capacity.threads_of(owner)
        warnings.append(f"executor: {given} workers share the {asked} blocks, since a job may have {most} threads here")
    if crowded := crowding(plan, given, cores):
        warnings.append(crowded)
    return replace(plan, warnings=tuple(warnings))


def fitted(plan: Plan, owner: str, capacity: Capacity) -> Plan:
    """`plan` with as many workers as `demand` has counted."""
    workers = _workers(plan, owner, capacity)
    if workers == num_workers(plan):
        return plan
    executor = replace(plan.config.executor, num_workers=workers)
    return replace(plan, config=replace(plan.config, executor=executor))


def _workers(plan: Plan, owner: str, capacity: Capacity) -> int:
    """As many as the plan asks for; where it leaves their number open, no more than there are threads for."""
    executor, asked = plan.config.executor, num_workers(plan)
    if executor.num_workers or executor.address:
        return asked
    return max(1, min(asked, capacity.threads_of(owner) // executor.threads_per_block))


def _violation(plan: Plan, owner: str, capacity: Capacity) -> Violation:
    executor, most = plan.config.executor, capacity.threads_of(owner)
    if executor.address:
        known = ", ".join(sorted(capacity.ray_addresses)) or "none"
        rule = f"must be one of the Ray clusters of this server ({known}), or empty, got {executor.address!r}"
        return Violation("job.spec.executor.address", rule)
    threads = executor.threads_per_block
    if threads > most:
        rule = f"must be at most the {most} threads that a job may have here, got {threads}"
        return Violation("job.spec.executor.threads_per_block", rule)
    rule = f"must be at most {most // threads}: a job may have {most} threads here, and each worker has {threads}"
    return Violation("job.spec.executor.num_workers", f"{rule}, got {executor.num_workers}")
