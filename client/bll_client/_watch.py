"""Following a job, its log or a study across lost connections: what to ask next, and when. Clients wait and call."""

from __future__ import annotations

import math
import random
import time
from datetime import timedelta

import grpc

from bll_client._calls import Call, job_name
from bll_client._channel import WATCH_TIMEOUT
from bll_client._convert import read
from bll_client._errors import DeadlineExceeded, call_error
from bll_client._studies import get_study, study_name
from bll_client._study_types import Study
from bll_client._types import JobEvent, LogChunk
from bll_proto.v1.studies_pb2 import GetStudyRequest, GetStudyResponse
from bll_proto.v1.training_pb2 import TailLogsRequest, TailLogsResponse, WatchJobRequest, WatchJobResponse

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 5.0


class Follower:
    """One who follows a resource, until it is over or the time for that is."""

    def __init__(self, name: str, reconnect: timedelta, timeout: timedelta | None) -> None:
        self._name = name
        self._reconnect_s = reconnect.total_seconds()
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout.total_seconds()
        self._heard = False
        self._lost_at: float | None = None
        self._delay_s = FIRST_DELAY_S

    def deadline_s(self) -> float:
        """Of the next call."""
        if self._end is None:
            return WATCH_TIMEOUT.total_seconds()
        return max(0.0, min(WATCH_TIMEOUT.total_seconds(), self._end - time.monotonic()))

    def _late(self) -> str:
        return f"{self._name} was not over within {self._timeout}"

    def _hear(self) -> None:
        self._heard, self._lost_at, self._delay_s = True, None, FIRST_DELAY_S

    def delay_s(self, error: grpc.RpcError) -> float:
        """How long to wait before the next call.

        Raises the client's error for `error` when another call would not help, or the time for it is over.
        """
        failure = call_error(error)
        now = time.monotonic()
        if failure.status is grpc.StatusCode.DEADLINE_EXCEEDED:
            if self._end is not None and now >= self._end:
                raise DeadlineExceeded(self._late(), status=failure.status) from error
            if self._heard:
                return 0.0
        if failure.status is not grpc.StatusCode.UNAVAILABLE:
            raise failure from error
        self._lost_at = now if self._lost_at is None else self._lost_at
        if now - self._lost_at >= self._reconnect_s:
            raise failure from error
        asked_s = failure.retry_delay.total_seconds() if failure.retry_delay else 0.0
        # Watchers that were cut off together should not come back together.
        delay_s = max(asked_s, self._delay_s * random.uniform(0.5, 1.0))  # noqa: S311
        self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)
        left_s = self._lost_at + self._reconnect_s - now
        return min(delay_s, left_s, self.deadline_s())


class Watch(Follower):
    """One watcher's place in a job's events."""

    def __init__(self, name: str, after_event: int, reconnect: timedelta, timeout: timedelta | None = None) -> None:
        super().__init__(job_name(name), reconnect, timeout)
        self._after_event = after_event

    def request(self) -> WatchJobRequest:
        """Asks for the events after the last one seen."""
        self._heard = False
        return WatchJobRequest(name=self._name, after_event=self._after_event)

    def accept(self, response: WatchJobResponse) -> JobEvent | None:
        """The event in `response`; None for a keep-alive."""
        self._hear()
        if not response.HasField("event"):
            return None
        self._after_event = response.event.number
        return read(JobEvent, response.event)


class Tail(Follower):
    """One reader's place in a job's log."""

    def __init__(self, name: str, offset: int, follow: bool, reconnect: timedelta, timeout: timedelta | None) -> None:
        super().__init__(job_name(name), reconnect, timeout)
        self._offset = offset
        self._follow = follow

    def log_request(self) -> TailLogsRequest:
        """Asks for the log after the last byte seen."""
        self._heard = False
        return TailLogsRequest(name=self._name, offset=self._offset, follow=self._follow)

    def accept_log(self, response: TailLogsResponse) -> LogChunk | None:
        """The piece in `response`; None for a keep-alive."""
        self._hear()
        self._offset = response.next_offset
        return read(LogChunk, response) if response.data else None


class Poll(Follower):
    """One who looks at a study again and again."""

    def __init__(self, name: str, interval: timedelta, reconnect: timedelta, timeout: timedelta | None) -> None:
        super().__init__(study_name(name), reconnect, timeout)
        self._interval_s = interval.total_seconds()
        self._seen: Study | None = None

    def call(self) -> Call[GetStudyRequest, GetStudyResponse, Study]:
        """The next look."""
        self._heard = False
        return get_study(self._name)

    def is_news(self, study: Study) -> bool:
        """Whether the study has changed since the last look."""
        self._hear()
        is_news, self._seen = study != self._seen, study
        return is_news

    def interval_s(self) -> float:
        """How long to wait before the next look. Raises DeadlineExceeded when the time for it is over."""
        left_s = math.inf if self._end is None else self._end - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(self._late(), status=grpc.StatusCode.DEADLINE_EXCEEDED)
        return min(self._interval_s, left_s)
