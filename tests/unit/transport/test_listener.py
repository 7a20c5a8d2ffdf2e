"""Listening: addresses, limits, stopping."""

from __future__ import annotations

import asyncio
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from dstack.errors import ConfigError
from dstack.transport import listener as listener_module
from dstack.transport.listener import Listener


def app() -> FastAPI:
    """An application that answers `/` with `true`."""
    application = FastAPI()
    application.add_api_route("/", lambda: True)
    return application


def test_free_port_is_found_and_given_back() -> None:
    """Port 0 takes a free port, and after the end nobody listens there."""
    with Listener(app()).running() as listener:
        assert httpx.get(f"http://127.0.0.1:{listener.port}/").json() is True

    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{listener.port}/")


def test_taken_port_is_named() -> None:
    """A port that somebody has is a setting at fault, found before anything is served."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(ConfigError, match=f"want to listen at 127.0.0.1:{port}, got Address already in use"):
            Listener(app(), port=port)


def test_unknown_host_is_named() -> None:
    """A host that does not exist is a setting at fault."""
    with pytest.raises(ConfigError, match="want to listen at no such host:0"):
        Listener(app(), host="no such host")


STARTS_WITHOUT_FILES = """
import resource, sys
from fastapi import FastAPI
from dstack.errors import ConfigError
from dstack.transport.listener import Listener

with Listener(FastAPI()).running():
    pass  # What is loaded late is loaded now.
beside, alone = Listener(FastAPI()), Listener(FastAPI())
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
for listener, start in ((beside, beside.running().__enter__), (alone, alone.run)):
    try:
        start()
        print("taken as running")
    except ConfigError as exc:
        print(str(exc).replace(str(listener.port), "PORT"))
"""


def test_a_start_that_fails_is_told_to_whoever_waits_for_it() -> None:
    """A listener that cannot start for want of files is not taken as running, beside the caller or in its place."""
    program = [sys.executable, "-c", STARTS_WITHOUT_FILES]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)

    assert ended.stdout.splitlines() == ["want to listen at 127.0.0.1:PORT, got Too many open files"] * 2


def test_unix_socket_has_the_mode_and_goes_away(tmp_path: Path) -> None:
    """The socket has the permissions asked for, answers, and is removed at the end."""
    path = tmp_path / "agent.sock"

    with Listener(app(), unix_socket=path, unix_mode=0o620).running():
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://agent/").json() is True
        assert stat.S_IMODE(path.stat().st_mode) == 0o620

    assert not path.exists()


def test_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    """A socket left behind by a program that died is in nobody's way."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    with Listener(app(), unix_socket=path).running():
        assert path.is_socket()


def test_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    """A second listener at the same path is refused, and the first goes on."""
    path = tmp_path / "agent.sock"

    with Listener(app(), unix_socket=path).running():
        with pytest.raises(ConfigError, match=r"agent\.sock, got Address already in use"):
            Listener(app(), unix_socket=path)
        assert path.is_socket()


def test_file_at_the_path_of_a_unix_socket_is_kept(tmp_path: Path) -> None:
    """A file that is no socket is never removed."""
    path = tmp_path / "agent.sock"
    path.write_text("precious")

    with pytest.raises(ConfigError, match="Address already in use"):
        Listener(app(), unix_socket=path)

    assert path.read_text() == "precious"


@pytest.mark.parametrize("target", ["precious", "dead.sock", "nothing"])
def test_link_at_the_path_of_a_unix_socket_is_kept(tmp_path: Path, target: str) -> None:
    """A link is never removed nor followed, wherever it leads: to a file, to a socket of the dead, to nothing."""
    (tmp_path / "precious").touch(0o600)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    path = tmp_path / "agent.sock"
    path.symlink_to(tmp_path / target)
    before = sorted((each.name, each.lstat().st_mode) for each in tmp_path.iterdir())

    with pytest.raises(ConfigError, match="Address already in use"):
        Listener(app(), unix_socket=path, unix_mode=0o777)

    assert sorted((each.name, each.lstat().st_mode) for each in tmp_path.iterdir()) == before
    assert path.readlink() == tmp_path / target


def test_socket_of_another_kind_is_kept(tmp_path: Path) -> None:
    """A socket that takes datagrams is in use, though nobody can connect to it as to ours."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))

        with pytest.raises(ConfigError, match="Address already in use"):
            Listener(app(), unix_socket=path)

    assert path.is_socket()


def test_busy_unix_socket_is_left_alone(tmp_path: Path) -> None:
    """Where somebody listens who takes no connection now, the start fails at once and does not wait for that."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))

        with pytest.raises(ConfigError, match="Address already in use"):
            Listener(app(), unix_socket=path)

    assert path.is_socket()


