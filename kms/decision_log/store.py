"""The log in its database: appended to, read, shortened at its old end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Select,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from dstack.errors import ConfigError, DecisionLogBrokenError, DecisionLogUnavailableError
from dstack.values import Digest32
from kms.decision_log import postgresql
from kms.decision_log.entry import Entry, canonical, entry_digest
from kms.decision_log.postgresql import CONNECT_SECONDS
from kms.decision_log.signing import DecisionSigner
from kms.decision_log.tables import DECISION, HEAD, SIGNER

PRUNED = "pruned"
# Any number; the same for every KMS, so that two that start at once do not both make the tables.
_MIGRATION_LOCK = 0x6B6D_7364
_ROWS_AT_ONCE = 500
_FOUND_BY = frozenset({"at", "subject", "decision", "app_id", "acpi_tables_verified"})

# Made once: what a statement is costs more than what it does.
_READ_ENTRIES: Select[Any] = select(DECISION.c.seq, DECISION.c.content, DECISION.c.previous, DECISION.c.signature)
_LOCK_HEAD = select(HEAD.c.seq, HEAD.c.digest).with_for_update()
_ADD_ENTRY = insert(DECISION)
_MOVE_HEAD = update(HEAD)

Members = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry: its number (0 where there is none) and digest."""

    seq: int
    digest: Digest32


class DecisionStore:
    """One log in one database; may be used by several threads, and with PostgreSQL by several programs."""

    def __init__(self, engine: Engine) -> None:
        """Take a connected engine with its tables; `open_store` makes one."""
        self._engine = engine
        self._vouched: set[bytes] = set()

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()

    def append(self, contents: Sequence[Members], signer: DecisionSigner) -> list[Entry]:
        """Add entries, all of them or none.

        Raises:
            DecisionLogUnavailableError: They could not be written.
        """
        with _translated():
            with self._engine.begin() as connection:
                entries = _append(connection, contents, signer)
                if signer.public_key not in self._vouched:
                    _vouch(connection, signer)
            self._vouched.add(signer.public_key)
            return entries

    def prune(self, before: datetime, signer: DecisionSigner, at: datetime) -> int:
        """Remove what is older than *before*; a signed entry says so. Returns how many entries went.

        Raises:
            DecisionLogUnavailableError: It could not be done.
        """
        with _translated(), self._engine.begin() as connection:
            old = select(func.max(DECISION.c.seq)).where(DECISION.c.at < before.isoformat(timespec="milliseconds"))
            until = connection.execute(old).scalar()
            if until is None:
                return 0
            last = _entry(connection.execute(_READ_ENTRIES.where(DECISION.c.seq == until)).one())
            said = {"until": until, "digest": last.digest.hex(), "at": at.isoformat(timespec="milliseconds")}
            _append(connection, [{"subject": "log", "decision": PRUNED, **said}], signer)
            return connection.execute(delete(DECISION).where(DECISION.c.seq <= until)).rowcount

    def head(self) -> Head:
        """The newest entry, as the log remembers it.

        Raises:
            DecisionLogUnavailableError: It could not be read.
        """
        with _translated(), self._engine.connect() as connection:
            row = connection.execute(select(HEAD.c.seq, HEAD.c.digest)).one()
            return Head(row.seq, Digest32(row.digest))

    def vouchers(self) -> dict[bytes, bytes]:
        """For the public key of each signer, the root's signature over it.

        Raises:
            DecisionLogUnavailableError: They could not be read.
        """
        with _translated(), self._engine.connect() as connection:
            return {bytes(row.public_key): bytes(row.voucher) for row in connection.execute(select(SIGNER))}

    def entries(
        self,
        *,
        app_id: str | None = None,
        acpi_tables_verified: bool | None = None,
        last: int | None = None,
        until: int | None = None,
    ) -> Iterator[Entry]:
        """Entries, oldest first, read in portions.

        Args:
            app_id: Those about this app, in hexadecimal; None for all.
            acpi_tables_verified: Those about machines whose ACPI tables were, or were not; None for all.
            last: That many of the newest; None for all.
            until: Up to this number; None for all.

        Raises:
            DecisionLogUnavailableError: They could not be read.
        """
        wanted = _READ_ENTRIES
        if app_id is not None:
            wanted = wanted.where(DECISION.c.app_id == app_id)
        if acpi_tables_verified is not None:
            wanted = wanted.where(DECISION.c.acpi_tables_verified.is_(acpi_tables_verified))
        if until is not None:
            wanted = wanted.where(DECISION.c.seq <= until)
        after = 0
        if last is not None:
            newest = self._rows(wanted.with_only_columns(DECISION.c.seq).order_by(DECISION.c.seq.desc()).limit(last))
            after = newest[-1].seq - 1 if newest else 0
        while rows := self._rows(wanted.where(DECISION.c.seq > after).order_by(DECISION.c.seq).limit(_ROWS_AT_ONCE)):
            yield from map(_entry, rows)
            after = rows[-1].seq

    def require_columns(self, until: int) -> None:
        """Return only if entries up to *until* are found by what is signed in them: the other columns are not signed.

        Raises:
            DecisionLogBrokenError: A column says something else.
            DecisionLogUnavailableError: They could not be read.
        """
        with _translated():
            there = {column["name"] for column in inspect(self._engine).get_columns(DECISION.name)}
        wanted = select(*(column for column in DECISION.c if column.name in there)).order_by(DECISION.c.seq)
        after = 0
        while rows := self._rows(wanted.where(DECISION.c.seq > after, DECISION.c.seq <= until).limit(_ROWS_AT_ONCE)):
            for row in rows:
                entry = _entry(row)
                signed = _row(entry, entry.members())
                for name in _FOUND_BY & there:
                    if row._mapping[name] != signed[name]:
                        raise DecisionLogBrokenError(f"entry {entry.seq}: its {name} is another than what is signed")
            after = rows[-1].seq

    def _rows(self, wanted: Select[Any]) -> Sequence[Row[Any]]:
        with _translated(), self._engine.connect() as connection:
            return connection.execute(wanted).all()


