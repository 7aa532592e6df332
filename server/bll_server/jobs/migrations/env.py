"""What alembic runs: migrations, in the transaction of the connection that they are given."""

from alembic import context

from bll_server.jobs.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
