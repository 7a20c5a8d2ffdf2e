"""Kills a replicator at every write. Run as a program of one thread: `crash_driver.py FOLDER SCENARIO [MOMENT ...]`.

The world is made once. For each moment a child process is forked that goes through one round and kills itself there
with SIGKILL; then the node is started again on what is left on the disk, and what it holds is printed as JSON. In the
scenario `streaming` the child is a node at a socket that gets content of many chunks, and its moments are named.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import shutil
import signal
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
# A package of this name may be installed; as a program we find our own, as pytest does.
if "tests" not in sys.modules:
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__path__ = [str(ROOT / "tests")]

from dstack.keys.sealing_stream import CHUNK  # noqa: E402 - needs the path
from dstack.transport.listener import Listener  # noqa: E402
from replicator.app import replicator_app  # noqa: E402
from replicator.documents import serialise_request  # noqa: E402
from replicator.node import Replicator  # noqa: E402
from replicator.sending import Sending  # noqa: E402
from tests.worlds import Handover, Site, make_handover, make_node, receive  # noqa: E402

CHANGED = b"what the app wrote at the new node"
LARGE = b"".join(bytes([number]) * CHUNK for number in range(1, 35)) + b"end"
"""35 chunks, of which the last is no whole number of a disk's blocks; what is not written yet reads as zeros."""

_AUDITED = ("open", "os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir")


