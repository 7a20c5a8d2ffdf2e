"""NOT PRODUCTION. The quoting enclave of a simulated platform: registers to a quote of version 3, 4 or 5."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum

from dstack.attestation.quote import TdReport
from dstack.attestation.tcb import TcbStatus
from dstack.errors import InputError
from dstack.measurement.registers import ZERO_REGISTER
from dstack.simulator.pki import SimulatedPki, raw_public_key, raw_signature
from dstack.simulator.statements import QE_MR_SIGNER, QE_PROD_ID, QE_SVN, SGX_QE_PROD_ID, STATUS_SVN
from dstack.values import Digest32, Register, ReportData

# Real v4 quotes all end in this many zero bytes.
_PADDING = bytes(70)
_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_ID = hashlib.sha256(b"dstack-simulated-qe").digest()[:16]
_QE_MR_ENCLAVE = hashlib.sha256(b"dstack-simulated-qe-enclave").digest()
_QE_AUTH_DATA = bytes(range(32))
_NO_SIGNER = Digest32(bytes(32))
_SEPT_VE_DISABLE = 1 << 28
_DEBUG = 1 << 0
_XFAM = bytes.fromhex("e702060000000000")


@dataclass(frozen=True, slots=True)
class TdRegisters:
    """What a simulated TD measures; the last three are zero unless the host sets them."""

    mr_td: Register
    rtmr0: Register
    rtmr1: Register
    rtmr2: Register
    rtmr3: Register
    mr_config_id: Register = ZERO_REGISTER
    mr_owner: Register = ZERO_REGISTER
    mr_owner_config: Register = ZERO_REGISTER


@dataclass(frozen=True, slots=True)
class QuotingEnclave:
    """What the quoting enclave's own report says; the default is the one that the collateral vouches for."""

    attributes: bytes = bytes.fromhex("1500000000000000e700000000000000")
    mr_signer: bytes = QE_MR_SIGNER
    isv_prod_id: int = QE_PROD_ID
    isv_svn: int = QE_SVN
    misc_select: bytes = bytes(4)
    report_data: ReportData | None = None


class Form(Enum):
    """Which quote of a TD: its version, and for version 5 its body's type."""

    V4 = (4, None)
    V5_TD10 = (5, 2)
    V5_TD15 = (5, 3)


def make_quote(
    pki: SimulatedPki,
    *,
    registers: TdRegisters,
    report_data: ReportData,
    tcb_status: str = TcbStatus.UP_TO_DATE.value,
    debug: bool = False,
    fields_override: Mapping[str, bytes] | None = None,
    quoting_enclave: QuotingEnclave | None = None,
    form: Form = Form.V4,
) -> bytes:
    """Sign a quote over *registers* and *report_data*, as *pki*'s platform.

    Args:
        pki: Who signs.
        registers: What is quoted.
        report_data: What the guest chose.
        tcb_status: The status, in Intel's spelling, that the platform's own collateral gives the quote.
        debug: Set the DEBUG attribute; every verifier must refuse such a quote.
        fields_override: TD report fields by name, replacing any of the above: for quotes that must be refused.
        quoting_enclave: Another quoting enclave: for quotes that must be refused.
        form: The quote's version and body; TD 1.5 runs under the module that it was launched under.

    Raises:
        InputError: An unknown status or field name, or a field of the wrong size.
    """
    svn = bytes([6, 1, _status_svn(tcb_status)]) + bytes(13)
    now = {"tee_tcb_svn2": svn, "mr_service_td": ZERO_REGISTER} if form is Form.V5_TD15 else {}
    body = _body(
        {
            "tee_tcb_svn": svn,
            "mr_seam": Register(hashlib.sha384(b"dstack-simulated-tdx-module").digest()),
            "mr_signer_seam": ZERO_REGISTER,
            "seam_attributes": bytes(8),
            "td_attributes": (_SEPT_VE_DISABLE | (_DEBUG if debug else 0)).to_bytes(8, "little"),
            "xfam": _XFAM,
            **{field.name: getattr(registers, field.name) for field in fields(TdRegisters)},
            "report_data": report_data,
            **now,
        },
        fields_override or {},
    )
    version, body_type = form.value
    descriptor = b"" if body_type is None else _le(body_type, 2) + _le(len(body), 4)
    signed = _header(version, 0x81) + descriptor + body
    signature = _signature_data(pki, signed, quoting_enclave or QuotingEnclave())
    return signed + _le(len(signature), 4) + signature + (_PADDING if version == 4 else b"")


