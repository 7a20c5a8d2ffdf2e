"""Connections within this machine, without the pauses that bbr makes between packets where it is the default.

What begins with bbr keeps its pauses when it is told of another way, so it is told before it connects or listens.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress


def leave_unpaced(unconnected: socket.socket, address: str) -> None:
    """Have *unconnected* send as fast as it is taken, if *address*, its own or the peer's, is of this machine."""
    # An address may be a path; and only Linux has the option, which may be told to allow no other way.
    with suppress(ValueError, OSError, AttributeError):
        if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            unconnected.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def connect(host: str, port: int, timeout: float | None) -> socket.socket:
    """As `socket.create_connection`, left unpaced.

    Raises:
        OSError: As that.
    """
    failed = OSError(f"{host}: want an address, got none")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            leave_unpaced(connection, str(address[0]))
            connection.connect(address)
        except OSError as exc:
            connection.close()
            failed = exc
        else:
            return connection
    raise failed
