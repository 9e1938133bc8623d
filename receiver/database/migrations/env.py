"""Run by Alembic: migrate over the connection that the caller already holds a transaction on."""

from alembic import context

from receiver.database.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
