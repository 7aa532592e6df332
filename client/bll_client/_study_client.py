"""The methods of both clients about studies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from typing import Any, Unpack

import grpc

from bll_client import _studies
from bll_client._channel import DEFAULT_STUDY_INTERVAL, DEFAULT_STUDY_TIMEOUT
from bll_client._connection import AsyncConnection, Connection
from bll_client._studies import Parameters
from bll_client._study_types import Study, StudyMetric
from bll_client._types import JobMetadata
from bll_client._watch import Poll
from bll_proto.v1.training_pb2 import JobSpec


class StudyClient(Connection):
    """Of the blocking client."""

    def create_study(
        self,
        spec: JobSpec | Mapping[str, Any],
        parameters: Parameters,
        *,
        study_id: str | None = None,
        num_trials: int | None = None,
        seed: int | None = None,
        metric: StudyMetric | str | None = None,
        max_parallel_trials: int | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: timedelta = DEFAULT_STUDY_TIMEOUT,
        **metadata: Unpack[JobMetadata],
    ) -> Study:
        """The new study: a queued job for each trial, all of them or none.

        `spec` is that of `create_job`, without a model id: each trial's model has the id of its job,
        `{study id}-{number}`. `parameters` gives the fields that trials differ in, by their path:
        `{"blocks.num_blocks": [1, 2, 4], "optimizer.learning_rate": ParameterRange(1e-4, 1e-2, ParameterScale.LOG)}`.
        Without `num_trials` there is a trial for every combination of the values, with it so many are drawn at random:
        the same `seed` gives the same ones. `metric` is what they are compared by, on validation rows.
        `validate_only` stores nothing, `request_id` is as for `create_job`, and `timeout` the deadline of this call, in
        which the server plans every trial. What is said of each job is in `JobMetadata`.
        Raises InvalidSpec, InvalidArgument, AlreadyExists, ResourceExhausted.
        """
        options = {"num_trials": num_trials, "seed": seed, "metric": metric, "max_parallel_trials": max_parallel_trials}
        study = _studies.parse_study(spec, parameters, metadata, options)
        return self._send(_studies.create_study(study, study_id, request_id, validate_only), timeout)

    def get_study(self, name: str) -> Study:
        """The study with the comparison of its trials. `name` is `studies/{id}` or the bare id. Raises NotFound."""
        return self._send(_studies.get_study(name))

    def list_studies(self) -> Iterator[Study]:
        """Studies, newest first, without what they were made from and their trials; pages are fetched as read."""
        return self._pages(_studies.list_studies)

    def cancel_study(self, name: str) -> Study:
        """The study, each of its trials that was not over asked to stop for good. Raises NotFound."""
        return self._send(_studies.cancel_study(name))

    def delete_study(self, name: str) -> None:
        """Forget a study with its jobs, all of them or none; models stay.

        Raises NotFound, and FailedPrecondition while a trial is queued or runs.
        """
        self._send(_studies.delete_study(name))

    def watch_study(
        self, name: str, *, interval: timedelta = DEFAULT_STUDY_INTERVAL, timeout: timedelta | None = None
    ) -> Iterator[Study]:
        """The study as it is, and each time that it has changed, until all trials are over.

        It is looked at every `interval`. A server that has gone is tried again for as long as the client's
        `reconnect`. Raises NotFound, Unavailable, and DeadlineExceeded after `timeout`.
        """
        poll = Poll(name, interval, self._reconnect, timeout)
        while True:
            call = poll.call()
            try:
                response = call.method(self._stubs)(call.request, timeout=min(self._timeout_s, poll.deadline_s()))
            except grpc.RpcError as error:
                delay_s = poll.delay_s(error)
            else:
                study = call.read(response)
                if poll.is_news(study):
                    yield study
                if study.state.is_over:
                    return
                delay_s = poll.interval_s()
            time.sleep(delay_s)

    def wait_for_study(self, name: str, *, timeout: timedelta | None = None) -> Study:
        """The study once all its trials are over. Raises as `watch_study` does."""
        *_, study = self.watch_study(name, timeout=timeout)
        return study


class AsyncStudyClient(AsyncConnection):
    """Of the client for asyncio."""

    async def create_study(
        self,
        spec: JobSpec | Mapping[str, Any],
        parameters: Parameters,
        *,
        study_id: str | None = None,
        num_trials: int | None = None,
        seed: int | None = None,
        metric: StudyMetric | str | None = None,
        max_parallel_trials: int | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: timedelta = DEFAULT_STUDY_TIMEOUT,
        **metadata: Unpack[JobMetadata],
    ) -> Study:
        """As `Client.create_study`."""
        options = {"num_trials": num_trials, "seed": seed, "metric": metric, "max_parallel_trials": max_parallel_trials}
        study = _studies.parse_study(spec, parameters, metadata, options)
        return await self._send(_studies.create_study(study, study_id, request_id, validate_only), timeout)

    async def get_study(self, name: str) -> Study:
        """As `Client.get_study`."""
        return await self._send(_studies.get_study(name))

    def list_studies(self) -> AsyncIterator[Study]:
        """As `Client.list_studies`."""
        return self._pages(_studies.list_studies)

    async def cancel_study(self, name: str) -> Study:
        """As `Client.cancel_study`."""
        return await self._send(_studies.cancel_study(name))

    async def delete_study(self, name: str) -> None:
        """As `Client.delete_study`."""
        await self._send(_studies.delete_study(name))

    async def watch_study(
        self, name: str, *, interval: timedelta = DEFAULT_STUDY_INTERVAL, timeout: timedelta | None = None
    ) -> AsyncIterator[Study]:
        """As `Client.watch_study`."""
        poll = Poll(name, interval, self._reconnect, timeout)
        while True:
            call = poll.call()
            try:
                answer: Any = call.method(self._stubs)(call.request, timeout=min(self._timeout_s, poll.deadline_s()))
                response = await answer
            except grpc.RpcError as error:
                delay_s = poll.delay_s(error)
            else:
                study = call.read(response)
                if poll.is_news(study):
                    yield study
                if study.state.is_over:
                    return
                delay_s = poll.interval_s()
            await asyncio.sleep(delay_s)

    async def wait_for_study(self, name: str, *, timeout: timedelta | None = None) -> Study:
        """As `Client.wait_for_study`."""
        return [study async for study in self.watch_study(name, timeout=timeout)][-1]