def open_store(url: str, *, read_only: bool = False) -> DecisionStore:
    """Connect, and bring the tables up to date.

    Args:
        url: sqlite:///PATH or postgresql+psycopg://...; never repeated in an error.
        read_only: The log must exist, and is not changed.

    Raises:
        ConfigError: The URL is not of its form.
        DecisionLogUnavailableError: The database cannot be reached, or has no log.
    """
    try:
        parsed = make_url(url)
        is_file = parsed.drivername.startswith("sqlite")
        options = {"connect_args": {"timeout": CONNECT_SECONDS}} if is_file else postgresql.OPTIONS
        engine = create_engine(parsed, hide_parameters=True, **options)
    except (ArgumentError, ImportError) as exc:
        raise ConfigError("core.decisions.database_url: want sqlite:///PATH or postgresql+psycopg://...") from exc
    if is_file:
        _prepare_file(Path(parsed.database or ""), must_exist=read_only)
        _set_up_sqlite(engine, read_only=read_only)
    else:
        postgresql.bound(engine)
    with _translated():
        if not read_only:
            with engine.begin() as connection:
                _migrate(connection)
        store = DecisionStore(engine)
        store.head()
    return store


def _append(connection: Connection, contents: Sequence[Members], signer: DecisionSigner) -> list[Entry]:
    row = connection.execute(_LOCK_HEAD).one()
    seq, previous, entries = row.seq, Digest32(row.digest), []
    for members in contents:
        seq += 1
        content = canonical({**members, "seq": seq})
        digest = entry_digest(seq, content, previous)
        entries.append(Entry(seq, content, previous, signer.sign(digest)))
        previous = digest
    if not entries:
        return []
    connection.execute(_ADD_ENTRY, [_row(entry, members) for entry, members in zip(entries, contents, strict=True)])
    connection.execute(_MOVE_HEAD, {"seq": seq, "digest": bytes(previous)})
    return entries


def _vouch(connection: Connection, signer: DecisionSigner) -> None:
    known = select(SIGNER.c.public_key).where(SIGNER.c.public_key == signer.public_key)
    if connection.execute(known).first() is None:
        connection.execute(insert(SIGNER).values(public_key=signer.public_key, voucher=signer.voucher))


def _row(entry: Entry, members: Members) -> dict[str, object]:
    return {
        "seq": entry.seq,
        "at": str(members.get("at", "")),
        "subject": str(members.get("subject", "")),
        "decision": str(members.get("decision", "")),
        "app_id": members.get("app_id"),
        "content": entry.content,
        "previous": bytes(entry.previous),
        "signature": entry.signature,
        "acpi_tables_verified": members.get("acpi_tables_verified"),
    }


def _entry(row: Row[Any]) -> Entry:
    return Entry(row.seq, row.content, Digest32(bytes(row.previous)), bytes(row.signature))


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _prepare_file(path: Path, *, must_exist: bool) -> None:
    """The file, which its owner alone may read; SQLite gives its side files the same permissions."""
    try:
        if must_exist:
            path.stat()
        else:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as exc:
        raise DecisionLogUnavailableError(f"decision log: {path}: {exc.strerror or exc}") from exc


def _set_up_sqlite(engine: Engine, *, read_only: bool) -> None:
    """Transactions that begin where we say (the driver would begin them late), kept when the power fails."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as exc:
        # The driver's text may hold the URL with its password; the kind of error says enough.
        cause = type(getattr(exc, "orig", None) or exc).__name__
        raise DecisionLogUnavailableError(f"decision log: the database cannot be used: {cause}") from None
