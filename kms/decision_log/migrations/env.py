"""What Alembic runs: it is given a connection, and nothing else."""

from __future__ import annotations

from alembic import context

from kms.decision_log.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
