"""A deadline for whole HTTP exchanges: the library's own limits are for each wait, and a byte a wait lasts for ever."""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

_CONNECTED = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})


class ExchangeDeadline:
    """Within it, requests that are given `trace` as an extension lose their connections when the time is over.

    Args:
        seconds: How long all of it may take.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._timer = threading.Timer(self._seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """What httpx calls, as the request extension `trace`."""
        if event in _CONNECTED:
            connection = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._sockets.append(connection)
            if self.is_over:
                self._cut()

    def _cut(self) -> None:
        with self._lock:
            for connection in self._sockets:
                try:
                    # Not TLS's own shutdown, which another thread must not call.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
                except OSError:
                    continue
