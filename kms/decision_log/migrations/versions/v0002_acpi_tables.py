"""Whether the ACPI tables of the machine were verified; entries made before did not say."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column. Entries that are there stay as they were signed."""
    op.add_column("decision", sa.Column("acpi_tables_verified", sa.Boolean, nullable=True))


def downgrade() -> None:
    """A log is not taken back."""
    raise NotImplementedError("a log of decisions is not taken back")
