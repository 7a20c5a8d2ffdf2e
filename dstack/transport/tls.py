"""TLS contexts that carry RA-TLS certificates.

A chain that ends at the temporary CA proves nothing, because its private key is handed out to everybody; what counts
is evidence inside the certificate that is bound to its key. So these contexts only see to it that a presented
certificate is possessed; reading it is for the caller (kms.md sections 4.4 and 4.5).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dstack.errors import KeyMalformedError


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A certificate and its private key in PEM; the key does not show in `repr`."""

    certificate_pem: str
    key_pem: str = field(repr=False)


def server_context(identity: TlsIdentity, *, client_ca_pem: str) -> ssl.SSLContext:
    """The server's side: a client may come without a certificate, or with one that `client_ca_pem` signed.

    X.509 strict mode stays off: RA-TLS certificates carry no authority key identifier. TLS 1.3 without session tickets:
    every connection presents its certificate anew, and nothing of it is kept. Of 1.2 the library would keep 20480
    sessions for hours, each with the certificate that a stranger chose.

    Raises:
        KeyMalformedError: The certificate and the key are unreadable or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    _load_identity(context, identity)
    context.verify_mode = ssl.CERT_OPTIONAL
    _load_authority(context, client_ca_pem)
    return context


def client_context(*, ca_pem: str, identity: TlsIdentity | None = None) -> ssl.SSLContext:
    """The client's side: the server's chain must end at `ca_pem` and carry the host's name.

    Raises:
        KeyMalformedError: The authority or the identity is unreadable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_authority(context, ca_pem)
    if identity is not None:
        _load_identity(context, identity)
    return context


def unauthenticated_client_context(identity: TlsIdentity | None = None) -> ssl.SSLContext:
    """Any server will do: only for a first contact, or where the peer's evidence is verified instead of its chain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        _load_identity(context, identity)
    return context


def _load_identity(context: ssl.SSLContext, identity: TlsIdentity) -> None:
    with _memory_file(identity.certificate_pem) as certificate, _memory_file(identity.key_pem) as key:
        try:
            context.load_cert_chain(certificate, key)
        except ssl.SSLError as exc:
            raise KeyMalformedError(f"TLS identity: want a certificate and its key in PEM, got {exc.reason}") from exc


def _load_authority(context: ssl.SSLContext, ca_pem: str) -> None:
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as exc:
        raise KeyMalformedError("TLS authority: want certificates in PEM, got something else") from exc


@contextmanager
def _memory_file(text: str) -> Iterator[str]:
    """A path to *text* that exists in memory only: `ssl` reads keys from files, and a key must not reach a disk."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