@pytest.mark.parametrize("kind", ["link", "hard link", "file"])
def test_what_takes_the_place_of_a_new_socket_keeps_its_mode(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who writes to the folder swaps the socket before its mode is set: the start fails, nothing is opened."""
    victim, path = tmp_path / "victim.sock", tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(victim))
    victim.chmod(0o600)
    put = {
        "link": lambda: path.symlink_to(victim),
        "hard link": lambda: path.hardlink_to(victim),
        "file": lambda: path.touch(0o600),
    }[kind]

    class Swapped(socket.socket):
        def bind(self, address: str) -> None:  # type: ignore[override]
            super().bind(address)
            path.unlink()
            put()

    monkeypatch.setattr(socket, "socket", Swapped)
    with pytest.raises(ConfigError, match=r"agent\.sock, got something else at this path"):
        Listener(app(), unix_socket=path, unix_mode=0o777)

    assert [stat.S_IMODE(each.stat().st_mode) for each in (victim, path)] == [0o600, 0o600]


@pytest.mark.parametrize("kind", ["link", "file", "socket"])
def test_what_takes_the_place_of_a_socket_that_serves_stays(tmp_path: Path, kind: str) -> None:
    """At the end a listener removes its own socket, and nothing that somebody put at its path meanwhile."""
    path, other = tmp_path / "agent.sock", tmp_path / "other"

    with Listener(app(), unix_socket=path).running(), socket.socket(socket.AF_UNIX) as following:
        {
            "link": lambda: other.symlink_to("nothing"),
            "file": other.touch,
            "socket": lambda: following.bind(str(other)),
        }[kind]()
        other.replace(path)
        put = path.lstat()

    assert path.lstat().st_ino == put.st_ino


def test_socket_that_somebody_removed_is_no_error_at_the_end(tmp_path: Path) -> None:
    """A listener whose socket is gone ends as any other."""
    path = tmp_path / "agent.sock"

    with Listener(app(), unix_socket=path).running():
        path.unlink()

    assert not path.exists()


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_headers_that_do_not_come_end_the_connection(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a header closes the connection after a while: the first on it, and a later one too."""
    monkeypatch.setattr(listener_module, "HEADER_SECONDS", 0.3)

    with (
        Listener(app()).running() as listener,
        socket.create_connection(("127.0.0.1", listener.port), timeout=10) as connection,
    ):
        connection.sendall(first + b"GET / HTTP/1.1\r\nHost:")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))

    assert answer[:15] == (b"HTTP/1.1 200 OK" if first else b"")


def test_too_large_headers_are_refused() -> None:
    """Headers that go beyond the limit without an end answer 400 and end the connection."""
    with (
        Listener(app()).running() as listener,
        socket.create_connection(("127.0.0.1", listener.port), timeout=10) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"x" * listener_module.HEADER_LIMIT)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))

    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"\0\r\n\r\n", b""),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"no length\r\n"),
    ],
    ids=["no request", "no body"],
)
def test_strangers_write_nothing_into_the_log(first: bytes, then: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """What is no HTTP ends the connection, also behind an answer, and leaves no line: there may be any number of it."""
    with (
        Listener(app()).running() as listener,
        socket.create_connection(("127.0.0.1", listener.port), timeout=10) as connection,
    ):
        connection.sendall(first)
        answer = connection.recv(4096)
        connection.sendall(then)
        while connection.recv(4096):
            pass

    assert answer[:10] == b"HTTP/1.1 4"
    assert caplog.records == []


@pytest.mark.parametrize(("lines", "status"), [(200, b"200"), (201, b"400")])
def test_heads_of_too_many_lines_are_refused(lines: int, status: bytes) -> None:
    """Each line of a head takes a while to read, for which nobody else is answered: more than 200 are not read."""
    with (
        Listener(app()).running() as listener,
        socket.create_connection(("127.0.0.1", listener.port), timeout=10) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"a:\r\n" * (lines - 3) + b"\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))

    assert answer.startswith(b"HTTP/1.1 " + status)


def test_lines_of_a_body_are_not_counted() -> None:
    """What follows the head may have as many lines as it likes."""
    body = b"\n" * 1000
    with Listener(app()).running() as listener:
        answer = httpx.request("GET", f"http://127.0.0.1:{listener.port}/", content=body)

    assert answer.status_code == 200


def test_a_client_that_takes_no_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that waits to be taken does not hold its connection and its content for ever."""
    monkeypatch.setattr(listener_module, "WRITE_SECONDS", 0.3)
    ended = threading.Event()
    application = FastAPI()

    async def parts() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1 << 20)
                await asyncio.sleep(0)
        finally:
            ended.set()

    application.add_api_route("/", lambda: StreamingResponse(parts()), response_model=None)
    with (
        Listener(application).running() as listener,
        socket.create_connection(("127.0.0.1", listener.port), timeout=10) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ended.wait(10)


def test_stop_lets_a_running_request_end() -> None:
    """What was asked before the stop is still answered."""
    entered, leave = threading.Event(), threading.Event()
    application = FastAPI()

    def slow() -> bool:
        entered.set()
        return leave.wait(10)

    application.add_api_route("/", slow)
    answers: list[httpx.Response] = []

    with Listener(application).running() as listener:
        url = f"http://127.0.0.1:{listener.port}/"
        caller = threading.Thread(target=lambda: answers.append(httpx.get(url, timeout=20)))
        caller.start()
        assert entered.wait(10)
        listener.stop()
        leave.set()
        caller.join()

    assert [answer.json() for answer in answers] == [True]
