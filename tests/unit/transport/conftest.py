"""Certificates on both sides of a TLS connection, and a small service to call."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.errors import ChainUnavailableError, KeyReleaseDeniedError
from dstack.keys.certs import build_client_cert, build_root_ca, build_rpc_cert, build_temp_ca
from dstack.keys.pem import certificate_pem, private_key_pem
from dstack.transport.listener import Listener
from dstack.transport.server import CallContext, Method, prpc_app
from dstack.transport.tls import TlsIdentity, server_context
from dstack.wire.kms import AppIdRequest, GetMetaResponse, PublicKeyResponse

AT = datetime(2026, 1, 1, tzinfo=UTC)
SECONDS = 20.0


@dataclass(frozen=True)
class Certificates:
    """One server named localhost, and clients of its temporary CA."""

    root_ca_pem: str
    temp_ca_pem: str
    server: TlsIdentity
    client: TlsIdentity


def make_certificates() -> Certificates:
    """Fresh keys throughout."""
    root_key, temp_key, server_key, client_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
    root, temp = build_root_ca(root_key, at=AT), build_temp_ca(temp_key, at=AT)
    server = build_rpc_cert(server_key, root, root_key, "localhost", [], at=AT)
    client = build_client_cert(client_key, temp, temp_key, [], at=AT)
    return Certificates(
        root_ca_pem=certificate_pem(root),
        temp_ca_pem=certificate_pem(temp),
        server=TlsIdentity(certificate_pem(server), private_key_pem(server_key)),
        client=TlsIdentity(certificate_pem(client), private_key_pem(client_key)),
    )


def verifying(certificates: Certificates) -> ssl.SSLContext:
    """A client that trusts their root, and presents nothing."""
    context = ssl.create_default_context(cadata=certificates.root_ca_pem)
    # From Python 3.13 on the default wants key identifiers, which upstream's certificates do not have.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    """What the TLS tests use."""
    return make_certificates()


@pytest.fixture(scope="session")
def strangers() -> Certificates:
    """Certificates of another deployment."""
    return make_certificates()


def connected(port: int, address: str = "127.0.0.1") -> socket.socket:
    """A connection from *address* of this machine to a port of 127.0.0.1."""
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS, source_address=(address, 0))


def answered(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the next answer."""
    with connection.makefile("rb") as stream:
        status, length = int(stream.readline().split()[1]), 0
        while line := stream.readline().strip().lower():
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return status, stream.read(length)


def answered_json(connection: socket.socket) -> tuple[int, Any]:
    """The status and the JSON of the next answer."""
    status, body = answered(connection)
    return status, json.loads(body)


def _echo(request: AppIdRequest, context: CallContext) -> PublicKeyResponse:
    """The request comes back as `public_key`, the peer's certificate as `signature`."""
    return PublicKeyResponse(request.app_id, context.peer_certificate_der or b"", 7, b"")


def _deny(_request: None, _context: CallContext) -> GetMetaResponse:
    raise KeyReleaseDeniedError("OS_IMAGE", "App not allowed: Boot denied: OS image is not allowed", 12)


def _no_chain(_request: None, _context: CallContext) -> GetMetaResponse:
    raise ChainUnavailableError("no endpoint answered")


def _defect(_request: None, _context: CallContext) -> GetMetaResponse:
    raise ZeroDivisionError("a secret")


SERVICE = {
    "Echo": Method(AppIdRequest, _echo),
    "Nothing": Method(None, lambda _request, _context: None),
    "Deny": Method(None, _deny),
    "NoChain": Method(None, _no_chain),
    "Defect": Method(None, _defect),
}


@pytest.fixture(scope="session")
def plain_url() -> Iterator[str]:
    """The service over plain HTTP, mounted as the KMS's is."""
    with Listener(prpc_app(SERVICE, prefix="KMS.", headers={"X-App-Version": "v1"})).running() as listener:
        yield f"http://127.0.0.1:{listener.port}/prpc"


@pytest.fixture(scope="session")
def tls_url(certificates: Certificates) -> Iterator[str]:
    """The service over TLS."""
    tls = server_context(certificates.server, client_ca_pem=certificates.temp_ca_pem)
    with Listener(prpc_app(SERVICE, prefix="KMS."), tls=tls).running() as listener:
        yield f"https://localhost:{listener.port}/prpc"
