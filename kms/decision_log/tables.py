"""The tables of the log; `migrations` makes them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, MetaData, String, Table, Text

METADATA = MetaData()

DECISION = Table(
    "decision",
    METADATA,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", String(40), nullable=False, index=True),
    Column("subject", String(32), nullable=False),
    Column("decision", String(32), nullable=False),
    Column("app_id", String(40), nullable=True, index=True),
    Column("content", Text, nullable=False),
    Column("previous", LargeBinary(32), nullable=False),
    Column("signature", LargeBinary(65), nullable=False),
    Column("acpi_tables_verified", Boolean, nullable=True),
)
"""What is signed is `content`; the other columns find entries. Whether ACPI tables were verified is null in entries
about no machine, and in those from before it was said."""

HEAD = Table(
    "decision_head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
)
"""One row: the newest entry. Whoever appends locks it."""

SIGNER = Table(
    "decision_signer",
    METADATA,
    Column("public_key", LargeBinary(33), primary_key=True),
    Column("voucher", LargeBinary(65), nullable=False),
)
