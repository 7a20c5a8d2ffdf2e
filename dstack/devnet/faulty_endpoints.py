"""Endpoints in front of a chain that lie, hang or die when told to; real sockets, for tests and benchmarks."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from eth_abi.abi import encode
from eth_abi.exceptions import DecodingError

HANG_SECONDS = 3.0
_FORWARD_SECONDS = 10.0
_YES = encode(["bool", "string"], [True, ""]).hex()
_NO = encode(["bool", "string"], [False, "Compose hash not allowed"]).hex()


class FaultyEndpoint:
    """Forwards JSON-RPC to a chain, until it is told to misbehave.

    Attributes:
        lies: Turns answers of contracts round, and now and then the block and the chain.
        hangs: Takes requests and does not answer.
    """

    def __init__(self, chain_url: str) -> None:
        """Listen on loopback, in front of *chain_url*."""
        self.lies = False
        self.hangs = False
        self._chain = urlsplit(chain_url)
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self._random = random.Random(1)  # noqa: S311 - which lie comes next
        self.start()

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen again, at the same port."""
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self) -> None:
        """Stop listening, and cut every connection in the middle of whatever it carries."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        for connection in list(self._connections):
            # With a linger time of 0 the peer gets a reset, as from a process that was killed.
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.close()

    def answer(self, body: bytes, upstream: HTTPConnection) -> bytes:
        """What it says to a request."""
        upstream.request("POST", self._chain.path or "/", body, {"Content-Type": "application/json"})
        said = upstream.getresponse().read()
        return self._twisted(body, said) if self.lies else said

    def connect(self, connection: socket.socket) -> HTTPConnection:
        """Somebody connected; gives the connection to the chain that serves them."""
        self._connections.add(connection)
        return HTTPConnection(self._chain.hostname or "", self._chain.port or 80, timeout=_FORWARD_SECONDS)

    def disconnected(self, connection: socket.socket) -> None:
        """They are gone."""
        self._connections.discard(connection)

    def _twisted(self, body: bytes, said: bytes) -> bytes:
        kind = self._random.randrange(8)
        if kind == 0:
            return said[: len(said) // 2]
        asked, answers = json.loads(body), json.loads(said)
        by_id = {answer["id"]: answer for answer in answers}
        for request in asked:
            self._twist(request["method"], by_id[request["id"]], kind)
        return json.dumps(answers).encode()

    def _twist(self, method: str, answer: dict[str, Any], kind: int) -> None:
        result = answer.get("result")
        if method == "eth_call" and isinstance(result, str):
            answer["result"] = "0x" + (_NO if result == "0x" + _YES else _YES)
        elif method == "eth_chainId" and kind == 1:
            answer["result"] = "0x1"
        elif method == "eth_getBlockByNumber" and isinstance(result, dict) and kind in (2, 3):
            result["hash"] = "0x" + self._random.randbytes(32).hex()
            if kind == 3:
                result["number"] = hex(int(result["number"], 16) + self._random.randrange(1, 4))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], endpoint: FaultyEndpoint) -> None:
        self.endpoint = endpoint
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that was cut is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        """Open the connection to the chain with the one from the client."""
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upstream = self.server.endpoint.connect(self.connection)

    def finish(self) -> None:
        """Close both."""
        self._upstream.close()
        self.server.endpoint.disconnected(self.connection)
        with suppress(OSError):
            super().finish()

    def do_POST(self) -> None:
        """Answer, or do what the endpoint is for."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.endpoint.hangs:
            threading.Event().wait(HANG_SECONDS)
            self.close_connection = True
            return
        try:
            answer = self.server.endpoint.answer(body, self._upstream)
        except (OSError, HTTPException, DecodingError):
            self.close_connection = True
            return
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
        self.wfile.write(head.encode() + answer)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing to say."""


@contextmanager
def faulty_endpoints(chain_url: str, count: int) -> Iterator[list[FaultyEndpoint]]:
    """That many endpoints in front of one chain, for the length of a `with` block."""
    endpoints = [FaultyEndpoint(chain_url) for _ in range(count)]
    try:
        yield endpoints
    finally:
        for endpoint in endpoints:
            endpoint.kill()
