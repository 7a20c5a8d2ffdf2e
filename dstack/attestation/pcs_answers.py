"""Answers of Intel's PCS, version 4, and of its caches (PCCS): bytes to the parts of collateral.

    what            asked for at                                            issuer chain in the header
    TCB info        /{sgx,tdx}/certification/v4/tcb?fmspc=HEX               TCB-Info-Issuer-Chain
    QE identity     /{sgx,tdx}/certification/v4/qe/identity                 SGX-Enclave-Identity-Issuer-Chain
    PCK CRL         /sgx/certification/v4/pckcrl?ca=C&encoding=der          SGX-PCK-CRL-Issuer-Chain
    root CA CRL     /sgx/certification/v4/rootcacrl (caches), or where the root certificate says

Chains are PEM, percent-encoded. CRLs come as DER, as PEM, or as the hexadecimal of DER, whatever was asked for. Nothing
is verified here.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode

from dstack.errors import CollateralMalformedError
from dstack.measurement.strict_json import Members, parse_json

TCB_INFO = "tcbInfo"
QE_IDENTITY = "enclaveIdentity"
# Version 3 of the PCS, and caches that follow it, write the first of these with SGX in front.
CHAIN_HEADERS = {
    TCB_INFO: ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
    QE_IDENTITY: ("SGX-Enclave-Identity-Issuer-Chain",),
    "PCK CRL": ("SGX-PCK-CRL-Issuer-Chain",),
}
MAX_ANSWER = 1024 * 1024
_MAX_HEADER = 64 * 1024
_SIGNATURE = 64
_BLANKS = re.compile(r"[ \t\r\n]*")
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f\s]+")
_PEM_CRL = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]+)-----END X509 CRL-----\s*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")


def parse_signed_document(body: bytes, name: str) -> tuple[str, bytes]:
    """Take apart `{"<name>": {...}, "signature": "<128 hexadecimal digits>"}`.

    Args:
        body: Of the answer.
        name: `TCB_INFO` or `QE_IDENTITY`.

    Returns:
        The document's exact text, which is what was signed, and the signature's 64 bytes.

    Raises:
        CollateralMalformedError: Another form.
    """
    value = parse_json(body, what=name, limit=MAX_ANSWER, error=CollateralMalformedError)
    members = Members.of(value, what=f"answer with {name}", error=CollateralMalformedError)
    members.refuse_others(frozenset({name, "signature"}))
    signature = members.hexadecimal("signature")
    if len(signature) != _SIGNATURE:
        raise CollateralMalformedError(f"signature of {name}: want {_SIGNATURE} bytes, got {len(signature)}")
    text = _member_texts(body.decode()).get(name, "")
    if not text.startswith("{"):
        raise CollateralMalformedError(f"{name}: want a JSON object")
    return text, signature


def parse_issuer_chain(header: str) -> str:
    """The PEM text in an issuer chain header.

    Raises:
        CollateralMalformedError: Longer than chains are, or not percent-encoded ASCII.
    """
    if len(header) > _MAX_HEADER:
        raise CollateralMalformedError(f"issuer chain: want at most {_MAX_HEADER} characters, got {len(header)}")
    text = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), header)
    if not text.isascii():
        raise CollateralMalformedError("issuer chain: want percent-encoded PEM, got other characters")
    return text


def parse_crl_answer(body: bytes) -> bytes:
    """The DER of a CRL that came as DER, PEM or hexadecimal; only the wrapping is judged.

    Raises:
        CollateralMalformedError: Empty, too long, or a wrapping that does not hold.
    """
    if not 0 < len(body) <= MAX_ANSWER:
        raise CollateralMalformedError(f"CRL: want 1 to {MAX_ANSWER} bytes, got {len(body)}")
    stripped = body.strip()
    try:
        if stripped.startswith(b"-----"):
            match = _PEM_CRL.fullmatch(stripped)
            if match is None:
                raise CollateralMalformedError("CRL: want one X509 CRL in PEM")
            return b64decode(b"".join(match[1].split()), validate=True)
        # DER begins with a byte of 0x30 and a length above 0x7f, which is no hexadecimal digit.
        if _HEXADECIMAL.fullmatch(stripped):
            return bytes.fromhex(stripped.decode("ascii"))
    except ValueError as exc:
        raise CollateralMalformedError("CRL: want DER, or its PEM or hexadecimal") from exc
    return body


def _member_texts(text: str) -> dict[str, str]:
    """The members of a JSON object, each as it is written; *text* is known to be JSON."""
    texts: dict[str, str] = {}
    decoder, at = json.JSONDecoder(), text.index("{") + 1
    while True:
        at = _skip(text, at)
        if text[at] == "}":
            return texts
        name, at = decoder.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)
        _, end = decoder.raw_decode(text, begin)
        texts[name] = text[begin:end]
        at = _skip(text, end)
        at += text[at] == ","


def _skip(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at
