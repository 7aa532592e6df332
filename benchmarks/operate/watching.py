"""Some watchers of one job, in a process of their own: `python -m benchmarks.operate.watching ADDRESS JOB COUNT`.

Prints `watching` once each has got an event, and, when the job is over, what each saw as JSON: its states, how many
reports it got and was spared, and how long after being written down events came.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc

from bll_proto.v1 import training_pb2, training_pb2_grpc


async def _watch(stub: Any, job: str, begun: asyncio.Semaphore) -> dict[str, Any]:
    states: list[str] = []
    latencies_s: list[float] = []
    reports = spared = last = 0
    async for response in stub.WatchJob(training_pb2.WatchJobRequest(name=job)):
        now = time.time()
        event = response.event
        if not event.number:  # a sign of life
            continue
        if last == 0:
            begun.release()
        latencies_s.append(now - event.time.ToNanoseconds() * 1e-9)
        spared += event.number - last - 1
        last = event.number
        if event.HasField("state_change"):
            name = training_pb2.JobState.Name(event.state_change.state)
            states.append(name.removeprefix("JOB_STATE_").lower())
        else:
            reports += 1
    # What had been told before the watcher came says nothing of the way.
    return {"states": states, "reports": reports, "spared": spared, "latencies_s": latencies_s[2:]}


async def _main(address: str, job: str, count: int) -> None:
    begun = asyncio.Semaphore(0)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        watchers = [asyncio.create_task(_watch(stub, job, begun)) for _ in range(count)]
        for _ in watchers:
            await begun.acquire()
        print("watching", flush=True)
        print(json.dumps(await asyncio.gather(*watchers)), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
