"""The log of decisions: signed, whole, the same in SQLite and PostgreSQL, and no grant without it."""

from __future__ import annotations

import sqlite3
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from dstack.errors import ConfigError, DecisionLogBrokenError, DecisionLogUnavailableError
from dstack.keys.scalars import k256_public_key
from dstack.values import Digest32
from kms.decision_log import store as store_module
from kms.decision_log import writer
from kms.decision_log.entry import CONTENT_LIMIT, NO_ENTRY, Entry, canonical
from kms.decision_log.signing import DecisionSigner
from kms.decision_log.store import DecisionStore, Head, open_store
from kms.decision_log.verification import VerifiedLog, verify_log
from kms.decision_log.writer import REFUSALS_AN_HOUR, DecisionLog
from tests.postgres import postgres, silent

ROOT = bytes(31) + b"\2"
SIGNER = DecisionSigner.derive(ROOT)
AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server for all tests of this module."""
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a log may be kept, empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.sqlite3"
    address: str = request.getfixturevalue("postgres_url")
    engine = create_engine(address)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return address


@pytest.fixture
def store(url: str) -> Iterator[DecisionStore]:
    """A log without entries."""
    with closing(open_store(url)) as opened:
        yield opened


def line(number: int, at: datetime = AT) -> dict[str, object]:
    """A decision as `kms.decisions` writes it."""
    who = {"app_id": f"{number % 2:040x}", "request": str(number)}
    return {"at": at.isoformat(timespec="milliseconds"), "subject": "app", "decision": "granted", **who}


def verify(store: DecisionStore, root: bytes | None = None) -> VerifiedLog:
    """Verify all of it."""
    return verify_log(store.entries(), store.vouchers(), store.head(), root=root)


def change(url: str, *statements: str) -> None:
    """What somebody with access to the database does."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def change_head(url: str, digest: bytes) -> None:
    """Somebody with access to the database says what the newest entry is."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE decision_head SET digest = :digest"), {"digest": digest})
    engine.dispose()


def test_entries_are_numbered_bound_and_signed(store: DecisionStore) -> None:
    """Each names the digest of the one before; the whole verifies against the KMS's k256 public key."""
    store.append([line(1), line(2)], SIGNER)
    store.append([line(3)], SIGNER)

    entries = list(store.entries())
    assert [entry.members() for entry in entries] == [{**line(number), "seq": number} for number in (1, 2, 3)]
    assert [entry.previous for entry in entries] == [NO_ENTRY, entries[0].digest, entries[1].digest]
    root = k256_public_key(ROOT)
    assert verify(store, root) == VerifiedLog(3, 1, Head(3, entries[2].digest), root, 0)


def test_an_empty_log_is_whole(store: DecisionStore) -> None:
    """Nothing was decided yet."""
    assert verify(store) == VerifiedLog(0, 0, Head(0, NO_ENTRY), b"", 0)


def test_entries_are_found_by_app_and_by_age(store: DecisionStore) -> None:
    """Those of one app, or the newest few; always oldest first."""
    store.append([line(number) for number in range(1, 7)], SIGNER)

    assert [entry.seq for entry in store.entries(app_id=f"{1:040x}", last=2)] == [3, 5]
    assert [entry.seq for entry in store.entries(last=2)] == [5, 6]


TAMPERING = [
    (["DELETE FROM decision WHERE seq = 2"], "entry 3: does not follow entry 1"),
    (["DELETE FROM decision WHERE seq = 4"], "entry 3 is the newest, the log remembers entry 4"),
    (["DELETE FROM decision WHERE seq = 1"], "entry 2 is the oldest, and no entry says"),
    (["UPDATE decision SET content = replace(content, 'granted', 'denied') WHERE seq = 2"], "entry 2: not signed"),
    (["UPDATE decision SET signature = (SELECT signature FROM decision WHERE seq = 1) WHERE seq = 2"], "entry 2: not"),
    (["DELETE FROM decision_signer"], "entry 1: not signed by a key that a root vouches for"),
    (["UPDATE decision_head SET seq = 9"], "entry 4 is the newest, the log remembers entry 9"),
    (["UPDATE decision SET seq = 9 WHERE seq = 4"], "entry 9: does not follow entry 3"),
]


@pytest.mark.parametrize(("statements", "words"), TAMPERING, ids=[words for _, words in TAMPERING])
def test_what_is_missing_or_changed_is_noticed(
    store: DecisionStore, url: str, statements: list[str], words: str
) -> None:
    """Whoever can write the database but has no key cannot take away or change an entry unnoticed."""
    store.append([line(number) for number in range(1, 5)], SIGNER)
    change(url, *statements)

    with pytest.raises(DecisionLogBrokenError, match=words):
        verify(store)


