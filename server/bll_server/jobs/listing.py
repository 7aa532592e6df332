"""Which jobs a list holds, in which order, and where its pages break: filter, order_by and page_token, read.

A filter is terms with blanks between them, all of which hold: `state=RUNNING labels.team=x`. A term may give several
values, one of which holds: `state=QUEUED,RUNNING`. An order is a field, and `desc` where it is to fall.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from bll.errors import Violation
from bll_server.errors import InvalidRequest
from bll_server.jobs.metadata import LABEL_KEY
from bll_server.jobs.schema import jobs, labels
from bll_server.jobs.states import State

_ORDERS: dict[str, tuple[sa.Column[Any], ...]] = {
    "create_time": (jobs.c.sequence,),
    "priority": (jobs.c.priority, jobs.c.sequence),
    "model_id": (jobs.c.model_id, jobs.c.sequence),
}
"""The columns of each order. The last is another for each job, so that a page can go on after any."""

_LONGEST_FILTER = 1000
_LONGEST_TOKEN = 500


class Listing:
    """One list of jobs; without arguments all of them, newest first."""

    def __init__(self, filter: str = "", order_by: str = "") -> None:
        """Raises InvalidRequest."""
        self._conditions = _conditions(filter)
        field, _, direction = (order_by.strip() or "create_time desc").partition(" ")
        if field not in _ORDERS or direction.strip() not in ("", "desc"):
            rule = f"must be one of {', '.join(_ORDERS)}, with or without ' desc', got {order_by!r}"
            raise InvalidRequest(Violation("order_by", rule))
        self._columns, self._falls = _ORDERS[field], bool(direction)
        # A token of another list would skip jobs, or tell them twice.
        self._digest = hashlib.sha256(json.dumps([filter, order_by]).encode()).hexdigest()[:16]

    def page(
        self, columns: Sequence[sa.Column[Any]], size: int, token: str, owner: str | None = None
    ) -> sa.Select[Any]:
        """`columns` of `size` jobs (of `owner`) after `token`, or from the beginning. Raises InvalidRequest."""
        # Which jobs they are is found in an index alone: the row of a job is long.
        found = sa.select(jobs.c.sequence).where(*self._conditions).limit(size)
        if owner is not None:
            found = found.where(jobs.c.owner == owner)
        if token:
            here, key = sa.tuple_(*self._columns), self._key(token)
            found = found.where(here < key if self._falls else here > key)
        order = [column.desc() if self._falls else column for column in self._columns]
        return sa.select(*columns).where(jobs.c.sequence.in_(found.order_by(*order))).order_by(*order)

    def token(self, row: sa.Row[Any]) -> str:
        """What the page after `row` is asked for with."""
        return _encoded([self._digest, *(row._mapping[column] for column in self._columns)])

    def _key(self, token: str) -> tuple[Any, ...]:
        try:
            padded = token + "=" * (-len(token) % 4)
            values = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
            # Whatever does not come out as it went in was not made here.
            if len(token) <= _LONGEST_TOKEN and self._fits(values) and _encoded(values) == token:
                return tuple(values[1:])
        except (ValueError, RecursionError):
            pass
        rule = "must be the next_page_token of the page before, with the same filter and order_by"
        raise InvalidRequest(Violation("page_token", f"{rule}, got {token!r}"))

    def _fits(self, values: Any) -> bool:
        if not isinstance(values, list) or len(values) != 1 + len(self._columns) or values[0] != self._digest:
            return False
        kinds = (column.type.python_type for column in self._columns)
        return all(
            type(value) is kind and (abs(value) < 2**63 if kind is int else "\0" not in value)
            for value, kind in zip(values[1:], kinds, strict=True)
        )


def _conditions(text: str) -> list[sa.ColumnElement[bool]]:
    if len(text) > _LONGEST_FILTER:
        raise _unreadable(f"must have at most {_LONGEST_FILTER} characters, got {len(text)}")
    if "\0" in text:  # which PostgreSQL cannot compare with
        raise _unreadable(f"must not have the character 0, got {text!r}")
    return [_condition(term) for term in text.split()]


def _condition(term: str) -> sa.ColumnElement[bool]:
    field, equals, value = term.partition("=")
    values = value.split(",")
    if not equals:
        raise _unreadable(f"must be terms such as state=RUNNING with blanks between them, got {term!r}")
    if field == "state":
        return jobs.c.state.in_([_state(name) for name in values])
    if field == "model_id":
        return jobs.c.model_id.in_(values)
    if field == "study":
        return jobs.c.study.in_([value.removeprefix("studies/") for value in values])
    key = field.removeprefix("labels.")
    if key != field and LABEL_KEY.fullmatch(key):
        found = sa.select(labels.c.sequence).where(labels.c.key == key, labels.c.value.in_(values))
        return (jobs.c.sequence + 0).in_(found)  # not its bare self, by which SQLite would read the row of each
    raise _unreadable(f"must have the fields state, model_id, study and labels.KEY, got {field!r}")


def _state(name: str) -> str:
    try:
        return State(name.lower()).value
    except ValueError:
        states = ", ".join(State).upper()
        raise _unreadable(f"state must be one of {states}, got {name!r}") from None


def _unreadable(rule: str) -> InvalidRequest:
    return InvalidRequest(Violation("filter", rule))


def _encoded(values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")
