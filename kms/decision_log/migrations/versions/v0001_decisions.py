"""Entries, their head, and who signs them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the three tables, and the one row of the head."""
    op.create_table(
        "decision",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("subject", sa.String(32), nullable=False),
        sa.Column("decision", sa.String(32), nullable=False),
        sa.Column("app_id", sa.String(40), nullable=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("previous", sa.LargeBinary(32), nullable=False),
        sa.Column("signature", sa.LargeBinary(65), nullable=False),
    )
    op.create_index("ix_decision_at", "decision", ["at"])
    op.create_index("ix_decision_app_id", "decision", ["app_id"])
    head = op.create_table(
        "decision_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "digest": bytes(32)}])
    op.create_table(
        "decision_signer",
        sa.Column("public_key", sa.LargeBinary(33), primary_key=True),
        sa.Column("voucher", sa.LargeBinary(65), nullable=False),
    )


def downgrade() -> None:
    """A log is not taken back."""
    raise NotImplementedError("a log of decisions is not taken back")
