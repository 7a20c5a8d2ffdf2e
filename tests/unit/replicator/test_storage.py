"""The secure file on its disk: replaced in one step, by what was verified, and never through a link."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from dstack.errors import KeystoreError
from dstack.keys.sealing_stream import CHUNK
from replicator.custody import Custody, fingerprint_of
from replicator.receipts import KeptReceipt, ReceiptFolder
from replicator.storage import Held, Incoming, SecureFile, aligned_buffer
from tests.unit.replicator.test_documents import GENESIS

KEPT = KeptReceipt("genesis", GENESIS, b"evidence", simulated=True)
LATER = Custody(changed(GENESIS, at=GENESIS.at + 1))


def stored(folder: Path, content: bytes) -> SecureFile:
    """A secure file with a custody record."""
    receipts = ReceiptFolder(folder / "receipts")
    receipts.prepare()
    secure_file = SecureFile(folder / "secure-file")
    replace(secure_file, filled(secure_file, content), receipts)
    return secure_file


def filled(secure_file: SecureFile, content: bytes) -> Incoming:
    """Content on its way, all there."""
    incoming = secure_file.incoming("x")
    incoming.add(content)
    incoming.seal_off()
    return incoming


def replace(secure_file: SecureFile, incoming: Incoming, receipts: ReceiptFolder) -> None:
    """The last step."""
    secure_file.replace(incoming, Custody(GENESIS), at=5, receipt=KEPT, to=receipts)


def test_what_is_stored_is_held_with_its_record(tmp_path: Path) -> None:
    """Content, fingerprint, custody and time are there, for their owner only; nothing else is left."""
    secure_file = stored(tmp_path, b"content")
    held = secure_file.held()

    assert secure_file.path.read_bytes() == b"content"
    assert (held.size, held.custody, held.since) == (7, Custody(GENESIS), 5)
    assert held.fingerprint == fingerprint_of(held.digest)
    assert stat.S_IMODE(secure_file.path.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["receipts", "secure-file", "secure-file.custody.json"]
    assert [path.name for path in (tmp_path / "receipts").iterdir()] == [f"{GENESIS.hash().hex()}.genesis.json"]


def test_a_change_by_the_app_is_seen(tmp_path: Path) -> None:
    """What is known of the content is forgotten when the file changes."""
    secure_file = stored(tmp_path, b"content")
    before = secure_file.held().fingerprint
    secure_file.path.write_bytes(b"Content")

    assert secure_file.held().fingerprint != before


def test_content_is_read_for_one_fingerprint_only(tmp_path: Path) -> None:
    """A chunk has one nonce, so what takes the place of the content, or changes under way, is not read."""
    secure_file = stored(tmp_path, b"content")
    fingerprint = secure_file.held().fingerprint

    read = bytearray(4)
    with secure_file.reading_of(fingerprint) as read_into:
        read_into(memoryview(read), 3)
        assert read == b"tent"
        secure_file.path.write_bytes(b"Content")
        with pytest.raises(KeystoreError, match="has changed since the answer was made; ask again"):
            read_into(memoryview(read), 3)
    with (
        secure_file.reading_of(fingerprint) as read_into,
        pytest.raises(KeystoreError, match="has changed since the answer was made; ask again"),
    ):
        read_into(memoryview(read), 3)


def test_one_process_at_a_time_works_with_it(tmp_path: Path) -> None:
    """A second one, bootstrap beside the service for instance, would remove what the first receives; it is refused."""
    SecureFile(tmp_path / "secure-file").hold()

    with pytest.raises(KeystoreError, match=f"another process works in {tmp_path}"):
        SecureFile(tmp_path / "secure-file").hold()
    with pytest.raises(KeystoreError, match="nowhere cannot be used: No such file"):
        SecureFile(tmp_path / "nowhere" / "secure-file").hold()


def test_the_digest_does_not_show(tmp_path: Path) -> None:
    """The digest of the content, from which keys follow, is not in the text form of what is held."""
    held = stored(tmp_path, b"content").held()

    assert repr(held.digest) not in repr(held)


def test_the_largest_size_is_read(tmp_path: Path) -> None:
    """16 GiB are a secure file."""
    path = tmp_path / "secure"
    with path.open("wb") as content:
        content.truncate(16 << 30)

    with SecureFile(path).reading() as (_, size):
        assert size == 16 << 30


@pytest.mark.parametrize("size", [0, (16 << 30) + 1])
def test_content_out_of_bounds_is_refused(tmp_path: Path, size: int) -> None:
    """Nothing, and more than 16 GiB, is no secure file."""
    path = tmp_path / "secure-file"
    path.touch()
    os.truncate(path, size)

    with pytest.raises(KeystoreError, match=f"want a file of 1 to {16 << 30} bytes, got {size}"):
        SecureFile(path).held()


@pytest.mark.parametrize("can_write_directly", [True, False])
def test_what_is_written_directly_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_write_directly: bool
) -> None:
    """Chunks out of aligned memory and the rest, which is no whole number of blocks; also where a disk cannot."""
    whole, rest = os.urandom(CHUNK), b"rest"
    secure_file = SecureFile(tmp_path / "secure-file")
    if not can_write_directly:
        monkeypatch.setattr(fcntl, "fcntl", refuse_flags)
    incoming = secure_file.incoming("x")
    buffer = aligned_buffer(CHUNK)
    for content in (whole, whole[::-1], rest):
        buffer[: len(content)] = content
        incoming.add(buffer[: len(content)])

    assert incoming.seal_off() == blake3(whole + whole[::-1] + rest).digest()
    assert incoming.path.read_bytes() == whole + whole[::-1] + rest


def refuse_flags(_descriptor: int, _command: int, _flags: int) -> int:
    """A file system without direct writing."""
    raise OSError(errno.EINVAL, "Invalid argument")


def test_the_digest_is_of_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends other content where the disk refused the first does not get the first one's digest for it."""
    incoming = SecureFile(tmp_path / "secure-file").incoming("x")
    incoming.add(b"begin ")
    incoming.digest(b"first ", 6)
    incoming.digest(b"ahead", 12)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse_to_write)
        with pytest.raises(KeystoreError, match="cannot be written: No space left on device"):
            incoming.write(b"first ", 6)
    for content in (b"other ", b"end"):
        incoming.add(content)

    assert incoming.seal_off() == blake3(b"begin other end").digest()
    assert incoming.path.read_bytes() == b"begin other end"


