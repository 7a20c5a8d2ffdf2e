"""One case for each row of the table in docs/verification-steps.md: what the quote library accepts and we refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from dstack.attestation.collateral import Collateral, serialise_collateral
from dstack.attestation.pck import PckExtension
from dstack.attestation.quote import parse_quote
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import (
    STRICT,
    AcceptStatus,
    AllowLegacyModule,
    AllowTdAttribute,
    VerificationPolicy,
)
from dstack.simulator.certificates import (
    PCK,
    PCK_AUTHORITY,
    ROOT,
    TCB_SIGNER,
    Issuer,
    Role,
    authority_key_identifier,
    issue_certificate,
    subject_name,
)
from dstack.simulator.pki import SimulatedPki, raw_signature
from dstack.simulator.quoting import Enclave, QuotingEnclave, TdRegisters, make_enclave_quote, make_quote
from dstack.simulator.statements import VALIDITY
from dstack.values import Digest32, Register, ReportData

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
FAR = datetime(9999, 1, 1, tzinfo=UTC)
PKI = SimulatedPki.generate(AT, seed=b"differential")
ENCLAVE = Enclave(Digest32(b"\x0e" * 32))
REPORT_DATA = ReportData(bytes(64))
REGISTERS = TdRegisters(*(Register(bytes([n]) * 48) for n in range(5)))
# Accepts all that a policy can: what it refuses is refused by every policy.
LENIENT = VerificationPolicy(
    relaxations=(
        *(AcceptStatus(status, FAR) for status in TcbStatus if status is not TcbStatus.REVOKED),
        *(AllowTdAttribute(bit, FAR) for bit in (30, 31, 63)),
        AllowLegacyModule(FAR),
    ),
    mr_enclaves=frozenset({ENCLAVE.mr_enclave}),
)
_ROW = re.compile(r"^\| `([a-z0-9-]+)` \| ([\d, ]+) \| .* \| `(.*)` \|$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, the steps at which we refuse, and how our refusal begins, as a pattern."""

    name: str
    steps: frozenset[int]
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Case:
    """What is verified; collateral is JSON text, so that both verifiers read it their way."""

    quote: bytes
    collateral: str
    at: datetime = AT
    policy: VerificationPolicy = LENIENT
    root_der: bytes = PKI.root_der


def read_table(page: Path) -> tuple[Row, ...]:
    """The rows of the table."""
    text = page.read_text()
    return tuple(
        Row(name, frozenset(int(step) for step in steps.split(",")), _pattern(words))
        for name, steps, words in _ROW.findall(text)
    )


def _pattern(words: str) -> re.Pattern[str]:
    """Our words, in which three dots stand for anything."""
    return re.compile(".*".join(map(re.escape, words.split("..."))), re.DOTALL)


def td_quote(pki: SimulatedPki = PKI, **settings: Any) -> bytes:
    """A quote of a simulated TD."""
    return make_quote(pki, registers=REGISTERS, report_data=REPORT_DATA, **settings)


def text_of(collateral: Collateral, **changes: str) -> str:
    """Collateral as JSON, some members replaced."""
    return json.dumps({**json.loads(serialise_collateral(collateral)), **changes})


GOOD = serialise_collateral(PKI.collateral())


def signed(name: str, text: str, pki: SimulatedPki = PKI) -> dict[str, str]:
    """One document and its signature."""
    return {name: text, f"{name}_signature": raw_signature(pki.keys.tcb_signer, text.encode()).hex()}


def with_document(name: str, change: Callable[[dict[str, Any]], object]) -> str:
    """Good collateral, one of whose documents is changed and signed anew."""
    document = json.loads(getattr(PKI.collateral(), name))
    change(document)
    return text_of(PKI.collateral(), **signed(name, json.dumps(document)))


def _pem(*certificates: x509.Certificate) -> str:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates).decode()


def _issuer(role: Any, key: Any) -> Issuer:
    return Issuer(subject_name(role), key)


def _root() -> Issuer:
    return _issuer(ROOT, PKI.keys.root)


def _with_chain(chain: bytes) -> bytes:
    """A quote whose QE certifies with these certificates; they are not signed by anything in it."""
    parsed = td_quote()
    start = parsed.index(b"-----BEGIN")
    head, old = parsed[:start], len(PKI.pck_chain_pem) + 1
    outer = int.from_bytes(parsed[766:770], "little") + len(chain) - old
    total = int.from_bytes(parsed[632:636], "little") + len(chain) - old
    head = head[:632] + total.to_bytes(4, "little") + head[636:766] + outer.to_bytes(4, "little") + head[770:-4]
    return head + len(chain).to_bytes(4, "little") + chain


def _pki(**changes: Any) -> SimulatedPki:
    return replace(PKI, **changes)


