"""How alembic runs the migrations: on the connection, and in the transaction, that ``serving.review.database`` gives."""

from __future__ import annotations

from alembic import context

from serving.review.database import VERSION_TABLE
from serving.review.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE, render_as_batch=True
)
context.run_migrations()
