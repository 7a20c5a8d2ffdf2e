"""What an app sends to have a certificate signed: dstack's own form, not PKCS#10 (kms.md 4.6).

The whole request is signed by the key that shall be certified. The signature is verified over the bytes as they came;
that they are the only encoding of what was read is what makes this as strict as a reader that encodes them anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation import scale
from dstack.attestation.cursor import Cursor
from dstack.attestation.evidence import MAX_EVIDENCE, Evidence, parse_evidence
from dstack.errors import EvidenceMalformedError, MessageMalformedError, SignatureUntrustedError
from dstack.keys.app_certs import CertificateWishes
from dstack.measurement.event_log import parse_event_log, runtime_events
from dstack.values import ReportData

CONFIRM_WORD = "please sign cert:"
API_VERSIONS = (1, 2)

MOST_NAMES = 100
# DCAP v4: a header of 48 bytes, and 520 of the TD report before its report data.
_REPORT_DATA_OFFSET = 568


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A request whose signature holds. Made by `verify_signing_request` alone.

    Attributes:
        spki: SubjectPublicKeyInfo (DER) of the key to be certified.
        public_key: The same, P-256.
        wishes: What the certificate shall say.
        evidence: Of the machine that asks; not verified yet, nor that it is bound to the key.
    """

    spki: bytes
    public_key: ec.EllipticCurvePublicKey
    wishes: CertificateWishes
    evidence: Evidence


def verify_signing_request(api_version: int, raw: bytes, signature: bytes) -> SigningRequest:
    """Read a request to its last byte, and establish that the key in it signed it.

    Says nothing of who holds that key: that is for the evidence in it.

    Args:
        api_version: 1 or 2, which decides the form.
        raw: The request, as received.
        signature: ECDSA with SHA-256 over *raw*, DER.

    Raises:
        MessageMalformedError: Another API version, or not of its form.
        EvidenceMalformedError: The evidence in it is not of its form, or bytes are left over.
        InputError: A part of the evidence is not of its form.
        SignatureUntrustedError: The key in it did not sign these bytes.
    """
    if api_version not in API_VERSIONS:
        raise MessageMalformedError(f"Unsupported API version: {api_version}")
    if len(raw) > MAX_EVIDENCE:
        raise MessageMalformedError(f"signing request: want at most {MAX_EVIDENCE} bytes, got {len(raw)}")
    cursor = Cursor(raw, EvidenceMalformedError)
    confirm = scale.read_text(cursor, "confirm word")
    spki = scale.read_bytes(cursor, "public key")
    wishes = _read_wishes(cursor, api_version)
    evidence = _read_evidence(cursor, api_version)

    public_key = _p256(spki)
    _require_signature(public_key, signature, raw)
    if confirm != CONFIRM_WORD:
        raise MessageMalformedError(f"signing request: want the confirm word {CONFIRM_WORD!r}, got {confirm[:40]!r}")
    return SigningRequest(spki, public_key, wishes, evidence)


def serialise_signing_request(spki: bytes, wishes: CertificateWishes, attestation: bytes) -> bytes:
    """Write a request of API version 2; whoever sends it signs these bytes.

    Args:
        spki: SubjectPublicKeyInfo (DER) of the key to be certified.
        wishes: What the certificate shall say.
        attestation: Evidence bound to that key, serialised.
    """
    flags = (wishes.usage_server_auth, wishes.usage_client_auth, wishes.ext_quote, wishes.ext_app_info)
    return b"".join(
        (
            _text(CONFIRM_WORD),
            scale.write_bytes(spki),
            b"\x00" if wishes.org_name is None else b"\x01" + _text(wishes.org_name),
            _text(wishes.subject),
            scale.write_length(len(wishes.subject_alt_names)),
            *map(_text, wishes.subject_alt_names),
            bytes(flags),
            _optional_time(wishes.not_before),
            _optional_time(wishes.not_after),
            attestation,
        )
    )


def _read_wishes(cursor: Cursor, api_version: int) -> CertificateWishes:
    org_name = scale.read_text(cursor, "org_name") if _read_flag(cursor, "org_name") else None
    subject = scale.read_text(cursor, "subject")
    count = scale.read_length(cursor, "subject_alt_names")
    if count > MOST_NAMES:
        raise MessageMalformedError(f"subject_alt_names: want at most {MOST_NAMES}, got {count}")
    names = tuple(scale.read_text(cursor, "subject_alt_names") for _ in range(count))
    server, client, quote = (_read_flag(cursor, name) for name in ("usage_server", "usage_client", "ext_quote"))
    if api_version == 1:
        return CertificateWishes(org_name, subject, names, server, client, quote)
    return CertificateWishes(
        org_name,
        subject,
        names,
        usage_server_auth=server,
        usage_client_auth=client,
        ext_quote=quote,
        ext_app_info=_read_flag(cursor, "ext_app_info"),
        not_before=_read_time(cursor, "not_before"),
        not_after=_read_time(cursor, "not_after"),
    )


def _read_evidence(cursor: Cursor, api_version: int) -> Evidence:
    if api_version > 1:
        return parse_evidence(cursor.take(cursor.remaining, "attestation"))
    quote, log = scale.read_bytes(cursor, "quote"), scale.read_bytes(cursor, "event log")
    cursor.end("signing request")
    events = parse_event_log(log)
    return Evidence(quote, events, runtime_events(events), _claimed_report_data(quote), "")


def _claimed_report_data(quote: bytes) -> ReportData:
    """Where a quote of version 4 has it; whether it is a quote at all is for `verify_quote`."""
    cursor = Cursor(quote, EvidenceMalformedError)
    cursor.take(_REPORT_DATA_OFFSET, "quote")
    return ReportData(cursor.take(ReportData.SIZE, "quote: report data"))


def _read_flag(cursor: Cursor, what: str) -> bool:
    flag = cursor.uint(1, what)
    if flag > 1:
        raise EvidenceMalformedError(f"{what}: want 0 or 1, got {flag}")
    return bool(flag)


def _read_time(cursor: Cursor, what: str) -> int | None:
    return cursor.uint(8, what) if _read_flag(cursor, what) else None


def _p256(spki: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise MessageMalformedError("signing request: want a public key in DER") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MessageMalformedError("signing request: want a key of the curve P-256")
    written = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if written != spki:
        raise MessageMalformedError("signing request: want the public key in the one form that DER has for it")
    return key


def _require_signature(key: ec.EllipticCurvePublicKey, signature: bytes, raw: bytes) -> None:
    try:
        key.verify(signature, raw, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as exc:
        raise SignatureUntrustedError("signing request: its signature is not by the key in it") from exc


def _text(text: str) -> bytes:
    return scale.write_bytes(text.encode())


def _optional_time(time: int | None) -> bytes:
    return b"\x00" if time is None else b"\x01" + time.to_bytes(8, "little")
