"""DCAP quotes: bytes to `Quote` (quote-verification.md section 4).

Steps 1 and 2 of `docs/verification-steps.md`: a `Quote` that exists has nested lengths that add up to its last byte.
Nothing in it is trusted yet; that is what `verify_quote` establishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from typing import ClassVar

from dstack.attestation.cursor import Cursor
from dstack.errors import QuoteMalformedError
from dstack.values import Digest32, Register, ReportData

MIN_QUOTE = 1_000
MAX_QUOTE = 64 * 1024
# Quoting Enclaves reserve room for a larger body: every real v4 quote ends in 70 zero bytes.
MAX_PADDING = 4096
_KNOWN_CERTIFICATIONS = 256
_KNOWN_QUOTES = 32

TEE_SGX = 0x00
TEE_TDX = 0x81
# Version, key type, TEE type, QE SVN, PCE SVN, vendor, user data.
_HEADER = Struct("<HHIHH16s20s")
_SIGNATURE, _KEY = 64, 64
_ECDSA_P256 = 2
_INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_BODY_TD10, _BODY_TD15 = 2, 3
_UNSUPPORTED_BODIES = {1: "an SGX enclave's report in a TDX quote", 4: "the extended report of TD 1.5"}
_CERTIFIES_QE_REPORT, _CERTIFIES_PCK_CHAIN = 6, 5

_QUOTE_STARTS = tuple(bytes.fromhex(start) for start in ("0300020000000000", "0400020081000000", "0500020081000000"))


@dataclass(frozen=True, slots=True)
class TdReport:
    """What the CPU says about a TD: 584 bytes (TD 1.0) or 648 (TD 1.5, which has the last two fields)."""

    SIZE: ClassVar[int] = 584
    SIZE_TD15: ClassVar[int] = 648

    tee_tcb_svn: bytes
    mr_seam: Register
    mr_signer_seam: Register
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: Register
    mr_config_id: Register
    mr_owner: Register
    mr_owner_config: Register
    rtmr0: Register
    rtmr1: Register
    rtmr2: Register
    rtmr3: Register
    report_data: ReportData
    tee_tcb_svn2: bytes | None = None
    mr_service_td: Register | None = None


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """What the CPU says about an SGX enclave: 384 bytes."""

    SIZE: ClassVar[int] = 384

    cpu_svn: bytes
    misc_select: bytes
    attributes: bytes
    mr_enclave: Digest32
    mr_signer: Digest32
    isv_prod_id: int
    isv_svn: int
    report_data: ReportData


@dataclass(frozen=True, slots=True)
class QuoteSignature:
    """The signed chain of a quote: PCK key -> QE report -> attestation key -> body.

    Signatures are 64 bytes r||s; the attestation key is 64 bytes x||y. `certification_digest` is the SHA-256 of all
    that certifies that key: it is the same in every quote of a platform.
    """

    body_signature: bytes
    attestation_key: bytes
    qe_report_raw: bytes
    qe_report: EnclaveReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    pck_chain_pem: bytes
    certification_digest: bytes


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote of version 3 (SGX), 4 or 5 (TDX). `signed` is the header and body that its signature covers."""

    vendor: ClassVar[bytes] = _INTEL_QE_VENDOR

    version: int
    tee_type: int
    qe_svn: int
    pce_svn: int
    user_data: bytes
    body: TdReport | EnclaveReport
    signature: QuoteSignature
    signed: bytes

    @property
    def report_data(self) -> ReportData:
        """The 64 bytes that the guest or enclave chose."""
        return self.body.report_data


def looks_like_quote(raw: bytes) -> bool:
    """Whether *raw* begins as a quote does: no other envelope begins so."""
    return raw.startswith(_QUOTE_STARTS)


# Whoever judges evidence reads its quote at each stage.
@lru_cache(maxsize=_KNOWN_QUOTES)
def parse_quote(raw: bytes) -> Quote:
    """Read a quote, to its last byte.

    Args:
        raw: The quote as received; up to 4096 zero bytes may follow the signature data.

    Raises:
        QuoteMalformedError: Another version, TEE, key type or vendor; or lengths that do not nest.
    """
    cursor = _cursor(raw)
    version, tee_type, qe_svn, pce_svn, user_data = _header(cursor)
    body = _body(cursor, version)
    signed = raw[: len(raw) - cursor.remaining]
    size = cursor.uint(4, "signature data length")
    signature = _signature(cursor.take(size, "signature data"), nested=version != 3)
    _require_zero_padding(cursor.rest())
    return Quote(version, tee_type, qe_svn, pce_svn, user_data, body, signature, signed)


def check_header(raw: bytes) -> int:
    """Step 1 alone: size and header; returns the version.

    Raises:
        QuoteMalformedError: Another size, version, TEE, key type or vendor.
    """
    return _header(_cursor(raw))[0]


def parse_body(raw: bytes) -> TdReport | EnclaveReport:
    """Read header and body alone: what a quote says, whether or not a signature follows.

    Raises:
        QuoteMalformedError: Another version, TEE, key type or vendor, or a body that is cut short.
    """
    cursor = Cursor(raw, QuoteMalformedError)
    return _body(cursor, _header(cursor)[0])


def parse_enclave_report(raw: bytes) -> EnclaveReport:
    """Read the 384 bytes of an SGX report body.

    Raises:
        QuoteMalformedError: *raw* is shorter or longer.
    """
    if len(raw) != EnclaveReport.SIZE:
        raise QuoteMalformedError(f"enclave report: want {EnclaveReport.SIZE} bytes, got {len(raw)}")
    # Offsets of quote-verification.md section 4; a server reads two reports a quote, so they are sliced, not walked.
    return EnclaveReport(
        cpu_svn=raw[0:16],
        misc_select=raw[16:20],
        attributes=raw[48:64],
        mr_enclave=Digest32(raw[64:96]),
        mr_signer=Digest32(raw[128:160]),
        isv_prod_id=int.from_bytes(raw[256:258], "little"),
        isv_svn=int.from_bytes(raw[258:260], "little"),
        report_data=ReportData(raw[320:384]),
    )


