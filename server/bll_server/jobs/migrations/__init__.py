"""How the tables of older servers become those of this one: one file in `versions` for each schema, run by alembic.

A new schema is a file there, named after its number: `revision` is that number, `down_revision` the one before, and
`upgrade` changes the tables through `alembic.op`, on SQLite and PostgreSQL alike, and fills what is new from what was
there. `schema.py` says what comes of all of them; a test compares. What has been released is never changed again.
"""

from __future__ import annotations

import sqlalchemy as sa

from bll_server.jobs.database import CannotOpen


class NewerSchema(CannotOpen):
    """A newer server has changed the tables: this one would misread them."""


def upgrade(connection: sa.Connection) -> None:
    """Make the tables, or bring those of an older server up to date, in the transaction of `connection`.

    Raises NewerSchema.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "bll_server.jobs:migrations")
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    known = [revision.revision for revision in script.walk_revisions()]  # newest first
    told = MigrationContext.configure(connection).get_current_revision()
    found = told or _told_otherwise(connection)
    if found and found not in known:
        raise NewerSchema(f"the job database was made by a newer server (schema {found}, known is {known[0]})")
    if found and not told:
        command.stamp(config, found)
    if found != known[0]:
        command.upgrade(config, "head")
    if connection.dialect.name == "sqlite":  # servers that know nothing of alembic look there
        connection.exec_driver_sql(f"PRAGMA user_version = {int(known[0])}")


def _told_otherwise(connection: sa.Connection) -> str | None:
    """The schema of a database that knows nothing of alembic; None if there is nothing yet."""
    if connection.dialect.name != "sqlite":
        return None
    version: int = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    return str(version) if version else None