def _authority(**changes: Any) -> SimulatedPki:
    """A PCK CA of another kind."""
    role = replace(PCK_AUTHORITY, **changes)
    authority = issue_certificate(role, PKI.keys.pck_authority.public_key(), _root(), at=AT)
    issuer = Issuer(subject_name(role), PKI.keys.pck_authority)
    pck = issue_certificate(PCK, PKI.keys.pck.public_key(), issuer, at=AT, platform=PKI.platform)
    return _pki(pck_authority=authority, pck=pck)


def _leaf(platform: PckExtension = PKI.platform, *, role: Role = PCK, critical: bool = True) -> SimulatedPki:
    """A PCK certificate of another kind."""
    issuer = Issuer(subject_name(PCK_AUTHORITY), PKI.keys.pck_authority)
    pck = issue_certificate(role, PKI.keys.pck.public_key(), issuer, at=AT, platform=platform)
    if not critical:
        builder = x509.CertificateBuilder(pck.issuer, pck.subject, pck.public_key(), pck.serial_number)
        builder = builder.not_valid_before(pck.not_valid_before_utc).not_valid_after(pck.not_valid_after_utc)
        for extension in pck.extensions:
            builder = builder.add_extension(extension.value, critical=False)
        pck = builder.sign(PKI.keys.pck_authority, hashes.SHA256())
    return _pki(pck=pck)


def _case_of(pki: SimulatedPki) -> Case:
    return Case(td_quote(pki), serialise_collateral(pki.collateral()), root_der=pki.root_der)


def _pck_signs_tcb_info() -> Case:
    """The worst of what the library accepts: a leaked platform key blesses any platform."""
    text = PKI.collateral().tcb_info
    changes = {
        "tcb_info_issuer_chain": _pem(PKI.pck, PKI.pck_authority, PKI.root),
        "tcb_info_signature": raw_signature(PKI.keys.pck, text.encode()).hex(),
    }
    return Case(td_quote(), text_of(PKI.collateral(), **changes))


def _foreign_signer_role() -> Case:
    role = replace(TCB_SIGNER, name="Simulated SGX Other Signing")
    signer = issue_certificate(role, PKI.keys.tcb_signer.public_key(), _root(), at=AT)
    return _case_of(_pki(tcb_signer=signer))


def _shared_key() -> Case:
    keys = replace(PKI.keys, tcb_signer=PKI.keys.pck)
    signer = issue_certificate(TCB_SIGNER, keys.tcb_signer.public_key(), _root(), at=AT)
    return _case_of(_pki(keys=keys, tcb_signer=signer))


def _more_report_data() -> Case:
    digest = parse_quote(td_quote()).signature.qe_report.report_data[:32]
    enclave = QuotingEnclave(report_data=ReportData(digest.ljust(64, b"\x01")))
    return Case(td_quote(quoting_enclave=enclave), GOOD)


def _attestation_key_of_certificate() -> Case:
    return _case_of(_pki(keys=replace(PKI.keys, attestation=PKI.keys.pck)))


def _pck_crl(at: datetime, *, number: int | None = 1, critical: bool = False) -> str:
    """A CRL of the PCK CA, in hexadecimal."""
    builder = x509.CertificateRevocationListBuilder(subject_name(PCK_AUTHORITY), at, at + VALIDITY)
    builder = builder.add_extension(authority_key_identifier(PKI.keys.pck_authority), critical=False)
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=critical)
    return builder.sign(PKI.keys.pck_authority, hashes.SHA256()).public_bytes(Encoding.DER).hex()


def _module_signer() -> Case:
    """A module of another signer, which the documents vouch for."""
    signer = "01" * 48

    def change(document: dict[str, Any]) -> None:
        document["tdxModuleIdentities"][0]["mrsigner"] = signer

    quote = td_quote(fields_override={"mr_signer_seam": bytes.fromhex(signer)})
    return Case(quote, with_document("tcb_info", change))


def _attributes(bit: int) -> bytes:
    return td_quote(fields_override={"td_attributes": (1 << 28 | 1 << bit).to_bytes(8, "little")})


def _fraction(document: dict[str, Any]) -> None:
    document["issueDate"] = "2027-01-15T07:59:59.5Z"


def _twice() -> str:
    text = PKI.collateral().tcb_info
    return text_of(PKI.collateral(), **signed("tcb_info", text[:-1] + ',"note":1,"note":2}'))


def _inner_rest() -> bytes:
    """Bytes between the PCK chain and the end of what certifies it."""
    good = td_quote()
    end = 636 + int.from_bytes(good[632:636], "little")
    total, outer = (int.from_bytes(good[at : at + 4], "little") + 1 for at in (632, 766))
    sizes = good[:632] + total.to_bytes(4, "little") + good[636:766] + outer.to_bytes(4, "little")
    return sizes + good[770:end] + b"x" + good[end:]


