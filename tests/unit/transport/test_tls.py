"""TLS as RA-TLS needs it, on loopback (kms.md 4.4, 4.5)."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress

import pytest

from dstack.errors import KeyMalformedError, PeerRefusedError, PeerUnavailableError
from dstack.transport.client import PrpcClient
from dstack.transport.listener import Listener
from dstack.transport.server import prpc_app
from dstack.transport.tls import (
    TlsIdentity,
    client_context,
    server_context,
    unauthenticated_client_context,
)
from dstack.wire.kms import AppIdRequest, PublicKeyResponse
from tests.unit.transport.conftest import Certificates


def call(url: str, tls: ssl.SSLContext) -> PublicKeyResponse:
    """The service's Echo; its `signature` is the certificate the server saw."""
    with PrpcClient(url, tls=tls) as client:
        return client.call("Echo", AppIdRequest(b"id"), PublicKeyResponse)


def test_client_without_certificate_is_served(tls_url: str, certificates: Certificates) -> None:
    """A client certificate is optional, and its absence reaches the method as None."""
    assert call(tls_url, client_context(ca_pem=certificates.root_ca_pem)).signature == b""


def test_client_certificate_reaches_the_method(tls_url: str, certificates: Certificates) -> None:
    """The certificate that the client presented reaches the method, byte for byte."""
    tls = client_context(ca_pem=certificates.root_ca_pem, identity=certificates.client)

    assert call(tls_url, tls).signature == ssl.PEM_cert_to_DER_cert(certificates.client.certificate_pem)


def test_client_certificate_of_another_authority_is_refused(
    tls_url: str, certificates: Certificates, strangers: Certificates
) -> None:
    """A certificate that the temporary CA did not sign ends the handshake."""
    tls = client_context(ca_pem=certificates.root_ca_pem, identity=strangers.client)

    with pytest.raises(PeerUnavailableError, match="Echo: no answer"):
        call(tls_url, tls)


def test_server_of_another_root_is_refused(tls_url: str, strangers: Certificates) -> None:
    """A client that knows one root does not talk to a server of another."""
    with pytest.raises(PeerUnavailableError, match="certificate verify failed"):
        call(tls_url, client_context(ca_pem=strangers.root_ca_pem))


def test_server_of_another_name_is_refused(tls_url: str, certificates: Certificates) -> None:
    """The name in the URL must be the name in the certificate."""
    with pytest.raises(PeerUnavailableError, match="IP address mismatch"):
        call(tls_url.replace("localhost", "127.0.0.1"), client_context(ca_pem=certificates.root_ca_pem))


def test_first_contact_takes_any_server(tls_url: str) -> None:
    """The context for a first contact knows no root and no name."""
    tls = unauthenticated_client_context()

    assert call(tls_url.replace("localhost", "127.0.0.1"), tls).public_key == b"id"


def test_first_contact_may_present_a_certificate(tls_url: str, certificates: Certificates) -> None:
    """Whoever verifies the server by its evidence can still show its own."""
    assert call(tls_url, unauthenticated_client_context(certificates.client)).signature != b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_server_keeps_nothing_of_a_connection(certificates: Certificates, version: ssl.TLSVersion) -> None:
    """No session is kept: strangers would fill the memory with certificates, and resume without showing theirs."""
    server = server_context(certificates.server, client_ca_pem=certificates.temp_ca_pem)
    client = unauthenticated_client_context(certificates.client)
    client.maximum_version = version
    with (
        Listener(prpc_app({}, prefix=""), tls=server).running() as listener,
        socket.create_connection(("127.0.0.1", listener.port)) as plain,
        suppress(ssl.SSLError),
        client.wrap_socket(plain) as tls,
    ):
        tls.sendall(b"GET /prpc/Any HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        tls.recv(1)

    assert server.session_stats()["accept"] == 1
    assert server.session_stats()["number"] == 0


def test_peer_is_judged_on_the_connection_that_answers(tls_url: str, certificates: Certificates) -> None:
    """The judge sees the server's certificate; if it refuses, there is no answer."""
    seen: list[bytes] = []

    def refuse(certificate: bytes) -> None:
        seen.append(certificate)
        raise PeerRefusedError("not this one")

    tls = client_context(ca_pem=certificates.root_ca_pem)
    with PrpcClient(tls_url, tls=tls, accept_peer=refuse) as client, pytest.raises(PeerRefusedError, match="not this"):
        client.call("Echo", AppIdRequest(b""), PublicKeyResponse)

    assert seen == [ssl.PEM_cert_to_DER_cert(certificates.server.certificate_pem)]


def test_certificate_without_its_key_is_refused(certificates: Certificates, strangers: Certificates) -> None:
    """A certificate beside somebody else's key makes no context."""
    mixed = TlsIdentity(certificates.server.certificate_pem, strangers.server.key_pem)

    with pytest.raises(KeyMalformedError, match="want a certificate and its key in PEM, got KEY_VALUES_MISMATCH"):
        server_context(mixed, client_ca_pem=certificates.temp_ca_pem)


def test_authority_that_is_no_certificate_is_refused() -> None:
    """An authority must be PEM."""
    with pytest.raises(KeyMalformedError, match="TLS authority: want certificates in PEM"):
        client_context(ca_pem="not a certificate")


def test_key_does_not_show(certificates: Certificates) -> None:
    """An identity can be printed without giving away its key."""
    assert "PRIVATE" not in repr(certificates.server)
