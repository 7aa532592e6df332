"""Logs on stderr, each line with the request and the job that it belongs to.

Modules log through `logging.getLogger(__name__)`. structlog, which lays the lines out, is imported with the first line
that is written, which is after the server has begun to serve.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from structlog.stdlib import ProcessorFormatter

_context: ContextVar[dict[str, str]] = ContextVar("log context", default={})  # noqa: B039 - never written to


@contextmanager
def bound(**values: str) -> Iterator[None]:
    """Every line logged inside, on this thread, carries `values`, such as `job_id`."""
    token = _context.set(_context.get() | values)
    try:
        yield
    finally:
        _context.reset(token)


def configure(form: Literal["console", "json"]) -> None:
    """Send the log of this process to stderr in that form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class _Formatter(logging.Formatter):
    def __init__(self, form: Literal["console", "json"]) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        return self._renderer.format(record)

    @cached_property
    def _renderer(self) -> ProcessorFormatter:
        import structlog
        from structlog import processors, stdlib

        common: list[structlog.typing.Processor] = [
            lambda logger, name, entry: {**_context.get(), **entry},
            stdlib.add_log_level,
            stdlib.add_logger_name,
            processors.TimeStamper(fmt="iso", utc=True),
        ]
        last: list[structlog.typing.Processor] = (
            [processors.dict_tracebacks, processors.JSONRenderer()]
            if self._form == "json"
            else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        )
        return stdlib.ProcessorFormatter(
            foreign_pre_chain=common, processors=[stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