def _cases() -> dict[str, Callable[[], Case]]:
    collateral = PKI.collateral()
    certificates = (PKI.pck, PKI.pck_authority, PKI.root)
    unreadable = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    other = SimulatedPki.generate(AT, seed=b"other")
    namesake = issue_certificate(PCK_AUTHORITY, PKI.keys.pck_authority.public_key(), _issuer(ROOT, PKI.keys.pck), at=AT)
    return {
        "size": lambda: Case(td_quote() + bytes(64 * 1024), GOOD),
        "padding-size": lambda: Case(td_quote() + bytes(4096), GOOD),
        "padding": lambda: Case(td_quote() + b"\x01", GOOD),
        "outer-type": lambda: Case(td_quote()[:764] + b"\x05" + td_quote()[765:], GOOD),
        "inner-rest": lambda: Case(_inner_rest(), GOOD),
        "chain-form": lambda: Case(_with_chain((_pem(*certificates[:2]) + unreadable).encode()), GOOD),
        "chain-length": lambda: Case(_with_chain(_pem(*certificates, PKI.root).encode()), GOOD),
        "chain-root": lambda: Case(_with_chain(_pem(PKI.pck, PKI.pck_authority, other.root).encode()), GOOD),
        "crl-chain": lambda: Case(td_quote(), text_of(collateral, pck_crl_issuer_chain="")),
        "crl-chain-role": lambda: Case(
            td_quote(), text_of(collateral, pck_crl_issuer_chain=_pem(PKI.tcb_signer, PKI.root))
        ),
        "crl-chain-signature": lambda: Case(
            td_quote(), text_of(collateral, pck_crl_issuer_chain=_pem(namesake, PKI.root))
        ),
        "crl-early": lambda: Case(td_quote(), text_of(collateral, pck_crl=_pck_crl(AT + timedelta(seconds=1)))),
        "crl-number": lambda: Case(td_quote(), text_of(collateral, pck_crl=_pck_crl(AT, number=None))),
        "crl-critical": lambda: Case(td_quote(), text_of(collateral, pck_crl=_pck_crl(AT, critical=True))),
        "signer-chain": lambda: Case(
            td_quote(), text_of(collateral, tcb_info_issuer_chain=_pem(PKI.tcb_signer, PKI.root, PKI.root))
        ),
        "pck-as-signer": _pck_signs_tcb_info,
        "signer-role": _foreign_signer_role,
        "document-form": lambda: Case(td_quote(), with_document("tcb_info", _fraction)),
        "document-components": lambda: Case(
            td_quote(), with_document("tcb_info", lambda each: each["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].pop())
        ),
        "document-twice": lambda: Case(td_quote(), _twice()),
        "collateral-member": lambda: Case(td_quote(), text_of(collateral, note="x")),
        "tcb-version": lambda: Case(td_quote(), with_document("tcb_info", lambda each: each.update(version=4))),
        "tcb-type": lambda: Case(td_quote(), with_document("tcb_info", lambda each: each.update(tcbType=1))),
        "pce-id": lambda: Case(td_quote(), with_document("tcb_info", lambda each: each.update(pceId="0001"))),
        "authority-role": lambda: _case_of(_authority(name="Simulated SGX Platform Other CA")),
        "authority-path": lambda: _case_of(_authority(path_length=1)),
        "leaf-role": lambda: Case(td_quote(_leaf(role=replace(PCK, name="Simulated SGX PCK"))), GOOD),
        "leaf-profile": lambda: Case(td_quote(_leaf(critical=False)), GOOD),
        "leaf-extension": lambda: Case(td_quote(_leaf(replace(PKI.platform, ppid=PKI.platform.ppid[1:]))), GOOD),
        "shared-key": _shared_key,
        "qe-report-data": _more_report_data,
        "attestation-key": _attestation_key_of_certificate,
        "module-signer": _module_signer,
        "td-attributes": lambda: Case(_attributes(27), GOOD),
        "xfam": lambda: Case(td_quote(fields_override={"xfam": bytes(8)}), GOOD),
        "policy-attributes": lambda: Case(_attributes(63), GOOD, policy=STRICT),
        "policy-module-version": lambda: Case(
            td_quote(fields_override={"tee_tcb_svn": bytes([6, 0, 9]) + bytes(13)}), GOOD, policy=STRICT
        ),
        "policy-module": lambda: Case(
            td_quote(), GOOD, policy=VerificationPolicy(mr_seams=frozenset({Register(bytes(48))}))
        ),
        "policy-enclave": lambda: Case(
            make_enclave_quote(PKI, enclave=ENCLAVE, report_data=REPORT_DATA),
            serialise_collateral(PKI.collateral(sgx=True)),
            policy=STRICT,
        ),
        "policy-status": lambda: Case(td_quote(tcb_status="SWHardeningNeeded"), GOOD, policy=STRICT),
        "policy-advisory": lambda: Case(
            td_quote(tcb_status="SWHardeningNeeded"),
            GOOD,
            policy=replace(LENIENT, refused_advisory_ids=frozenset({"SIMULATED-SA-00008"})),
        ),
        "policy-evaluation": lambda: Case(td_quote(), GOOD, policy=VerificationPolicy(min_evaluation_number=19)),
        "policy-rollback": lambda: Case(td_quote(), GOOD, policy=VerificationPolicy(min_pck_crl_number=2)),
    }


CASES = _cases()
