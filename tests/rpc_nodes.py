"""Small JSON-RPC nodes on real sockets, each with a chain and manners of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from dstack.policy import BlockRef
from dstack.values import Digest32
from tests.http_answers import QuietHandler, QuietServer

GENESIS = 1_800_000_000
TARGET = "0x" + "11" * 20


def _every_12_seconds(number: int) -> int:
    return GENESIS + 12 * number


def block_at(number: int, fork: str = "main") -> BlockRef:
    """The block of this number on a fork; one every 12 seconds."""
    return BlockRef(number, Digest32(sha256(f"{fork} {number}".encode()).digest()), _every_12_seconds(number))


@dataclass
class Node:
    """One node; every member may be changed while it runs.

    Attributes:
        head: Number of the block it stands at.
        fork_from: From this number on it is on a fork of its own; None for none.
        at: The time of its blocks, by number.
        say: What contracts answer, by call data and block number; None reverts.
        hang: Answers nothing while it is set.
        raw: Answers these bytes to everything.
        status: The HTTP status of every answer.
        asked: The methods of every request, in order.
    """

    chain_id: int = 1
    head: int = 100
    fork_from: int | None = None
    fork: str = "other"
    at: Callable[[int], int] = _every_12_seconds
    say: Callable[[bytes, int], bytes | None] = lambda _data, _number: b"yes"
    hang: threading.Event = field(default_factory=threading.Event)
    raw: bytes | None = None
    status: int = 200
    asked: list[list[str]] = field(default_factory=list)
    port: int = 0
    _server: QuietServer | None = None

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self.port}"

    def block(self, number: int) -> BlockRef:
        """Its block of this number."""
        is_forked = self.fork_from is not None and number >= self.fork_from
        block = block_at(number, self.fork if is_forked else "main")
        return replace(block, timestamp=self.at(number))

    def start(self) -> None:
        """Listen; at the same port as before, when it was started before."""
        node = self

        class Handler(QuietHandler):
            def serve(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if node.hang.is_set():
                    threading.Event().wait(2.5)
                if node.hang.is_set() or node._server is None:
                    self.close_connection = True
                    return
                answer = node.raw if node.raw is not None else node._answer(body)
                self.send_response(node.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        self._server = QuietServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, body: bytes) -> bytes:
        requests = json.loads(body)
        self.asked.append([request["method"] for request in requests])
        answers = [{"jsonrpc": "2.0", "id": request["id"], **self._outcome(request)} for request in requests]
        return json.dumps(answers[::-1]).encode()

    def _outcome(self, request: dict[str, Any]) -> dict[str, Any]:
        method, parameters = request["method"], request["params"]
        if method == "eth_chainId":
            return {"result": hex(self.chain_id)}
        if method == "eth_getBlockByNumber":
            number = int(parameters[0], 16) if parameters[0].startswith("0x") else self.head
            return {"result": _block_json(self.block(number)) if number <= self.head else None}
        numbers = (*range(10), *range(90, 120), self.head)
        known = {self.block(number).hash.hex(): number for number in numbers}
        number = known.get(parameters[-1]["blockHash"][2:], -1)
        if number < 0:
            return {"error": {"code": -32001, "message": "header not found"}}
        data = bytes.fromhex(parameters[0]["data"][2:]) if method == "eth_call" else b"code"
        said = self.say(data, number)
        if said is None:
            return {"error": {"code": 3, "message": "execution reverted", "data": "0x"}}
        return {"result": "0x" + said.hex()}


def _block_json(block: BlockRef) -> dict[str, str]:
    return {"number": hex(block.number), "hash": "0x" + block.hash.hex(), "timestamp": hex(block.timestamp)}


@contextmanager
def running(*nodes: Node) -> Iterator[None]:
    """Run *nodes* for the length of a `with` block."""
    try:
        for node in nodes:
            node.start()
        yield
    finally:
        for node in nodes:
            node.stop()