def _cursor(raw: bytes) -> Cursor:
    if not MIN_QUOTE <= len(raw) <= MAX_QUOTE:
        raise QuoteMalformedError(f"quote: want {MIN_QUOTE} to {MAX_QUOTE} bytes, got {len(raw)}")
    return Cursor(raw, QuoteMalformedError)


def _header(cursor: Cursor) -> tuple[int, int, int, int, bytes]:
    version, key_type, tee_type, qe_svn, pce_svn, vendor, user_data = _HEADER.unpack(
        cursor.take(_HEADER.size, "header")
    )
    if version not in (3, 4, 5):
        raise QuoteMalformedError(f"quote version: want 3, 4 or 5, got {version}")
    if key_type != _ECDSA_P256:
        raise QuoteMalformedError(f"attestation key type: want {_ECDSA_P256} (ECDSA P-256), got {key_type}")
    wanted = TEE_SGX if version == 3 else TEE_TDX
    if tee_type != wanted:
        raise QuoteMalformedError(f"TEE type: want {wanted:#x} in version {version}, got {tee_type:#x}")
    if vendor != _INTEL_QE_VENDOR:
        raise QuoteMalformedError(f"QE vendor: want {_INTEL_QE_VENDOR.hex()}, got {vendor.hex()}")
    return version, tee_type, qe_svn, pce_svn, user_data


def _body(cursor: Cursor, version: int) -> TdReport | EnclaveReport:
    if version == 3:
        return parse_enclave_report(cursor.take(EnclaveReport.SIZE, "enclave report"))
    if version == 4:
        return _td_report(cursor.take(TdReport.SIZE, "TD report"), td15=False)
    body_type, size = cursor.uint(2, "body type"), cursor.uint(4, "body size")
    if body_type in _UNSUPPORTED_BODIES:
        raise QuoteMalformedError(f"body: {_UNSUPPORTED_BODIES[body_type]} (type {body_type}) is not supported")
    wanted = {_BODY_TD10: TdReport.SIZE, _BODY_TD15: TdReport.SIZE_TD15}.get(body_type)
    if size != wanted:
        raise QuoteMalformedError(f"body: want type 2 of 584 bytes or 3 of 648, got type {body_type} of {size}")
    return _td_report(cursor.take(size, "TD report"), td15=body_type == _BODY_TD15)


def _td_report(raw: bytes, *, td15: bool) -> TdReport:
    """Slice a body whose size was checked."""
    return TdReport(
        tee_tcb_svn=raw[0:16],
        mr_seam=Register(raw[16:64]),
        mr_signer_seam=Register(raw[64:112]),
        seam_attributes=raw[112:120],
        td_attributes=raw[120:128],
        xfam=raw[128:136],
        mr_td=Register(raw[136:184]),
        mr_config_id=Register(raw[184:232]),
        mr_owner=Register(raw[232:280]),
        mr_owner_config=Register(raw[280:328]),
        rtmr0=Register(raw[328:376]),
        rtmr1=Register(raw[376:424]),
        rtmr2=Register(raw[424:472]),
        rtmr3=Register(raw[472:520]),
        report_data=ReportData(raw[520:584]),
        tee_tcb_svn2=raw[584:600] if td15 else None,
        mr_service_td=Register(raw[600:648]) if td15 else None,
    )


def _signature(raw: bytes, *, nested: bool) -> QuoteSignature:
    cursor = Cursor(raw, QuoteMalformedError)
    own = cursor.take(_SIGNATURE + _KEY, "signature and attestation key")
    return QuoteSignature(own[:_SIGNATURE], own[_SIGNATURE:], *_certified(cursor.rest(), nested))


# A machine's quotes differ in what is before this.
@lru_cache(maxsize=_KNOWN_CERTIFICATIONS)
def _certified(raw: bytes, nested: bool) -> tuple[bytes, EnclaveReport, bytes, bytes, bytes, bytes]:
    """The fields of `QuoteSignature` from the QE report on."""
    cursor = Cursor(raw, QuoteMalformedError)
    if nested:
        cursor = Cursor(_certification(cursor, _CERTIFIES_QE_REPORT), QuoteMalformedError)
    report = cursor.take(EnclaveReport.SIZE, "QE report")
    signature = cursor.take(_SIGNATURE, "signature of the QE report")
    auth_data = cursor.take(cursor.uint(2, "QE authentication data length"), "QE authentication data")
    pck_chain_pem = _certification(cursor, _CERTIFIES_PCK_CHAIN)
    return report, parse_enclave_report(report), signature, auth_data, pck_chain_pem, sha256(raw).digest()


def _certification(cursor: Cursor, wanted: int) -> bytes:
    kind = cursor.uint(2, "certification type")
    if kind != wanted:
        raise QuoteMalformedError(f"certification type: want {wanted}, got {kind}")
    content = cursor.take(cursor.uint(4, "certification data length"), "certification data")
    cursor.end("certification data")
    return content


def _require_zero_padding(rest: bytes) -> None:
    if len(rest) > MAX_PADDING:
        raise QuoteMalformedError(f"padding: want at most {MAX_PADDING} bytes, got {len(rest)}")
    if rest.strip(b"\0"):
        raise QuoteMalformedError("padding: want only zero bytes after the signature data")