def test_another_kms_is_noticed(store: DecisionStore) -> None:
    """Entries signed under another root do not pass, whether the root is named or only one is expected."""
    store.append([line(1)], SIGNER)
    with pytest.raises(DecisionLogBrokenError, match="entry 1: want root 02aa"):
        verify(store, b"\x02" + b"\xaa" * 32)
    store.append([line(2)], DecisionSigner.derive(bytes(31) + b"\3"))

    with pytest.raises(DecisionLogBrokenError, match="entry 2: want root"):
        verify(store)


def test_old_entries_go_and_that_is_said(store: DecisionStore) -> None:
    """After pruning the log is whole from the oldest entry on, because a signed entry says what went."""
    store.append([line(1, AT - timedelta(days=9)), line(2, AT - timedelta(days=8)), line(3)], SIGNER)

    assert store.prune(AT - timedelta(days=7), SIGNER, AT) == 2
    assert store.prune(AT - timedelta(days=7), SIGNER, AT) == 0
    verified = verify(store)
    assert (verified.count, verified.first, verified.head.seq) == (2, 3, 4)
    assert [entry.members()["decision"] for entry in store.entries()] == ["granted", "pruned"]
    assert store.prune(AT + timedelta(days=1), SIGNER, AT + timedelta(days=2)) == 2
    assert verify(store).first == 5


def test_several_writers_share_one_log(url: str) -> None:
    """Threads with connections of their own leave one whole log."""
    stores = [open_store(url) for _ in range(3)]
    threads = [
        threading.Thread(target=lambda own=own: [own.append([line(number)], SIGNER) for number in range(10)])
        for own in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert verify(stores[0]).count == 30
    for own in stores:
        own.close()


def test_opening_twice_changes_nothing(store: DecisionStore, url: str) -> None:
    """The migrations run once; a log that is read is not made."""
    store.append([line(1)], SIGNER)
    for read_only in (False, True):
        with closing(open_store(url, read_only=read_only)) as again:
            assert again.head().seq == 1


# An entry as version 0001 of the tables had it, made and signed by the program of that day.
OLD_CONTENT = (
    '{"app_id":"a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1","at":"2026-11-01T00:00:00.000+00:00","block":7,'
    '"decision":"granted","seq":1,"simulated":true,"subject":"app"}'
)
OLD_DIGEST = bytes.fromhex("177cd6196f1b347c68b4fbef75282115da059b90fc23f7ecf83b557ca99c2d05")
OLD_SIGNATURE = bytes.fromhex(
    "dff1321295d61cf598b8b3b6b8afc40ea68d13bc1c2fde7b398efb874ef1ced0"
    "51549a6d23731a17993c9081e42e99b1c48d723b5a682211bb8ff25bd425da7201"
)


def make_old_log(url: str) -> None:
    """A log of one entry, in the tables of version 0001."""
    config = Config()
    config.set_main_option("script_location", str(Path(str(store_module.__file__)).parent / "migrations"))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        columns = "seq, at, subject, decision, app_id, content, previous, signature"
        places = ", ".join(f":{name}" for name in columns.split(", "))
        entry = {"seq": 1, "at": "2026-11-01T00:00:00.000+00:00", "subject": "app", "decision": "granted"}
        more = {"app_id": "a1" * 20, "content": OLD_CONTENT, "previous": NO_ENTRY, "signature": OLD_SIGNATURE}
        connection.execute(text(f"INSERT INTO decision ({columns}) VALUES ({places})"), {**entry, **more})
        connection.execute(text("UPDATE decision_head SET seq = 1, digest = :digest"), {"digest": OLD_DIGEST})
        signer = {"public_key": SIGNER.public_key, "voucher": SIGNER.voucher}
        connection.execute(text("INSERT INTO decision_signer VALUES (:public_key, :voucher)"), signer)
    engine.dispose()


def test_an_older_log_is_read_as_it_is(url: str) -> None:
    """Whoever only reads does not need the newer tables: the entry verifies before anything is migrated."""
    make_old_log(url)
    with closing(open_store(url, read_only=True)) as old:
        assert [entry.content for entry in old.entries()] == [OLD_CONTENT]
        assert verify(old, k256_public_key(ROOT)).head == Head(1, Digest32(OLD_DIGEST))
        old.require_columns(1)


def test_an_older_log_goes_on(url: str) -> None:
    """After the migration the old entry still verifies as it was signed, and new ones say more, in what is signed."""
    make_old_log(url)
    said = {"acpi_source": "from-log", "acpi_tables_verified": False}
    with closing(open_store(url)) as migrated:
        migrated.append([{**line(2), **said}, {**line(3), "acpi_tables_verified": True}, line(4)], SIGNER)

        assert verify(migrated, k256_public_key(ROOT)).count == 4
        entries = list(migrated.entries())
        assert (entries[0].content, entries[0].signature) == (OLD_CONTENT, OLD_SIGNATURE)
        assert entries[1].members() == {**line(2), **said, "seq": 2}
        found = {
            wanted: [entry.seq for entry in migrated.entries(acpi_tables_verified=wanted)]
            for wanted in (False, True, None)
        }
    assert found == {False: [2], True: [3], None: [1, 2, 3, 4]}


def test_what_is_said_of_acpi_tables_is_signed(store: DecisionStore, url: str) -> None:
    """Whoever writes into the database that tables were verified, is noticed."""
    store.append([{**line(1), "acpi_tables_verified": False}], SIGNER)
    change(url, "UPDATE decision SET content = replace(content, 'false', 'true')")

    assert next(store.entries()).members()["acpi_tables_verified"] is True
    with pytest.raises(DecisionLogBrokenError, match="entry 1: not signed"):
        verify(store)


@pytest.mark.parametrize(
    ("change_of", "column"),
    [
        (f"app_id = '{'ff' * 20}'", "app_id"),
        ("app_id = NULL", "app_id"),
        ("acpi_tables_verified = NULL", "acpi_tables_verified"),
        ("acpi_tables_verified = (1 = 1)", "acpi_tables_verified"),
        ("at = '2001-01-01'", "at"),
        ("decision = 'refused'", "decision"),
        ("subject = 'kms'", "subject"),
    ],
)
def test_entries_cannot_be_hidden_from_whoever_looks_for_them(
    store: DecisionStore, url: str, change_of: str, column: str
) -> None:
    """The columns that entries are found by are not signed, so they are compared with what is."""
    store.append([line(1), {**line(2), "acpi_tables_verified": False}, line(3)], SIGNER)
    store.require_columns(3)
    change(url, f"UPDATE decision SET {change_of} WHERE seq = 2")

    assert verify(store).count == 3
    store.require_columns(1)
    with pytest.raises(DecisionLogBrokenError, match=f"^entry 2: its {column} is another than what is signed$"):
        store.require_columns(3)


def test_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    """The log names apps and machines; others on the machine cannot read it."""
    path = tmp_path / "log.sqlite3"
    with closing(open_store(f"sqlite:///{path}")) as store:
        store.append([line(1)], SIGNER)
        modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}

    assert modes == {0o600}


