"""The job database in PostgreSQL.

All writing goes over one connection, which holds an advisory lock of the database as long as it lives: so one server
writes. One that has lost the connection takes the lock again, and goes on if no other server was there meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa

from bll_server.errors import DatabaseUnavailable, ServerError, ShuttingDown, StorageFull
from bll_server.jobs.database import CannotOpen, Database
from bll_server.jobs.schema import starts

log = logging.getLogger(__name__)

_LOCK = int.from_bytes(b"bll jobs")
"""What servers of one database lock."""
_LOOK_EVERY_S = 2.0
"""Time after which a server that has nothing to write finds out that it has lost its lock."""
_LOCK_TIMEOUT_MS = 3000
"""A dead server's connection may be there a moment longer than the server."""
_NOT_AVAILABLE, _DISK_FULL = "55P03", "53100"
_CONNECT = {
    "connect_timeout": 5,
    # Of a machine that is gone nothing comes back: without these a call would wait for it for ever.
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "target_session_attrs": "read-write",
}
_SESSION = {
    "lock_timeout": _LOCK_TIMEOUT_MS,
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 3,
}


class Postgres(Database):
    """One database of a PostgreSQL server, which may die and come back."""

    def __init__(self, url: sa.URL, overtaken: Callable[[], None]) -> None:
        """`overtaken` is called once another server has taken the database over. Raises CannotOpen."""
        asked = url.query.get("options", "")
        options = " ".join((str(asked), *(f"-c {name}={value}" for name, value in _SESSION.items())))
        try:
            engine = sa.create_engine(
                url.set(drivername="postgresql+psycopg"),
                isolation_level="AUTOCOMMIT",
                pool_size=16,
                pool_pre_ping=True,
                connect_args={**_CONNECT, "options": options},
            )
        except ModuleNotFoundError as error:
            raise CannotOpen(f"PostgreSQL needs the extra 'postgres' of bll: {error}") from error
        super().__init__(engine)
        self._overtaken = overtaken
        self._start: int | None = None
        self._holder: sa.Connection | None = None
        """Holds the lock. Guarded by `_writing`, as `_start` is."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="job database", daemon=True)

    def serve(self, start: int) -> None:
        self._start = start
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._writing:
            self._let_go()
        super().close()

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        connection = self._begun()
        try:
            yield connection
        except sa.exc.DBAPIError as error:
            if error.connection_invalidated:
                self._let_go()
            raise

    def _begun(self) -> sa.Connection:
        if self._holder is not None:
            try:
                self._holder.exec_driver_sql("BEGIN")
            except sa.exc.DBAPIError as error:
                self._let_go()
                if not error.connection_invalidated:
                    raise
            else:
                return self._holder
        self._holder = self._take()
        self._holder.exec_driver_sql("BEGIN")
        return self._holder

    def _take(self) -> sa.Connection:
        """A connection that holds the lock. Raises CannotOpen, DatabaseUnavailable, ShuttingDown."""
        connection = self._engine.connect()
        connection.detach()  # closed, and not given back with the lock on it
        try:
            taken = _lock(connection)
            if self._start is None:
                if not taken:
                    raise CannotOpen("the job database is in use by another server")
            elif connection.execute(sa.select(sa.func.max(starts.c.number))).scalar_one() != self._start:
                raise ShuttingDown("another server has taken over the job database; this one ends")
            elif not taken:  # by the connection that was lost, which the database has not given up yet
                raise DatabaseUnavailable("the job database still waits for a lost connection; try again")
        except BaseException:
            connection.close()
            raise
        return connection

    def _let_go(self) -> None:
        if self._holder is not None:
            with suppress(sa.exc.SQLAlchemyError):  # what is said over a connection that is lost
                self._holder.close()
            self._holder = None

    def _keep(self) -> None:
        """Hold the lock while there is nothing to write."""
        while not self._closed.wait(_LOOK_EVERY_S):
            try:
                with self.write():
                    pass
            except DatabaseUnavailable:
                continue  # logged where it was raised
            except ShuttingDown as error:
                log.error("%s", error)
                self._overtaken()
                return

    def _failure(self, error: sa.exc.DBAPIError) -> ServerError | None:
        if _state(error) == _DISK_FULL:
            return StorageFull(f"the job database cannot grow: {error.orig}")
        if error.connection_invalidated or isinstance(error, sa.exc.OperationalError):
            log.warning("the job database cannot be used: %s", error.orig)
            return DatabaseUnavailable("the job database cannot be reached now; try again")
        return None


def _lock(connection: sa.Connection) -> bool:
    """Whether the lock could be had, in the time that `_LOCK_TIMEOUT_MS` gives."""
    try:
        connection.execute(sa.select(sa.func.pg_advisory_lock(sa.literal(_LOCK, sa.BigInteger))))
    except sa.exc.OperationalError as error:
        if _state(error) == _NOT_AVAILABLE:
            return False
        raise
    return True


def _state(error: sa.exc.DBAPIError) -> str | None:
    """PostgreSQL's code of the error."""
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state