@dataclass(frozen=True, slots=True)
class Enclave:
    """What a simulated SGX enclave is."""

    mr_enclave: Digest32
    mr_signer: Digest32 = _NO_SIGNER
    attributes: bytes = bytes.fromhex("0500000000000000e700000000000000")


def make_enclave_quote(pki: SimulatedPki, *, enclave: Enclave, report_data: ReportData) -> bytes:
    """Sign a version 3 quote of an SGX enclave, as *pki*'s platform; `pki.collateral(sgx=True)` vouches for it."""
    facts = QuotingEnclave(enclave.attributes, enclave.mr_signer, isv_prod_id=0, isv_svn=0, report_data=report_data)
    signed = _header(3, 0) + _enclave_report(facts, report_data, enclave.mr_enclave)
    quoting_enclave = QuotingEnclave(isv_prod_id=SGX_QE_PROD_ID)
    signature = _signature_data(pki, signed, quoting_enclave, nested=False)
    return signed + _le(len(signature), 4) + signature


def _header(version: int, tee_type: int) -> bytes:
    return _le(version, 2) + _le(2, 2) + _le(tee_type, 4) + bytes(4) + _QE_VENDOR + _QE_ID + bytes(4)


def _status_svn(status: str) -> int:
    try:
        return STATUS_SVN[TcbStatus(status)]
    except (KeyError, ValueError) as exc:
        wanted = ", ".join(known.value for known in STATUS_SVN)
        raise InputError(f"TCB status: want one of {wanted}, got {status[:40]!r}") from exc


def _body(values: dict[str, bytes], override: Mapping[str, bytes]) -> bytes:
    """The TD 1.0 report, in the order in which `TdReport` declares its fields."""
    for name, value in override.items():
        if name not in values or len(value) != len(values[name]):
            raise InputError(f"TD report: no field {name!r} of {len(value)} bytes")
    body = {**values, **override}
    return b"".join(body[field.name] for field in fields(TdReport) if field.name in body)


def _signature_data(pki: SimulatedPki, signed: bytes, enclave: QuotingEnclave, *, nested: bool = True) -> bytes:
    attestation_key = raw_public_key(pki.keys.attestation)
    binding = ReportData(hashlib.sha256(attestation_key + _QE_AUTH_DATA).digest() + bytes(32))
    qe_report = _enclave_report(enclave, enclave.report_data or binding, _QE_MR_ENCLAVE)
    chain = pki.pck_chain_pem + b"\0"
    certified = (
        qe_report
        + raw_signature(pki.keys.pck, qe_report)
        + _le(len(_QE_AUTH_DATA), 2)
        + _QE_AUTH_DATA
        + _le(5, 2)
        + _le(len(chain), 4)
        + chain
    )
    signature = raw_signature(pki.keys.attestation, signed)
    wrapped = _le(6, 2) + _le(len(certified), 4) + certified if nested else certified
    return signature + attestation_key + wrapped


def _enclave_report(enclave: QuotingEnclave, report_data: ReportData, mr_enclave: bytes) -> bytes:
    """The 384-byte SGX report body of an enclave."""
    return (
        bytes(16)
        + enclave.misc_select
        + bytes(28)
        + enclave.attributes
        + mr_enclave
        + bytes(32)
        + enclave.mr_signer
        + bytes(96)
        + _le(enclave.isv_prod_id, 2)
        + _le(enclave.isv_svn, 2)
        + bytes(60)
        + report_data
    )


def _le(number: int, size: int) -> bytes:
    return number.to_bytes(size, "little")