def test_a_log_that_is_not_there_is_not_made_by_reading(tmp_path: Path) -> None:
    """Neither a missing file nor one that is no log becomes an empty log."""
    with pytest.raises(DecisionLogUnavailableError, match=r"absent: No such file"):
        open_store(f"sqlite:///{tmp_path}/absent", read_only=True)
    (tmp_path / "text").write_text("not a database, whatever its length; not a database, whatever its length")
    with pytest.raises(DecisionLogUnavailableError, match="the database cannot be used: DatabaseError"):
        open_store(f"sqlite:///{tmp_path}/text", read_only=True)
    with pytest.raises(ConfigError, match="want sqlite:///PATH or postgresql"):
        open_store("nonsense://x")


def test_a_server_that_is_gone_is_noticed(postgres_url: str) -> None:
    """A connection to PostgreSQL on which nothing comes back ends in seconds, so that another one can be made."""
    with closing(open_store(postgres_url)) as store, store._engine.connect() as connection:
        said = connection.connection.driver_connection.info.get_parameters()

    assert {name: said[name] for name in ("connect_timeout", "tcp_user_timeout", "keepalives_idle")} == {
        "connect_timeout": "5",
        "tcp_user_timeout": "5000",
        "keepalives_idle": "5",
    }


def test_a_server_that_lives_and_is_silent_is_not_waited_for() -> None:
    """In a transaction, before one and at the start it ends in seconds; when the server goes on, so does the log."""
    with postgres() as url, closing(open_store(url)) as store:
        fails = pytest.raises(OperationalError, match=r"NoAnswerError\) no answer within 6 s")
        with fails, store._engine.begin() as connection, silent(url):
            connection.execute(text("SELECT 1"))
        store.append([line(1)], SIGNER)
        began = time.monotonic()
        with silent(url):
            with pytest.raises(DecisionLogUnavailableError, match="the database cannot be used: ConnectionTimeout"):
                store.append([line(2)], SIGNER)
            with pytest.raises(DecisionLogUnavailableError, match="the database cannot be used: ConnectionTimeout"):
                open_store(url)
        took = time.monotonic() - began
        store.append([line(3)], SIGNER)

        assert [entry.members()["request"] for entry in store.entries()] == ["1", "3"]
        assert verify(store).count == 2
    # The answer on the connection that there was, and twice a connection.
    assert took < 6 + 5 + 5 + 2


