"""The secure file on its disk, and the chain of custody beside it.

What is received is written beside the secure file and takes its place in one step, when all of it is there, synced and
of the fingerprint that the receipt names; until then the old content stays. `<file>.custody.next` says what was about
to happen, so that after a crash `recover` finishes it or undoes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from dstack.errors import InputError, KeystoreError
from dstack.keys.sealing_stream import CHUNK, MAX_CONTENT
from dstack.measurement.strict_json import Members
from dstack.transport.private_file import replace_private, sync_folder
from dstack.values import Digest32
from replicator.custody import MAX_CUSTODY, Custody, fingerprint_of, read_custody
from replicator.documents import MAX_EVIDENCE, MAX_INTEGER, document, inner
from replicator.receipts import KeptReceipt, ReceiptFolder

_INCOMING = ".incoming."
_AHEAD = 64 * CHUNK
_MAX_RECORD = 4 * MAX_CUSTODY
_MAX_NEXT = 16 * MAX_EVIDENCE
_TEMPORARY = "[0-9a-f]" * 16
"""How `replace_private` ends the name of what it has not renamed yet."""

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Held:
    """What a node holds.

    Attributes:
        digest: BLAKE3 of the content. As secret as the content: keys are derived from it.
        custody: Where it comes from; None where somebody put it there by hand.
        since: When it came, in Unix seconds.
    """

    digest: bytes = field(repr=False)
    size: int
    custody: Custody | None
    since: int

    @property
    def fingerprint(self) -> Digest32:
        """The public name of the content."""
        return fingerprint_of(self.digest)


def aligned_buffer(size: int) -> memoryview:
    """Memory that begins with a page: a disk can take from it directly.

    A file is also read into it at full speed. Some processors copy pages several times more slowly to a place 16 bytes
    behind the beginning of a page, where a large `bytearray` usually begins.
    """
    return memoryview(mmap.mmap(-1, size))


class Incoming:
    """Content on its way, in a file beside the secure file; chunks are added in order.

    It goes to the disk directly, where that can be: out of an `aligned_buffer`, a whole number of the disk's blocks.
    Copying it into the kernel's memory, and finding the pages again when it is synced, takes more than all the rest.

    Args:
        path: Where, and nothing is there yet.
        room: Bytes that it may get. Some are set aside ahead of each write, where that can be: a file that grows takes
            one write after the other, and this one two at the same time.

    Raises:
        KeystoreError: The disk refuses.
    """

    def __init__(self, path: Path, room: int = 0) -> None:
        try:
            self._descriptor = os.open(path, _NEW, 0o600)
        except OSError as exc:
            raise KeystoreError(f"secure file: {path.name} cannot be written: {exc.strerror}") from exc
        self.path = path
        self.size = 0
        self._hashes = {0: blake3()}  # of what comes before each offset, from `size` on
        self._room = room
        self._aside = 0
        self._lock = threading.Lock()
        try:
            self._set_direct(on=True)
        except OSError:
            self._room = 0  # not every file system can, and one that cannot grows as it did

    def add(self, content: bytes | memoryview) -> None:
        """Digest and write more.

        Raises:
            KeystoreError: The disk refuses.
        """
        self.digest(content, self.size)
        self.write(content, self.size)
        self.advance(self.size + len(content))

    def digest(self, content: bytes | memoryview, offset: int) -> None:
        """Take *content* into the digest, ahead of writing it; again where it comes again, for writing it failed."""
        following = self._hashes[offset].copy()
        following.update(content)
        self._hashes[offset + len(content)] = following

    def write(self, content: bytes | memoryview, offset: int) -> None:
        """Write what is digested; several threads may, each somewhere else.

        Raises:
            KeystoreError: The disk refuses.
        """
        try:
            self._set_aside(offset + len(content))
            written = 0
            while written < len(content):
                written += self._write_some(memoryview(content)[written:], offset + written)
        except OSError as exc:
            raise KeystoreError(f"secure file: cannot be written: {exc.strerror}") from exc

    def advance(self, size: int) -> None:
        """Everything before offset *size* is written."""
        self.size = size
        for offset in tuple(self._hashes):
            if offset < size:
                del self._hashes[offset]

    def _write_some(self, content: memoryview, offset: int) -> int:
        try:
            return os.pwrite(self._descriptor, content, offset)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            self._set_direct(on=False)
            return os.pwrite(self._descriptor, content, offset)

    def _set_aside(self, end: int) -> None:
        """See that there is room up to offset *end*, and somewhat beyond for the next ones."""
        with self._lock:
            if not self._aside < end <= self._room:
                return
            until = min(end + _AHEAD, self._room)
            try:
                # Where the file system cannot, the C library would write into every block; direct writing forbids it.
                os.posix_fallocate(self._descriptor, self._aside, until - self._aside)
            except OSError as exc:
                if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                self._room = 0
            self._aside = until

    def _set_direct(self, *, on: bool) -> None:
        direct = getattr(os, "O_DIRECT", 0)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, direct if on else 0)

    def seal_off(self) -> bytes:
        """Put all of it on the disk; its digest.

        Raises:
            KeystoreError: The disk refuses.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as exc:
            raise KeystoreError(f"secure file: cannot be synced: {exc.strerror}") from exc
        return self._hashes[self.size].digest()

    def discard(self) -> None:
        """Forget it."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, which stays or has become the secure file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SecureFile:
    """The payload of the replicator, at one path. Methods may be called from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record = path.with_name(f"{path.name}.custody.json")
        self._next = path.with_name(f"{path.name}.custody.next")
        self._lock = threading.Lock()
        self._known: tuple[tuple[int, ...], bytes] | None = None
        self._unfinished: tuple[dict[str, Any], ReceiptFolder] | None = None

    def hold(self) -> None:
        """Keep every other process away from it, as long as this one lives.

        Raises:
            KeystoreError: Another one has it, or its folder cannot be opened.
        """
        try:
            # The descriptor stays open: the lock ends with the process, however that ends.
            descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise KeystoreError(f"secure file: another process works in {self.path.parent}") from exc
        except OSError as exc:
            raise KeystoreError(f"secure file: {self.path.parent} cannot be used: {exc.strerror}") from exc

    def exists(self) -> bool:
        """Whether something is at the path, readable or not."""
        return self.path.is_symlink() or self.path.exists()

    def held(self) -> Held:
        """What is there now. Reads all of it, unless it has not changed since the last time.

        Raises:
            KeystoreError: It is not there, cannot be read, is empty or too large, or the record is damaged.
        """
        with self._lock:
            self._finish_late()
            with self.reading() as (descriptor, size):
                digest = self._digest(descriptor)
            custody, since = self._read_record()
        return Held(digest, size, custody, since)

    def digest(self) -> bytes:
        """`content_digest` of what is there now; as secret as that.

        Raises:
            KeystoreError: As `held`, but for the record, which is not asked for.
        """
        with self._lock, self.reading() as (descriptor, _):
            return self._digest(descriptor)

    @contextlib.contextmanager
    def reading_of(self, fingerprint: Digest32) -> Iterator[Callable[[memoryview, int], None]]:
        """A function that fills a buffer from an offset of the content of this fingerprint, and of no other.

        Raises:
            KeystoreError: As `held`; or it is other content, or changes meanwhile.
        """
        with self.reading() as (descriptor, _):
            with self._lock:
                found, signature = fingerprint_of(self._digest(descriptor)), _signature(descriptor)

            def read_into(buffer: memoryview, offset: int) -> None:
                count = os.preadv(descriptor, [buffer], offset)
                if count != len(buffer) or found != fingerprint or _signature(descriptor) != signature:
                    raise KeystoreError("secure file: it has changed since the answer was made; ask again")

            yield read_into

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[int, int]]:
        """A file descriptor of the content, and its size; no link is followed.

        Raises:
            KeystoreError: As `held`.
        """
        try:
            descriptor = os.open(self.path, _READ)
        except FileNotFoundError as exc:
            raise KeystoreError("secure file: want one, got none: this node holds none yet") from exc
        except OSError as exc:
            raise KeystoreError(f"secure file: cannot be read: {exc.strerror}") from exc
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_CONTENT:
                raise KeystoreError(f"secure file: want a file of 1 to {MAX_CONTENT} bytes, got {status.st_size}")
            yield descriptor, status.st_size
        finally:
            os.close(descriptor)

    def incoming(self, name: str, room: int = 0) -> Incoming:
        """A place for content on its way; *name* distinguishes it from others. As `Incoming`."""
        return Incoming(self.path.with_name(f"{self.path.name}{_INCOMING}{name}"), room)

    def replace(
        self, incoming: Incoming, custody: Custody, *, at: int, receipt: KeptReceipt, to: ReceiptFolder
    ) -> None:
        """Have *incoming*, which was sealed off and verified, take the place of the secure file.

        A crash at any moment leaves the old content with the old record or, after `recover`, the new with the new.
        Nobody is told of the new content with the old record: where the disk refuses the new one, `held` tries again.

        Raises:
            KeystoreError: The disk refuses, or a link is in the way.
        """
        record = {"custody": custody.members(), "since": at}
        plan = {"incoming": incoming.path.name, "record": record, "receipt": receipt.members(), "name": receipt.name}
        try:
            with self._lock:
                self._finish_late()
                self._take_place(incoming, plan)
                self._unfinished = plan, to
                sync_folder(self.path.parent)
                self._finish_late()
        except OSError as exc:
            raise KeystoreError(f"secure file: cannot be replaced: {exc.strerror}") from exc
        finally:
            incoming.close()

    def recover(self, receipts: ReceiptFolder) -> None:
        """After a crash: finish what had begun to take the secure file's place, or undo it. For the start.

        Raises:
            KeystoreError: The disk refuses, or the plan is damaged.
        """
        try:
            plan = self._read_plan()
            if plan is not None:
                if (self.path.parent / plan["incoming"]).exists():
                    self._next.unlink()
                else:
                    self._finish(plan, receipts)
            name = _escaped(self.path.name)
            for stray in (
                *self.path.parent.glob(f"{name}{_INCOMING}*"),
                # What was about to be renamed to the record, the plan or a receipt.
                *self.path.parent.glob(f".{name}.custody.*.{_TEMPORARY}"),
                *receipts.path.glob(f".*.json.{_TEMPORARY}"),
            ):
                stray.unlink()
        except OSError as exc:
            raise KeystoreError(f"secure file: cannot recover: {exc.strerror}") from exc

    def _take_place(self, incoming: Incoming, plan: dict[str, Any]) -> None:
        """Rename, with the plan beside it; where that fails there is no plan, which would be taken for done later."""
        if self.path.is_symlink():
            raise KeystoreError("secure file: want a file or nothing, got a link")
        try:
            replace_private(self._next, json.dumps(plan).encode())
            incoming.path.replace(self.path)
        except OSError:
            self._next.unlink(missing_ok=True)
            raise

    def _finish_late(self) -> None:
        """Record what took the secure file's place, where that was not done yet; for whoever has the lock."""
        if self._unfinished is None:
            return
        try:
            self._finish(*self._unfinished)
        except OSError as exc:
            raise KeystoreError(f"secure file: its custody cannot be recorded: {exc.strerror}") from exc
        self._unfinished = None

    def _finish(self, plan: dict[str, Any], receipts: ReceiptFolder) -> None:
        receipts.write(plan["name"], plan["receipt"])
        replace_private(self._record, json.dumps(plan["record"]).encode())
        self._next.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def _read_plan(self) -> dict[str, Any] | None:
        raw = _read(self._next, _MAX_NEXT)
        if raw is None:
            return None
        try:
            members = document(raw, what=self._next.name, limit=_MAX_NEXT)
            name, incoming = members.text("name"), members.text("incoming")
            if "/" in name + incoming:
                raise KeystoreError(f"{self._next.name}: want names, got a path")
            inner(members, "record"), inner(members, "receipt")
        except InputError as exc:
            raise KeystoreError(f"custody: {exc}") from exc
        return members.values

    def _read_record(self) -> tuple[Custody | None, int]:
        raw = _read(self._record, _MAX_RECORD)
        if raw is None:
            return None, int(self.path.stat().st_mtime)
        try:
            members: Members = document(raw, what="custody record", limit=_MAX_RECORD)
            return read_custody(inner(members, "custody")), members.integer("since", maximum=MAX_INTEGER)
        except InputError as exc:
            raise KeystoreError(f"custody: {exc}") from exc

    def _digest(self, descriptor: int) -> bytes:
        signature = _signature(descriptor)
        if self._known is None or self._known[0] != signature:
            digest, buffer = blake3(), aligned_buffer(CHUNK)
            for offset in range(0, signature[0], CHUNK):
                digest.update(buffer[: os.preadv(descriptor, [buffer], offset)])
            if _signature(descriptor) != signature:
                raise KeystoreError("secure file: it changes while it is read")
            self._known = signature, digest.digest()
        return self._known[1]


def _signature(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def _read(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return stream.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise KeystoreError(f"{path.name}: cannot be read: {exc.strerror}") from exc


def _escaped(name: str) -> str:
    """*name* for `glob`, letter by letter."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
