"""Every field of a quote by name, place and meaning, for people who look at one. Verifies nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dstack.attestation.quote import EnclaveReport, Quote, TdReport, parse_quote

_Meaning = Callable[[bytes], str]
_KEY_TYPES = {2: "ECDSA P-256"}
_TEES = {0: "SGX", 0x81: "TDX"}
_BODIES = {1: "SGX enclave", 2: "TD 1.0", 3: "TD 1.5"}
_CERTIFICATION = {5: "PCK certificate chain", 6: "QE report with its own certification"}
# Intel TDX module specification, ATTRIBUTES; Intel SGX, SECS.ATTRIBUTES.
_TD_ATTRIBUTES = {0: "DEBUG", 28: "SEPT_VE_DISABLE", 29: "MIGRATABLE", 30: "PKS", 31: "KL", 63: "PERFMON"}
_SGX_ATTRIBUTES = {0: "INIT", 1: "DEBUG", 2: "MODE64BIT", 4: "PROVISIONKEY", 5: "EINITTOKENKEY", 7: "KSS"}
_XFAM = {0: "x87", 1: "SSE", 2: "AVX", 5: "AVX-512", 9: "PKU", 11: "CET-U", 12: "CET-S", 17: "AMX-CFG", 18: "AMX"}


@dataclass(frozen=True, slots=True)
class QuoteField:
    """One field: where it begins, its bytes, and what they mean (empty where hexadecimal says it all)."""

    offset: int
    name: str
    raw: bytes
    meaning: str


def quote_fields(raw: bytes) -> tuple[QuoteField, ...]:
    """Name every byte of a quote, from the header to the padding, in order and without gaps.

    Raises:
        QuoteMalformedError: It is not of its form.
    """
    quote = parse_quote(raw)
    walk = _Walk(raw)
    fields = [*_header(walk), *_body(walk, quote), *_signature(walk, quote)]
    fields.append(walk.take("padding", len(raw) - walk.at, lambda piece: f"{len(piece)} zero bytes"))
    return tuple(field for field in fields if field.raw or field.name != "padding")


class _Walk:
    """Takes fields off the front of bytes that `parse_quote` has accepted."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.at = 0

    def take(self, name: str, size: int, meaning: _Meaning = lambda _: "") -> QuoteField:
        piece = self._raw[self.at : self.at + size]
        field = QuoteField(self.at, name, piece, meaning(piece))
        self.at += size
        return field

    def number(self, name: str, size: int, words: dict[int, str] | None = None) -> QuoteField:
        return self.take(name, size, lambda piece: _number(piece, words))


def _number(piece: bytes, words: dict[int, str] | None) -> str:
    number = int.from_bytes(piece, "little")
    return f"{number}" if not words else f"{number}: {words.get(number, 'unknown')}"


def _bits(names: dict[int, str]) -> _Meaning:
    def meaning(piece: bytes) -> str:
        number = int.from_bytes(piece, "little")
        return ", ".join(names.get(bit, f"bit {bit}") for bit in range(number.bit_length()) if number >> bit & 1)

    return meaning


def _header(walk: _Walk) -> Iterator[QuoteField]:
    yield walk.number("version", 2)
    yield walk.number("attestation key type", 2, _KEY_TYPES)
    yield walk.number("TEE type", 4, _TEES)
    yield walk.number("QE SVN", 2)
    yield walk.number("PCE SVN", 2)
    yield walk.take("QE vendor id", 16, lambda _: "Intel")
    yield walk.take("user data: QE id", 16)
    yield walk.take("user data: rest", 4)


def _body(walk: _Walk, quote: Quote) -> Iterator[QuoteField]:
    if quote.version == 5:
        yield walk.number("body type", 2, _BODIES)
        yield walk.number("body size", 4)
    if isinstance(quote.body, EnclaveReport):
        yield from _enclave_report(walk, "")
    else:
        yield from _td_report(walk, quote.body)


def _td_report(walk: _Walk, body: TdReport) -> Iterator[QuoteField]:
    yield walk.take("TEE_TCB_SVN", 16, _tee_tcb_svn)
    yield walk.take("MRSEAM", 48)
    yield walk.take("MRSIGNERSEAM", 48)
    yield walk.take("SEAMATTRIBUTES", 8)
    yield walk.take("TDATTRIBUTES", 8, _bits(_TD_ATTRIBUTES))
    yield walk.take("XFAM", 8, _bits(_XFAM))
    for name in ("MRTD", "MRCONFIGID", "MROWNER", "MROWNERCONFIG", "RTMR0", "RTMR1", "RTMR2", "RTMR3"):
        yield walk.take(name, 48)
    yield walk.take("REPORTDATA", 64)
    if body.tee_tcb_svn2 is not None:
        yield walk.take("TEE_TCB_SVN2", 16, _tee_tcb_svn)
        yield walk.take("MRSERVICETD", 48)


def _tee_tcb_svn(piece: bytes) -> str:
    return f"TDX module version {piece[1]}, ISVSVN {piece[0]}"


def _enclave_report(walk: _Walk, of: str) -> Iterator[QuoteField]:
    yield walk.take(f"{of}CPUSVN", 16)
    yield walk.take(f"{of}MISCSELECT", 4)
    yield walk.take(f"{of}reserved 1", 28)
    yield walk.take(f"{of}ATTRIBUTES", 8, _bits(_SGX_ATTRIBUTES))
    yield walk.take(f"{of}ATTRIBUTES: XFRM", 8, _bits(_XFAM))
    yield walk.take(f"{of}MRENCLAVE", 32)
    yield walk.take(f"{of}reserved 2", 32)
    yield walk.take(f"{of}MRSIGNER", 32)
    yield walk.take(f"{of}reserved 3", 96)
    yield walk.number(f"{of}ISVPRODID", 2)
    yield walk.number(f"{of}ISVSVN", 2)
    yield walk.take(f"{of}reserved 4", 60)
    yield walk.take(f"{of}REPORTDATA", 64)


def _signature(walk: _Walk, quote: Quote) -> Iterator[QuoteField]:
    signature = quote.signature
    yield walk.number("signature data size", 4)
    yield walk.take("quote signature r", 32)
    yield walk.take("quote signature s", 32)
    yield walk.take("attestation key x", 32)
    yield walk.take("attestation key y", 32)
    if quote.version != 3:
        yield walk.number("certification type", 2, _CERTIFICATION)
        yield walk.number("certification size", 4)
    yield from _enclave_report(walk, "QE ")
    yield walk.take("QE report signature r", 32)
    yield walk.take("QE report signature s", 32)
    yield walk.number("QE authentication data size", 2)
    yield walk.take("QE authentication data", len(signature.qe_auth_data))
    yield walk.number("QE certification type", 2, _CERTIFICATION)
    yield walk.number("QE certification size", 4)
    size = len(signature.pck_chain_pem)
    yield walk.take("PCK certificate chain", size, lambda piece: f"PEM, {piece.count(b'-----BEGIN')} certificates")