def test_a_silent_server_holds_the_writer_no_longer_than_a_grant() -> None:
    """A grant in that time fails, the next decision is tried anew, and the log ends soon."""
    with postgres() as url, closing(open_store(url)) as store:
        log = DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**4))
        log.keep(line(1), must=True)
        time.sleep(1)
        with silent(url):
            with pytest.raises(DecisionLogUnavailableError, match="decision log: not written within 10 s"):
                log.keep(line(2), must=True)
            time.sleep(3)
            log.keep(line(3), must=False)
            time.sleep(7)
            assert log._missing == 2
            log.keep(line(4), must=False)
            log.close()
            assert not log._thread.is_alive()

        assert [entry.members()["request"] for entry in store.entries()] == ["1"]


def test_errors_do_not_show_the_password() -> None:
    """A database that cannot be reached is named by the kind of error alone."""
    with pytest.raises(DecisionLogUnavailableError) as failed:
        open_store("postgresql+psycopg://kms:hunter2@127.0.0.1:9/kms")

    assert "hunter2" not in str(failed.value)
    assert failed.value.__cause__ is None


def about() -> dict[str, object]:
    """Which chain decides."""
    return {"chain_id": 31337, "kms_contract": "0xc0"}


def test_a_grant_is_written_before_it_is_given(store: DecisionStore) -> None:
    """When `keep` returns, the entry is there, with chain and contract in what is signed."""
    with closing(DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**4))) as log:
        log.keep(line(1), must=True)

        assert [entry.members() for entry in store.entries()] == [{**line(1), **about(), "seq": 1}]


