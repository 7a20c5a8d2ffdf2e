"""What a URL of a server may be, and which lead to this machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dstack.chain.client import shown_endpoint
from dstack.cli.handover_session import Node
from dstack.errors import ConfigError, InputError
from dstack.transport.collateral_fetch import endpoint_url
from dstack.transport.server_certificate import fetch_server_certificate
from dstack.web.urls import is_this_machine, split_url
from kms.settings_form import trusted_url
from replicator.config import checked_urls


@pytest.mark.parametrize("url", ["http://host", "https://host:1/path", "https://[::1]:65535", "https://host:"])
def test_urls_of_servers_are_read(url: str) -> None:
    """Scheme, host, and a port or none."""
    assert split_url(url).geturl() == url


@pytest.mark.parametrize(
    "url",
    [
        *("https://host:0", "https://host:00", "https://host:65536", "https://host:x"),
        *("https://", "ftp://host", "host:80", "https://ho\tst", "https://host\n", "https://[::1", ""),
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    """Port 0 cannot be connected to, and is not taken for the scheme's own."""
    with pytest.raises(ValueError, match="want an http or https URL with a host, and no port or one from 1 to 65535"):
        split_url(url)


@pytest.mark.parametrize(
    "read",
    [
        endpoint_url,
        shown_endpoint,
        trusted_url,
        fetch_server_certificate,
        lambda url: Node.at(url, "old node"),
        lambda url: checked_urls((url,), what="rpc_urls"),
    ],
)
def test_port_0_is_refused_wherever_urls_are_read(read: Callable[[str], object]) -> None:
    """Every reader of URLs refuses it."""
    with pytest.raises((ConfigError, InputError, ValueError), match="want"):
        read("https://127.0.0.1:0")


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("127.0.0.1", True),
        ("127.255.0.3", True),
        ("127.1", True),
        ("2130706433", True),
        ("0.0.0.0", True),
        ("::1", True),
        ("::", True),
        ("::ffff:127.0.0.1", True),
        ("127.0.0.1.example", False),
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("::2", False),
        ("host", False),
        ("", False),
    ],
)
def test_what_is_this_machine(host: str, here: bool) -> None:
    """However loopback is spelled, and nothing that a resolver would have to be asked about."""
    assert is_this_machine(host) is here