def refuse_to_write(_descriptor: int, _content: memoryview, _offset: int) -> int:
    """A full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_link_is_neither_followed_nor_replaced(tmp_path: Path) -> None:
    """A link in the place of the secure file counts as something that is there."""
    receipts = ReceiptFolder(tmp_path / "receipts")
    receipts.prepare()
    (tmp_path / "secure-file").symlink_to(tmp_path / "elsewhere")
    secure_file = SecureFile(tmp_path / "secure-file")

    assert secure_file.exists()
    with pytest.raises(KeystoreError, match="cannot be read"):
        secure_file.held()
    with pytest.raises(KeystoreError, match="got a link"):
        replace(secure_file, filled(secure_file, b"content"), receipts)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_was_put_there_by_hand_has_no_custody(tmp_path: Path) -> None:
    """Without a record nobody knows where the content comes from."""
    (tmp_path / "secure-file").write_bytes(b"content")

    assert SecureFile(tmp_path / "secure-file").held().custody is None


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"custody": {}, "since": 1}'])
def test_a_damaged_record_is_an_error(tmp_path: Path, raw: bytes) -> None:
    """A record that cannot be read is not taken for none."""
    secure_file = stored(tmp_path, b"content")
    (tmp_path / "secure-file.custody.json").write_bytes(raw)

    with pytest.raises(KeystoreError, match="custody"):
        secure_file.held()


def test_strays_of_a_crash_are_removed_at_the_start(tmp_path: Path) -> None:
    """What was on its way when a node died is not left on the disk."""
    secure_file = stored(tmp_path, b"content")
    filled(secure_file, b"half of").close()

    secure_file.recover(ReceiptFolder(tmp_path / "receipts"))

    assert not list(tmp_path.glob("*.incoming.*"))
    assert secure_file.path.read_bytes() == b"content"


def test_what_could_not_take_the_place_leaves_no_plan(tmp_path: Path) -> None:
    """A rename that the disk refuses is not taken at the next start for one that was done."""
    secure_file = stored(tmp_path, b"content")
    incoming = filled(secure_file, b"new content")
    incoming.path.unlink()

    with pytest.raises(KeystoreError, match="cannot be replaced: No such file"):
        secure_file.replace(incoming, LATER, at=6, receipt=KEPT, to=ReceiptFolder(tmp_path / "receipts"))
    again = SecureFile(secure_file.path)
    again.recover(ReceiptFolder(tmp_path / "receipts"))

    assert (again.path.read_bytes(), again.held().custody, again.held().since) == (b"content", Custody(GENESIS), 5)


def test_new_content_is_never_shown_with_the_old_record(tmp_path: Path) -> None:
    """Whoever asks between the two writes waits for the second, or is told that it cannot be made."""
    secure_file = stored(tmp_path, b"content")
    seen: list[Held] = []
    reader = threading.Thread(target=lambda: seen.append(secure_file.held()))

    class Watched(ReceiptFolder):
        """Has somebody ask at that moment."""

        def write(self, name: str, members: dict[str, Any]) -> None:
            """Wait a little for the answer."""
            reader.start()
            reader.join(0.2)
            assert seen == []
            ReceiptFolder.write(self, name, members)

    incoming = filled(secure_file, b"new content")
    secure_file.replace(incoming, LATER, at=6, receipt=KEPT, to=Watched(tmp_path / "receipts"))
    reader.join()

    assert [(held.size, held.custody, held.since) for held in seen] == [(11, LATER, 6)]


def test_a_record_that_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    """Until then nothing is held that could be handed on without its past; keys follow from the content alone."""
    secure_file = stored(tmp_path, b"content")
    receipts, away = tmp_path / "receipts", tmp_path / "away"
    receipts.rename(away)
    with pytest.raises(KeystoreError, match="cannot be written: No such file"):
        secure_file.replace(filled(secure_file, b"new content"), LATER, at=6, receipt=KEPT, to=ReceiptFolder(receipts))

    with pytest.raises(KeystoreError, match="cannot be written: No such file"):
        secure_file.held()
    digest = secure_file.digest()
    away.rename(receipts)
    held = secure_file.held()

    assert (held.digest, held.custody, held.since) == (digest, LATER, 6)
    assert not list(tmp_path.glob("*.next"))


def test_a_plan_that_names_a_path_is_refused(tmp_path: Path) -> None:
    """What a crash left cannot make the start write elsewhere."""
    secure_file = stored(tmp_path, b"content")
    plan = b'{"incoming": "../x", "record": {}, "receipt": {}, "name": "n"}'
    (tmp_path / "secure-file.custody.next").write_bytes(plan)

    with pytest.raises(KeystoreError, match="want names, got a path"):
        secure_file.recover(ReceiptFolder(tmp_path / "receipts"))


def test_large_content_is_read_in_pieces(tmp_path: Path) -> None:
    """Content of several chunks has the digest of the whole."""
    content = os.urandom(2 * CHUNK + 5)
    small, large = stored(tmp_path, content), tmp_path / "other"
    large.write_bytes(content)

    assert small.held().fingerprint == SecureFile(large).held().fingerprint


@pytest.mark.parametrize("room", [1, 5 * CHUNK + 3, 70 * CHUNK])
def test_room_is_set_aside_ahead_of_a_write(tmp_path: Path, room: int) -> None:
    """Nothing before the first one, then some, and never more than it may get; the order of writes does not matter."""
    incoming = SecureFile(tmp_path / "secure-file").incoming("x", room)
    assert incoming.path.stat().st_size == 0

    whole = bytes(range(1, 252)) * (room // 251 + 1)
    pieces = [(offset, whole[offset : min(offset + CHUNK, room)]) for offset in range(0, room, CHUNK)]
    for offset, content in pieces:
        incoming.digest(content, offset)
    incoming.write(pieces[0][1], 0)
    status = incoming.path.stat()
    assert (status.st_size, status.st_blocks * 512 >= status.st_size) == (min(room, 65 * CHUNK), True)
    for offset, content in reversed(pieces):
        incoming.write(content, offset)
    incoming.advance(room)

    assert incoming.seal_off() == blake3(whole[:room]).digest()
    assert incoming.path.read_bytes() == whole[:room]


def test_a_disk_without_room_refuses_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes it when there is room again."""
    incoming = SecureFile(tmp_path / "secure-file").incoming("x", 9)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse_to_write)
        with pytest.raises(KeystoreError, match=r"^secure file: cannot be written: No space left on device$"):
            incoming.add(b"all of it")
    assert (incoming.size, incoming.path.stat().st_size) == (0, 0)
    incoming.add(b"all of it")

    assert incoming.seal_off() == blake3(b"all of it").digest()
    assert incoming.path.read_bytes() == b"all of it"


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_sets_nothing_aside_is_written_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """It grows then."""

    def unable(_descriptor: int, _offset: int, _size: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", unable)
    incoming = SecureFile(tmp_path / "secure-file").incoming("x", CHUNK + 9)
    incoming.add(bytes(CHUNK))
    assert incoming.path.stat().st_size == CHUNK
    incoming.add(b"all of it")

    assert incoming.seal_off() == blake3(bytes(CHUNK) + b"all of it").digest()
    assert incoming.path.read_bytes() == bytes(CHUNK) + b"all of it"
