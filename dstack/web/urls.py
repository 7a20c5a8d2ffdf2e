"""URLs of servers: what is read in them, and which lead to this machine."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def split_url(text: str) -> SplitResult:
    """An http or https URL with a host, and a port that can be connected to if it names one.

    Raises:
        ValueError: It is not one; the text is not repeated, because a URL may hold a credential.
    """
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    # The splitting leaves line ends and tabs out without a word.
    if not is_url or not text.isprintable():
        raise ValueError("want an http or https URL with a host, and no port or one from 1 to 65535")
    return parts


def shown_url(url: str) -> str:
    """Scheme, host and port: what may be shown of a URL. The rest may hold a credential.

    Raises:
        ValueError: As `split_url`.
    """
    parts = split_url(url)
    host, port = parts.hostname or "", parts.port
    shown = f"{parts.scheme}://[{host}]" if ":" in host else f"{parts.scheme}://{host}"
    return shown if port is None else f"{shown}:{port}"


def address_of(host: str) -> Address | None:
    """The address that *host* is, also in the short and numeric forms that resolvers take; None for a name."""
    try:
        address: Address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    return getattr(address, "ipv4_mapped", None) or address


def is_this_machine(host: str) -> bool:
    """Whether *host* leads here without a resolver's word: localhost, loopback, or the address that means any."""
    name = host.lower().rstrip(".")
    address = address_of(name)
    return name == "localhost" or (address is not None and (address.is_loopback or address.is_unspecified))
