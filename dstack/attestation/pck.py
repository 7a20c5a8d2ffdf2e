"""The SGX extension of a PCK certificate: which platform this is (quote-verification.md 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

from dstack.attestation import der
from dstack.attestation.certificates import parse_chain
from dstack.attestation.quote import Quote
from dstack.errors import CollateralMalformedError, QuoteMalformedError

SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_PPID, _TCB, _PCE_ID, _FMSPC, _SGX_TYPE, _PLATFORM_INSTANCE, _CONFIGURATION = (
    f"{SGX_EXTENSION.dotted_string}.{n}" for n in range(1, 8)
)
_DYNAMIC_PLATFORM, _CACHED_KEYS, _SMT_ENABLED = (f"{_CONFIGURATION}.{n}" for n in range(1, 4))
_PCE_SVN, _CPU_SVN = f"{_TCB}.17", f"{_TCB}.18"

_Fields = dict[str, tuple[int, bytes]]
_KNOWN_CHAINS = 256


@dataclass(frozen=True, slots=True)
class PckExtension:
    """A platform: PPID 16 bytes, CPUSVN 16, PCEID 2, FMSPC 6; `sgx_type` 0 standard, 1 scalable, 2 with integrity.

    The last three are None where the certificate does not say: whether packages can be added to the machine, whether
    its keys are kept by Intel, and whether simultaneous multithreading is on.
    """

    ppid: bytes
    cpu_svn: bytes
    pce_svn: int
    pce_id: bytes
    fmspc: bytes
    sgx_type: int
    platform_instance_id: bytes | None
    dynamic_platform: bool | None = None
    cached_keys: bool | None = None
    smt_enabled: bool | None = None


def parse_pck_extension(certificate: x509.Certificate) -> PckExtension:
    """Read the SGX extension.

    Raises:
        CollateralMalformedError: It is absent, repeated, or a field is missing or of another length.
    """
    fields = _fields(_extension(certificate))
    tcb = _fields(_value(fields, _TCB, der.SEQUENCE), wrapped=False)
    configuration: _Fields = {}
    if _CONFIGURATION in fields:
        configuration = _fields(_value(fields, _CONFIGURATION, der.SEQUENCE), wrapped=False)
    return PckExtension(
        ppid=_octets(fields, _PPID, 16),
        cpu_svn=_octets(tcb, _CPU_SVN, 16),
        pce_svn=_number(_value(tcb, _PCE_SVN, der.INTEGER)),
        pce_id=_octets(fields, _PCE_ID, 2),
        fmspc=_octets(fields, _FMSPC, 6),
        sgx_type=_number(_value(fields, _SGX_TYPE, der.ENUMERATED)),
        platform_instance_id=_octets(fields, _PLATFORM_INSTANCE, 16) if _PLATFORM_INSTANCE in fields else None,
        dynamic_platform=_flag(configuration, _DYNAMIC_PLATFORM),
        cached_keys=_flag(configuration, _CACHED_KEYS),
        smt_enabled=_flag(configuration, _SMT_ENABLED),
    )


def claimed_platform(quote: Quote) -> PckExtension:
    """The platform a quote says it is from. Unverified: good for choosing collateral, for nothing else.

    Raises:
        QuoteMalformedError: The quote's certificates cannot be read.
    """
    return _claimed(quote.signature.pck_chain_pem)


# A machine's quotes all carry the same certificates.
@lru_cache(maxsize=_KNOWN_CHAINS)
def _claimed(pck_chain_pem: bytes) -> PckExtension:
    try:
        return parse_pck_extension(parse_chain(pck_chain_pem, what="PCK chain")[0])
    except CollateralMalformedError as exc:
        raise QuoteMalformedError(str(exc)) from exc


def _extension(certificate: x509.Certificate) -> bytes:
    try:
        extension = certificate.extensions.get_extension_for_oid(SGX_EXTENSION).value
    except (ValueError, x509.DuplicateExtension, x509.ExtensionNotFound) as exc:
        raise CollateralMalformedError("PCK certificate: want exactly one readable SGX extension") from exc
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise CollateralMalformedError("PCK certificate: want an SGX extension of raw bytes")
    return extension.value


def _fields(raw: bytes, *, wrapped: bool = True) -> _Fields:
    """The (OID, value) pairs of a SEQUENCE, by OID; *wrapped* when the SEQUENCE's own header is there."""
    fields: _Fields = {}
    for tag, content in der.sequence(raw) if wrapped else der.elements(raw):
        pair = tuple(der.elements(content)) if tag == der.SEQUENCE else ()
        if len(pair) != 2 or pair[0][0] != der.OBJECT_ID:
            raise CollateralMalformedError("SGX extension: want a sequence of (OID, value) pairs")
        name = der.object_id(pair[0][1])
        if name in fields:
            raise CollateralMalformedError(f"SGX extension: {name} appears twice")
        fields[name] = pair[1]
    return fields


def _value(fields: _Fields, name: str, tag: int) -> bytes:
    if name not in fields or fields[name][0] != tag:
        raise CollateralMalformedError(f"SGX extension: want {name} with DER tag {tag:#04x}")
    return fields[name][1]


def _octets(fields: _Fields, name: str, size: int) -> bytes:
    value = _value(fields, name, der.OCTET_STRING)
    if len(value) != size:
        raise CollateralMalformedError(f"SGX extension: want {size} bytes in {name}, got {len(value)}")
    return value


def _flag(fields: _Fields, name: str) -> bool | None:
    if name not in fields:
        return None
    content = _value(fields, name, der.BOOLEAN)
    if content not in (b"\0", b"\xff"):
        raise CollateralMalformedError(f"SGX extension: want a DER boolean in {name}, got {content.hex()[:8]}")
    return content == b"\xff"


def _number(content: bytes) -> int:
    if not 1 <= len(content) <= 3 or content[0] & 0x80:
        raise CollateralMalformedError("SGX extension: want a small number that is not negative")
    return int.from_bytes(content, "big")
