"""The way to a local key provider: one question and one answer over TCP, each in its frame."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from dstack.errors import MessageMalformedError, PeerUnavailableError
from dstack.wire.key_provider import (
    HEAD_SIZE,
    SealingKeyAnswer,
    SealingKeyRequest,
    frame,
    framed_size,
    parse_answer,
    serialise_request,
)

SECONDS = 30.0
_PIECE = 64 << 10


@dataclass(frozen=True, slots=True)
class KeyProviderClient:
    """Asks the provider at one address; nothing is trusted that it answers.

    Attributes:
        host: Name or address.
        port: TCP port.
        seconds: How long one question may take, from the first byte to the last.
    """

    host: str
    port: int
    seconds: float = SECONDS

    def ask(self, request: SealingKeyRequest) -> SealingKeyAnswer:
        """Ask, and read the answer.

        Raises:
            PeerUnavailableError: There is no answer in time, or none of its form.
        """
        until = time.monotonic() + self.seconds
        try:
            with socket.create_connection((self.host, self.port), timeout=self.seconds) as connection:
                _set_rest(connection, until)
                connection.sendall(frame(serialise_request(request)))
                size = framed_size(_receive(connection, HEAD_SIZE, until))
                return parse_answer(_receive(connection, size, until))
        except TimeoutError as exc:
            raise self._failed(f"no answer within {self.seconds:g} seconds") from exc
        except (OSError, MessageMalformedError) as exc:
            raise self._failed(str(getattr(exc, "strerror", None) or exc)) from exc

    def _failed(self, what: str) -> PeerUnavailableError:
        return PeerUnavailableError(f"key provider at {self.host}:{self.port}: {what}")


def _receive(connection: socket.socket, size: int, until: float) -> bytes:
    received = bytearray()
    while len(received) < size:
        _set_rest(connection, until)
        piece = connection.recv(min(_PIECE, size - len(received)))
        if not piece:
            raise MessageMalformedError(f"frame: want {size} bytes, the connection ended after {len(received)}")
        received += piece
    return bytes(received)


def _set_rest(connection: socket.socket, until: float) -> None:
    rest = until - time.monotonic()
    if rest <= 0:
        raise TimeoutError
    connection.settimeout(rest)
