"""Collateral: Intel's (or a simulator's) signed statements about a platform, as one JSON object."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields

from dstack.attestation.content_cache import content_key
from dstack.attestation.tcb import QeIdentity, TcbInfo, parse_qe_identity, parse_tcb_info
from dstack.errors import CollateralMalformedError
from dstack.measurement.strict_json import Members, parse_json

_SIGNATURE = 64
_MAX_COLLATERAL = 4 * 1024 * 1024
# Sent along by some caches; the quote carries its own chain, so it is not used.
_IGNORED = frozenset({"pck_certificate_chain"})


@dataclass(frozen=True, slots=True)
class Collateral:
    """Chains are PEM text, CRLs DER, signatures 64 bytes r||s over the exact text of the document before them.

    `digest` names the content: what was concluded from it holds for the same digest.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes
    digest: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = (getattr(self, name) for name in NAMES)
        digest = content_key(
            *(value if isinstance(value, bytes) else value.encode(errors="surrogatepass") for value in values)
        )
        object.__setattr__(self, "digest", digest)

    def parsed_tcb_info(self) -> TcbInfo:
        """The TCB info document, parsed."""
        return parse_tcb_info(self.tcb_info)

    def parsed_qe_identity(self) -> QeIdentity:
        """The QE identity document, parsed."""
        return parse_qe_identity(self.qe_identity)


NAMES = tuple(each.name for each in fields(Collateral) if each.init)


def parse_collateral(text: str | bytes) -> Collateral:
    """Read collateral, both documents in it included. Verifies no signature.

    Args:
        text: A JSON object of nine strings; the CRLs and signatures in hexadecimal.

    Raises:
        CollateralMalformedError: A field is missing, unknown, repeated, or not of its form.
    """
    value = parse_json(text, what="collateral", limit=_MAX_COLLATERAL, error=CollateralMalformedError)
    document = Members.of(value, what="collateral", error=CollateralMalformedError)
    document.refuse_others(_IGNORED.union(NAMES))
    collateral = Collateral(
        pck_crl_issuer_chain=document.text("pck_crl_issuer_chain"),
        root_ca_crl=_hexadecimal(document, "root_ca_crl"),
        pck_crl=_hexadecimal(document, "pck_crl"),
        tcb_info_issuer_chain=document.text("tcb_info_issuer_chain"),
        tcb_info=document.text("tcb_info"),
        tcb_info_signature=_signature(document, "tcb_info_signature"),
        qe_identity_issuer_chain=document.text("qe_identity_issuer_chain"),
        qe_identity=document.text("qe_identity"),
        qe_identity_signature=_signature(document, "qe_identity_signature"),
    )
    collateral.parsed_tcb_info()
    collateral.parsed_qe_identity()
    return collateral


def serialise_collateral(collateral: Collateral) -> str:
    """Write collateral as `parse_collateral` reads it."""
    values = {name: getattr(collateral, name) for name in NAMES}
    return json.dumps({name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()})


def _hexadecimal(document: Members, name: str) -> bytes:
    """Digits alone: the quote library reads no `0x`, and both verifiers must read the same."""
    if document.text(name)[:2] in ("0x", "0X"):
        raise CollateralMalformedError(f"collateral: {name}: want hexadecimal without 0x")
    return document.hexadecimal(name)


def _signature(document: Members, name: str) -> bytes:
    raw = _hexadecimal(document, name)
    if len(raw) != _SIGNATURE:
        raise CollateralMalformedError(f"collateral: {name}: want {_SIGNATURE} bytes, got {len(raw)}")
    return raw
