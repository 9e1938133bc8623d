"""Run by Alembic: migrate over the connection that the caller already holds a transaction on."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
