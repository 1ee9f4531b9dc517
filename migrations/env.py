"""Alembic runs this with the connection that `Database.upgrade` hands over."""

from __future__ import annotations

from alembic import context

from campaigns.models import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
