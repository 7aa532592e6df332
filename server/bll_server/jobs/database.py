"""The job database: its connections, its transactions, and what its failures are called. SQLite in a file is here."""

from __future__ import annotations

import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa

from bll_server.errors import ServerError, StorageFull


class CannotOpen(Exception):
    """The job database is another server's, of a newer one, or lacks its driver."""


class Database(ABC):
    """Safe to call from many threads of one process."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writing = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection each of whose statements sees all that was committed before it. Raises DatabaseUnavailable."""
        with self._named(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its start, so that what it reads stays true.

        Raises StorageFull; DatabaseUnavailable, after which nobody knows whether it was committed; ShuttingDown.
        """
        with self._writing, self._named(), self._begin() as connection:
            try:
                yield connection
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                with suppress(sa.exc.SQLAlchemyError):  # it has been rolled back already, or the connection is lost
                    connection.exec_driver_sql("ROLLBACK")
                raise

    def serve(self, start: int) -> None:  # noqa: B027 - a file cannot be taken away from the server that holds it
        """This server writes from now on, until one starts whose number in `schema.starts` is another."""

    def close(self) -> None:
        """Give the files and connections back."""
        self._engine.dispose()

    @abstractmethod
    def _begin(self) -> AbstractContextManager[sa.Connection]:
        """A connection in a transaction that has just begun, with the database's write lock."""

    @abstractmethod
    def _failure(self, error: sa.exc.DBAPIError) -> ServerError | None:
        """What callers are told of `error`; None where it is a fault of ours."""

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            failure = self._failure(error)
            if failure is None:
                raise
            raise failure from error


class SqliteFile(Database):
    """A file of one server's."""

    def __init__(self, path: Path) -> None:
        engine = sa.create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT", pool_size=16)
        sa.event.listen(engine, "connect", _configure)
        super().__init__(engine)

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def _failure(self, error: sa.exc.DBAPIError) -> ServerError | None:
        if isinstance(error.orig, sqlite3.Error) and error.orig.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return StorageFull(f"the job database cannot grow: {error.orig}")
        return None


def _configure(connection: sqlite3.Connection, record: object) -> None:
    # FULL: a commit that was answered survives power loss. 5 s is for another program that reads the file.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
