"""A server on a real socket that answers what a test wants, and remembers what it was asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class QuietHandler(BaseHTTPRequestHandler):
    """Answers GET and POST alike, keeps its connections, and writes no log."""

    protocol_version = "HTTP/1.1"

    def serve(self) -> None:
        """Answer one request."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer it."""
        self.serve()

    def do_POST(self) -> None:
        """Answer it."""
        self.serve()

    def log_message(self, *arguments: object) -> None:
        """Nothing to say."""


class QuietServer(ThreadingHTTPServer):
    """Does not wait for its connections when it ends, and does not mind those that are cut."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, *arguments: object) -> None:
        """Nothing to say."""


@dataclass
class Answering:
    """The server: `answer` gets method, path and body, and gives status and body; None says nothing for 3 s."""

    answer: Callable[[str, str, bytes], tuple[int, bytes] | None]
    url: str = ""
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)


@contextmanager
def answering(answer: Callable[[str, str, bytes], tuple[int, bytes] | None]) -> Iterator[Answering]:
    """Run one for the length of a `with` block."""
    state = Answering(answer)

    class Handler(QuietHandler):
        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            state.asked.append((self.command, self.path, body))
            state.agents.append(self.headers.get("User-Agent", ""))
            said = state.answer(self.command, self.path, body)
            if said is None:
                threading.Event().wait(3)
                self.close_connection = True
                return
            self.send_response(said[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said[1])))
            self.end_headers()
            self.wfile.write(said[1])

    server = QuietServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Trickle:
    """A server of bytes, now and then; `given_up` when a client has closed its connection."""

    url: str
    given_up: threading.Event = field(default_factory=threading.Event)


@contextmanager
def trickling(start: bytes, *, seconds: float = 0.05) -> Iterator[Trickle]:
    """A service that answers each connection *start* and then a byte every so many *seconds*, without end."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()
    state, threads = Trickle(f"http://127.0.0.1:{listener.getsockname()[1]}"), list[threading.Thread]()

    def speak(connection: socket.socket) -> None:
        try:
            with connection:
                connection.sendall(start)
                while not over.wait(seconds):
                    connection.sendall(b"x")
        except OSError:
            state.given_up.set()

    def serve() -> None:
        with suppress(OSError):
            while not over.is_set():
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=speak, args=(connection,)))
                threads[-1].start()

    acceptor = threading.Thread(target=serve)
    acceptor.start()
    try:
        yield state
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (acceptor, *threads):
            thread.join(10)
