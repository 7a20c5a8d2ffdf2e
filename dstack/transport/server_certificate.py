"""The certificate that a TLS server shows: whoever shakes hands with it holds its key."""

from __future__ import annotations

import socket
import ssl

from dstack.errors import InputError, PeerUnavailableError
from dstack.transport.tls import unauthenticated_client_context
from dstack.web.urls import split_url

_DEFAULT_PORT = 443
_WAIT_SECONDS = 10.0
"""For connecting, and then for each wait of the handshake."""


def fetch_server_certificate(url: str) -> bytes:
    """Shake hands with a server and take its certificate (DER), whoever signed it.

    The handshake proves that the server holds the certificate's key, and nothing else: judge the evidence in it.

    Args:
        url: `https://host[:port]`; a path is not asked for.

    Raises:
        InputError: Another kind of URL.
        PeerUnavailableError: Nobody answers, or not in TLS.
    """
    host, port = _address(url)
    try:
        with (
            socket.create_connection((host, port), timeout=_WAIT_SECONDS) as connection,
            unauthenticated_client_context().wrap_socket(connection, server_hostname=host) as tls,
        ):
            certificate = tls.getpeercert(binary_form=True)
    except (OSError, ValueError) as exc:
        reason = exc.reason if isinstance(exc, ssl.SSLError) else exc
        raise PeerUnavailableError(f"{url[:200]}: no TLS server: {reason or type(exc).__name__}") from exc
    if not certificate:
        raise PeerUnavailableError(f"{url[:200]}: the server showed no certificate")
    return certificate


def _address(url: str) -> tuple[str, int]:
    try:
        parts = split_url(url)
    except ValueError as exc:
        raise InputError(f"URL: want https://host:port, got {url[:200]!r}") from exc
    if parts.scheme != "https":
        raise InputError(f"URL: want https://host:port, got {url[:200]!r}")
    return parts.hostname or "", parts.port or _DEFAULT_PORT