class Killer:
    """Counts what changes the disk, and kills this process before (or in the middle of) one of these."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.active = True
        pwrite, fsync = os.pwrite, os.fsync

        def half_pwrite(descriptor: int, content: Any, offset: int) -> int:
            if self.left == 1:
                pwrite(descriptor, content[: len(content) // 2], offset)
                self.step()
            # One that is refused comes again in another way: it does not count.
            written = pwrite(descriptor, content, offset)
            self.step()
            return written

        def counted_fsync(descriptor: int) -> None:
            self.step()
            fsync(descriptor)

        os.pwrite, os.fsync = half_pwrite, counted_fsync
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count opening for writing, renaming, linking and removing."""
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if event in _AUDITED:
            self.step()

    def step(self) -> None:
        """One more."""
        if not self.active:
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def die_inside(place: int) -> None:
    """Have this process die in the middle of the write at this offset; at the end, before the content is synced."""
    pwrite, fsync = os.pwrite, os.fsync

    def half_pwrite(descriptor: int, content: Any, offset: int) -> int:
        if offset != place:
            return pwrite(descriptor, content, offset)
        pwrite(descriptor, content[: len(content) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it lives")

    def fatal_fsync(descriptor: int) -> None:
        if place == len(LARGE):
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.pwrite, os.fsync = half_pwrite, fatal_fsync


def survives(at: int, act: Callable[[], object]) -> bool:
    """Do *act* in a child that dies at its step *at*; says whether it came to its end before."""
    child = os.fork()
    if child == 0:
        killer = Killer(at)
        act()
        killer.active = False
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, f"the child failed: {status}"
    return True


def started(world: Handover, name: str, seed: bytes) -> Replicator:
    """A node started anew on what is on its disk."""
    machine = world.old_machine if name == "old" else world.new_machine
    return make_node(world.folder / name, machine, world.site, world.chain, world.clock, seed=seed)


def request_of(node: Replicator) -> bytes:
    """Round 1."""
    return serialise_request(node.request_key()).encode()


def state(node: Replicator) -> dict[str, Any]:
    """What a node holds and keeps after its start."""
    folder = node.around.secure_file.path.parent
    held = node.around.secure_file.held() if node.around.secure_file.exists() else None
    custody = held.custody if held else None
    raw = node.around.secure_file.path.read_bytes() if held else None
    return {
        "content": raw if raw is None else raw.decode() if len(raw) < CHUNK else hashlib.sha256(raw).hexdigest(),
        "depth": custody.depth if custody else None,
        "fits": bool(held and custody and custody.links and custody.links[-1].terms.fingerprint == held.fingerprint),
        "receipts": sorted(path.name.split(".")[1] for path in (folder / "receipts").glob("*.json")),
        "strays": sorted(
            path.name
            for path in (*folder.glob("*secure-file*"), *(folder / "receipts").iterdir())
            if path.suffix != ".json" and path.name != "secure-file"
        ),
    }


def scenario(world: Handover, name: str) -> tuple[Callable[[], object], str]:
    """What is done until it dies, and by which node."""
    if name == "fresh":
        sending = world.old.onboard(world.request())
        return lambda: receive(world.new, sending), "new"
    if name == "replacing":
        world.hand_over()
        world.new_secure_file.write_bytes(CHANGED)
        sending = world.new.onboard(request_of(world.old))
        return lambda: receive(world.old, sending), "old"
    request = world.request()
    return lambda: world.old.onboard(request), "old"


def arrived(content: bytes, at: int) -> int:
    """How many bytes of what was to come are there, from offset *at* on; from the first one where that is the end."""
    first = at if at < len(LARGE) else 0
    pairs = zip(content[first:], LARGE[first:], strict=False)  # where no room is set aside, the file ends early
    return next((number for number, (came, due) in enumerate(pairs) if came != due), len(content) - first)


def killed_while_it_receives(at: int, node: Replicator, sending: Sending, chunks: list[bytes]) -> None:
    """Have a child serve *node*, post the whole stream to it, and wait for its death."""
    listener = Listener(replicator_app(node))
    child = os.fork()
    if child == 0:
        die_inside(at)
        listener.run()
        os._exit(1)
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=60)
    with suppress(ConnectionError):
        connection.request("POST", "/receiveKey", b"".join([sending.line.encode(), b"\n", *chunks]))
        connection.getresponse()
        os.kill(child, signal.SIGTERM)
    connection.close()
    _, status = os.waitpid(child, 0)
    died_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    assert died_by == signal.SIGKILL, f"moment {at}: it did not die: {status}"


def streaming(folder: Path, moments: list[int]) -> None:
    """The first node gets the large content back, over what it holds, and dies at each of *moments*."""
    world = make_handover(folder / "world", Site.make())
    world.hand_over()
    world.new_secure_file.write_bytes(LARGE)
    sending = world.new.onboard(request_of(world.old))
    chunks = list(map(bytes, sending.chunks(0)))
    before = folder / "before"
    shutil.copytree(folder / "world", before)
    for at in moments:
        killed_while_it_receives(at, world.old, sending, chunks)
        (incoming,) = (folder / "world" / "old").glob("secure-file.incoming.*")
        written = arrived(incoming.read_bytes(), at)
        node = started(world, "old", b"after crash %d" % at)
        found = state(node)
        receive(node, world.new.onboard(request_of(node)))
        print(json.dumps({"at": at, "written": written, **found, "recovered": state(node)["content"]}), flush=True)
        shutil.rmtree(folder / "world")
        shutil.copytree(before, folder / "world")


def main() -> int:
    """Print one line of JSON for every moment."""
    logging.disable()
    folder, name = Path(sys.argv[1]), sys.argv[2]
    if name == "streaming":
        streaming(folder, [int(each) for each in sys.argv[3:]])
        return 0
    world = make_handover(folder / "world", Site.make())
    act, who = scenario(world, name)
    before = folder / "before"
    shutil.copytree(folder / "world", before)
    done, at = False, 0
    while not done:
        at += 1
        done = survives(at, act)
        node = started(world, who, b"after crash %d" % at)
        found = state(node)
        again = started(world, "new" if who == "old" else "old", b"peer after crash %d" % at)
        if name != "answering":
            receive(node, again.onboard(request_of(node)))
        else:
            receive(again, node.onboard(request_of(again)))
        print(json.dumps({"at": at, "done": done, **found, "recovered": state(node)["content"]}), flush=True)
        shutil.rmtree(folder / "world")
        shutil.copytree(before, folder / "world")
    return 0


if __name__ == "__main__":
    sys.exit(main())
