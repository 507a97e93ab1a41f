"""Run by Alembic for each command; :mod:`flows.state.migrate` hands in the connection and owns its transaction."""

from __future__ import annotations

from alembic import context

from flows.state.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, compare_type=True, transactional_ddl=connection.dialect.name != "mysql")
with context.begin_transaction():
    context.run_migrations()