def test_many_grants_share_transactions(store: DecisionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred threads, one after the other, leave a hundred entries in one whole log, written a few times."""
    sizes: list[int] = []
    append, first, go_on = store.append, threading.Event(), threading.Event()

    def slow_at_first(contents: Sequence[Mapping[str, object]], signer: DecisionSigner) -> list[Entry]:
        sizes.append(len(contents))
        first.set()
        assert go_on.wait(60)
        return append(contents, signer)

    monkeypatch.setattr(store, "append", slow_at_first)
    monkeypatch.setattr(writer, "PAUSE_SECONDS", 0.5)
    with closing(DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**4))) as log:
        threads = [threading.Thread(target=log.keep, args=(line(n),), kwargs={"must": True}) for n in range(100)]
        threads[0].start()
        assert first.wait(60)
        for thread in threads[1:3]:
            thread.start()
        while log._queue.qsize() < 2:
            time.sleep(0.001)
        go_on.set()
        for thread in threads[3:]:
            time.sleep(0.002)
            thread.start()
        for thread in threads:
            thread.join()

        assert verify(store).count == 100
        assert sorted(int(entry.members()["request"]) for entry in store.entries()) == [*range(100)]
    assert (sum(sizes), sizes[0], len(sizes) < 20) == (100, 1, True)


def test_what_could_not_be_kept_is_counted_in_the_next_entry(store: DecisionStore) -> None:
    """Before there was a log, for instance."""
    with closing(DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**4))) as log:
        log.lost(3)
        log.keep(line(1), must=True)
        log.keep(line(2), must=True)

        assert [entry.members().get("missing_before") for entry in store.entries()] == [3, None]


def test_without_the_log_there_is_no_grant(tmp_path: Path) -> None:
    """While the database cannot be written grants fail, refusals do not; later the log says how many are missing."""
    path = tmp_path / "log.sqlite3"
    store = open_store(f"sqlite:///{path}")
    log = DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**4))
    log.keep(line(1), must=True)
    away = sqlite3.connect(path)
    away.execute("ALTER TABLE decision RENAME TO elsewhere")

    with pytest.raises(DecisionLogUnavailableError, match="the database cannot be used: OperationalError"):
        log.keep(line(2), must=True)
    log.keep({**line(3), "decision": "denied"}, must=False)
    with pytest.raises(DecisionLogUnavailableError, match="the database cannot be used"):
        log.keep(line(4), must=True)
    away.execute("ALTER TABLE elsewhere RENAME TO decision")
    away.close()
    log.keep(line(5), must=True)

    assert [entry.members().get("missing_before", 0) for entry in store.entries()] == [0, 3]
    assert verify(store).missing == 3
    log.close()
    store.close()


def test_the_log_goes_on_after_what_nobody_foresaw(url: str, store: DecisionStore) -> None:
    """A head that is none stops grants as long as it stands there, and no longer."""
    with closing(DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**4))) as log:
        log.keep(line(1), must=True)
        before = store.head().digest
        change_head(url, b"none")

        for _ in range(2):
            with pytest.raises(DecisionLogUnavailableError, match="decision log: it cannot go on: InputError"):
                log.keep(line(2), must=True)
        change_head(url, before)
        log.keep(line(3), must=True)

        assert [entry.members().get("missing_before") for entry in store.entries()] == [None, 2]


def test_a_log_that_cannot_be_shortened_is_written(store: DecisionStore) -> None:
    """A retention from before the first year removes nothing, and stops nothing."""
    with closing(DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**6))) as log:
        for number in range(3):
            log.keep(line(number), must=True)

        assert verify(store).count == 3


def test_what_waits_is_written_at_the_end(tmp_path: Path) -> None:
    """Refusals that nobody waited for are in the log when it is closed."""
    store = open_store(f"sqlite:///{tmp_path}/log.sqlite3")
    log = DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**4))
    for number in range(50):
        log.keep(line(number), must=False)
    log.close()

    assert verify(store).count == 50
    store.close()


def test_a_database_that_hangs_does_not_keep_the_program(store: DecisionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a log whose queue is full and whose database answers nothing comes all the same."""
    monkeypatch.setattr(writer, "QUEUE_LIMIT", 1)
    monkeypatch.setattr(writer, "WRITE_SECONDS", 0.1)
    go_on, hangs = threading.Event(), threading.Event()

    def hang(_contents: Sequence[Mapping[str, object]], _signer: DecisionSigner) -> list[Entry]:
        hangs.set()
        go_on.wait(60)
        return []

    monkeypatch.setattr(store, "append", hang)
    log = DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**4))
    log.keep(line(1), must=False)
    assert hangs.wait(60)
    log.keep(line(2), must=False)
    end = threading.Thread(target=log.close, daemon=True)
    end.start()
    end.join(10)
    is_over = not end.is_alive()
    go_on.set()
    log._thread.join(10)

    assert is_over


def test_strangers_cannot_fill_the_log(tmp_path: Path) -> None:
    """Of refusals so many an hour are kept, with and without evidence apart; the next entry counts the others."""
    hour = [0.0]
    store = open_store(f"sqlite:///{tmp_path}/log.sqlite3")
    log = DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**4), now=lambda: hour[0])
    for _ in range(REFUSALS_AN_HOUR + 7):
        log.keep({**line(1), "decision": "refused"}, must=False)
    log.keep({**line(1), "decision": "denied", "evidence": "e0"}, must=False)
    log.keep(line(1), must=True)
    hour[0] = 3600.0
    log.keep({**line(1), "decision": "refused"}, must=False)
    log.close()

    kept = Counter(str(entry.members()["decision"]) for entry in store.entries())
    left_out = sum(int(str(entry.members().get("left_out_before", 0))) for entry in store.entries())
    assert (kept, left_out) == ({"refused": REFUSALS_AN_HOUR + 1, "denied": 1, "granted": 1}, 7)
    assert verify(store).missing == 0
    store.close()


def test_entries_are_bounded(tmp_path: Path) -> None:
    """What a stranger can make long is cut."""
    store = open_store(f"sqlite:///{tmp_path}/log.sqlite3")
    log = DecisionLog(store, SIGNER, about=about, retention=timedelta(days=10**4))
    log.keep({**line(1), "reason": "x" * 100_000}, must=True)
    log.close()

    (entry,) = store.entries()
    store.close()
    assert (len(entry.content) < CONTENT_LIMIT, entry.members()["reason"]) == (True, "x" * 200)


def test_the_signer_does_not_show_its_key() -> None:
    """Neither `repr` nor an entry holds anything secret."""
    assert "_key=" not in repr(SIGNER).replace("public_key=", "")
    assert canonical({"b": 1, "a": "é"}) == '{"a":"\\u00e9","b":1}'
