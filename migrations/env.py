"""Alembic's environment: runs on the connection that `callrouter.store.schema.migrate` hands over."""

from alembic import context

from callrouter.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
