"""Each step of `verify_quote`, one thing wrong at a time, under a simulated maker whose keys the tests hold."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from dstack.attestation.collateral import Collateral
from dstack.attestation.qe import attestation_key, check_key_binding
from dstack.attestation.quote import parse_quote
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.tcb import LEVEL_STATUSES, TcbStatus
from dstack.attestation.verification_policy import (
    STRICT,
    AcceptStatus,
    AllowLegacyModule,
    AllowTdAttribute,
    VerificationPolicy,
)
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.errors import (
    CollateralMalformedError,
    ConfigError,
    DstackError,
    InputError,
    QuoteMalformedError,
    QuoteUntrustedError,
)
from dstack.simulator.certificates import PCK, PCK_AUTHORITY, ROOT, TCB_SIGNER, Issuer, issue_certificate, subject_name
from dstack.simulator.pki import SimulatedPki, raw_signature
from dstack.simulator.quoting import QuotingEnclave, make_quote
from dstack.simulator.statements import VALIDITY
from dstack.values import Register, ReportData

REPORT_DATA = ReportData(bytes(64))
LATER = datetime(2027, 2, 1, tzinfo=UTC)

# The parser warns of certificates it will refuse one day; ours are broken on purpose.
BROKEN_CERTIFICATES = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


@dataclass(frozen=True)
class Attempt:
    """A verification that succeeds, of which a test changes one thing."""

    quote: bytes
    collateral: Collateral
    roots: TrustedRoots
    at: datetime
    policy: VerificationPolicy = STRICT

    def verify(self) -> VerifiedQuote:
        return verify_quote(self.quote, self.collateral, roots=self.roots, at=self.at, policy=self.policy)

    def but(self, **changes: object) -> Attempt:
        return replace(self, **changes)


@pytest.fixture(scope="module")
def good(pki, roots, registers, at) -> Attempt:
    """Everything in order."""
    return Attempt(make_quote(pki, registers=registers, report_data=REPORT_DATA), pki.collateral(), roots, at)


def attempt(pki: SimulatedPki, good: Attempt, registers, *, collateral: Collateral | None = None) -> Attempt:
    """The good attempt, made by another PKI."""
    roots = TrustedRoots((simulated_root(pki.root_der),))
    quote = make_quote(pki, registers=registers, report_data=REPORT_DATA)
    return Attempt(quote, collateral or pki.collateral(), roots, good.at)


def refused(attempt: Attempt, step: int, message: str) -> None:
    """Assert that *attempt* fails at *step*, saying *message*."""
    with pytest.raises(QuoteUntrustedError, match=f"step {step}: {message}") as caught:
        attempt.verify()
    assert caught.value.step == step


def accepting(*statuses: TcbStatus) -> VerificationPolicy:
    """A policy that takes these statuses until `LATER`."""
    return VerificationPolicy(relaxations=tuple(AcceptStatus(status, LATER) for status in statuses))


def with_tcb_info(pki: SimulatedPki, collateral: Collateral, **changes: object) -> Collateral:
    """*collateral* whose TCB info has these members, properly signed."""
    text = json.dumps({**json.loads(collateral.tcb_info), **changes})
    return replace(collateral, tcb_info=text, tcb_info_signature=raw_signature(pki.keys.tcb_signer, text.encode()))


def with_qe_identity(pki: SimulatedPki, collateral: Collateral, **changes: object) -> Collateral:
    """*collateral* whose QE identity has these members, properly signed."""
    text = json.dumps({**json.loads(collateral.qe_identity), **changes})
    return replace(
        collateral, qe_identity=text, qe_identity_signature=raw_signature(pki.keys.tcb_signer, text.encode())
    )


def pem(*certificates: x509.Certificate) -> str:
    """Certificates as collateral carries them."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates).decode()


def root_issuer(pki: SimulatedPki) -> Issuer:
    """The root as a signer."""
    return Issuer(subject_name(ROOT), pki.keys.root)


def crl(issuer: Issuer, at: datetime, *, number: int | None = 1, delta: bool = False, days: int = 30) -> bytes:
    """A CRL of *issuer*."""
    builder = x509.CertificateRevocationListBuilder(issuer.name, at, at + timedelta(days=days))
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    if delta:
        builder = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_the_result_says_all_it_rests_on(good, pki, roots, at):
    """A good quote verifies; the result carries platform, root, numbers and the earliest expiry."""
    assert good.verify() == VerifiedQuote(
        quote=parse_quote(good.quote),
        tcb_status=TcbStatus.UP_TO_DATE,
        advisory_ids=(),
        ppid=pki.platform.ppid,
        fmspc=pki.platform.fmspc,
        root=roots.roots[0],
        tcb_info_evaluation_number=18,
        qe_identity_evaluation_number=18,
        root_crl_number=1,
        pck_crl_number=1,
        expires_at=at + VALIDITY,
        expires_first="root CRL",
    )


def test_it_stays_valid_until_it_expires_and_no_longer(good, at):
    """The quote verifies until just before `expires_at`, and is refused from then on."""
    expires_at = good.verify().expires_at

    assert good.but(at=expires_at - timedelta(seconds=1)).verify() == good.verify()
    refused(good.but(at=expires_at), 4, "CRL of .* not at")
    refused(good.but(at=at - timedelta(seconds=1)), 4, "CRL of .* not at")


def test_a_time_without_a_zone_is_refused(good, at):
    """A naive time is refused rather than read as some zone's; so is a time before 1970."""
    for wrong in (at.replace(tzinfo=None), at.replace(year=1969)):
        with pytest.raises(InputError, match="verification time: want an aware time after 1970"):
            good.but(at=wrong).verify()


def test_step_3_a_root_that_lists_itself_is_refused(good, pki):
    """A root that its own CRL lists is refused."""
    revoked = pki.collateral(revoked=(pki.root.serial_number,))
    refused(good.but(collateral=revoked), 3, "certificate 'Simulated SGX Root CA': revoked")


def test_step_3_a_root_that_did_not_sign_itself_is_refused(good, pki, registers, at):
    """A configured root that another key signed is refused: it is an intermediate."""
    issuer = Issuer(subject_name(ROOT), pki.keys.attestation)
    forged = replace(pki, root=issue_certificate(ROOT, pki.keys.root.public_key(), issuer, at=at))
    refused(attempt(forged, good, registers), 3, "certificate 'Simulated SGX Root CA': not signed by")


def test_step_3_certificates_that_cannot_be_read_make_the_quote_malformed(good):
    """A quote whose chain is not PEM is malformed."""
    broken = good.quote.replace(b"-----BEGIN", b"-----BEG1N")
    with pytest.raises(QuoteMalformedError, match="PCK chain: want PEM certificates"):
        good.but(quote=broken).verify()


@pytest.mark.parametrize(
    ("which", "settings", "message"),
    [
        ("root", {"number": None}, "want number 0 or more, got None"),
        ("pck", {"number": None}, "want number 0 or more, got None"),
        ("root", {"delta": True}, "want a full CRL"),
        ("pck", {"delta": True}, "want a full CRL"),
        ("pck", {"days": -1}, "."),
    ],
)
def test_step_4_crls_of_another_kind_are_refused(good, pki, at, which, settings, message):
    """A CRL without number, a delta CRL, or one that ended is refused, the root's and the CA's alike."""
    if settings == {"days": -1}:
        settings, at = {"days": 1}, at - timedelta(days=2)
    root, authority = root_issuer(pki), Issuer(subject_name(PCK_AUTHORITY), pki.keys.pck_authority)
    changes = {"root": {"root_ca_crl": crl(root, at, **settings)}, "pck": {"pck_crl": crl(authority, at, **settings)}}
    refused(good.but(collateral=replace(good.collateral, **changes[which])), 4, f"CRL of .*{message}")


@pytest.mark.parametrize("minimum", ["min_root_crl_number", "min_pck_crl_number"])
def test_step_4_an_older_crl_than_seen_is_refused(good, minimum):
    """A CRL whose number is below the highest seen is refused; equal is taken."""
    assert good.but(policy=VerificationPolicy(**{minimum: 1})).verify() == good.verify()
    refused(good.but(policy=VerificationPolicy(**{minimum: 2})), 4, "CRL of .*: want number 2 or more, got 1")


def test_step_4_crls_are_not_interchangeable(good):
    """The PCK CA's CRL does not serve as the root's, nor the reverse."""
    collateral = good.collateral
    for changes in ({"root_ca_crl": collateral.pck_crl}, {"pck_crl": collateral.root_ca_crl}):
        refused(good.but(collateral=replace(collateral, **changes)), 4, "CRL of .*: not signed by it")


def test_step_4_the_crl_issuer_is_the_leafs_issuer(good, pki, at):
    """Another CA of the same name and root, with a CRL of its own, does not speak for the leaf; nor does a signer."""
    other_key = ec.generate_private_key(ec.SECP256R1())
    namesake = issue_certificate(PCK_AUTHORITY, other_key.public_key(), root_issuer(pki), at=at)
    own_crl = crl(Issuer(namesake.subject, other_key), at)

    others = replace(good.collateral, pck_crl_issuer_chain=pem(namesake, pki.root), pck_crl=own_crl)
    refused(good.but(collateral=others), 4, "PCK CRL issuer chain: want the CA that issued")
    signers = replace(good.collateral, pck_crl_issuer_chain=pem(pki.tcb_signer, pki.root))
    refused(good.but(collateral=signers), 4, "certificate: want the role")


def test_step_4_a_root_of_another_path_length_is_refused(good, pki, registers, at):
    """A root that may end longer chains is refused."""
    role = replace(ROOT, path_length=2)
    longer = replace(pki, root=issue_certificate(role, pki.keys.root.public_key(), root_issuer(pki), at=at))
    refused(attempt(longer, good, registers), 4, "certificate 'Simulated SGX Root CA': want a CA of path length 1")


def test_step_4_a_ca_in_another_role_is_refused(good, pki, registers, at):
    """A CA under the root whose CN is not that of a PCK CA issues no platforms."""
    role = replace(PCK_AUTHORITY, name="Simulated SGX Other CA")
    authority = issue_certificate(role, pki.keys.pck_authority.public_key(), root_issuer(pki), at=at)
    issuer = Issuer(subject_name(role), pki.keys.pck_authority)
    pck = issue_certificate(PCK, pki.keys.pck.public_key(), issuer, at=at, platform=pki.platform)
    other = replace(pki, pck_authority=authority, pck=pck)
    refused(attempt(other, good, registers), 4, "certificate: want the role Simulated SGX PCK Platform CA or ")


def test_step_4_a_ca_that_the_root_did_not_issue_is_refused(good, pki, registers, at):
    """A PCK CA with the right name and key, but not signed by the root, is refused."""
    stranger = Issuer(subject_name(ROOT), pki.keys.attestation)
    authority = issue_certificate(PCK_AUTHORITY, pki.keys.pck_authority.public_key(), stranger, at=at)
    forged = replace(pki, pck_authority=authority)
    message = "certificate 'Simulated SGX PCK Platform CA': not signed by certificate 'Simulated SGX Root CA'"
    refused(attempt(forged, good, registers), 4, message)
    refused(attempt(forged, good, registers, collateral=good.collateral), 7, message)


def test_step_4_a_revoked_ca_is_refused(good, pki):
    """A PCK CA that the root's CRL lists is refused."""
    revoked = pki.collateral(revoked=(pki.pck_authority.serial_number,))
    refused(good.but(collateral=revoked), 4, "certificate 'Simulated SGX PCK Platform CA': revoked, serial 2")


@pytest.mark.parametrize("name", ["pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"])
def test_step_4_and_5_issuer_chains_have_two_certificates(good, pki, name):
    """An issuer chain of one, three, or ending in another certificate is refused."""
    first = pki.pck_authority if name.startswith("pck") else pki.tcb_signer
    step = 4 if name.startswith("pck") else 5
    for chain in (pem(first), pem(first, pki.root, pki.root), pem(first, first)):
        changed = replace(good.collateral, **{name: chain})
        refused(good.but(collateral=changed), step, ".* issuer chain: want exactly an issuer and the root")


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_step_5_documents_are_signed_over_their_exact_text(good, name):
    """One space more in a document and its signature no longer verifies."""
    changed = replace(good.collateral, **{name: getattr(good.collateral, name) + " "})
    refused(good.but(collateral=changed), 5, ".*: its signature does not verify")


def test_step_5_documents_overdue_or_not_yet_issued_are_refused(good, pki):
    """A document is refused outside its own period, even when the CRLs are current."""
    for change in ({"nextUpdate": "2027-01-15T07:59:59Z"}, {"issueDate": "2027-01-15T08:00:01Z"}):
        refused(good.but(collateral=with_tcb_info(pki, good.collateral, **change)), 5, "TCB info: good .* not at")
        refused(good.but(collateral=with_qe_identity(pki, good.collateral, **change)), 5, "QE identity: good .* not at")


def test_step_5_documents_hold_in_the_second_of_their_next_update(good, pki, at):
    """At `nextUpdate` itself a document still holds, as its makers' verifiers and the quote library have it."""
    for changed in (with_tcb_info, with_qe_identity):
        last = good.but(collateral=changed(pki, good.collateral, nextUpdate="2027-01-15T08:00:00Z"))
        assert last.verify().expires_at == at + timedelta(seconds=1)
        assert last.but(at=at + timedelta(microseconds=999_999)).verify() == last.verify()
        refused(last.but(at=at + timedelta(seconds=1)), 5, ".*: good .* not at")


def test_step_5_a_revoked_tcb_signer_is_refused(good, pki):
    """A signer of documents that the root's CRL lists is refused."""
    revoked = pki.collateral(revoked=(pki.tcb_signer.serial_number,))
    refused(good.but(collateral=revoked), 5, "certificate 'Simulated SGX TCB Signing': revoked")


def test_step_5_a_signer_in_another_role_is_refused(good, pki, registers, at):
    """An end entity of another name signs no documents, though the root issued it."""
    role = replace(TCB_SIGNER, name="Simulated SGX Other Signing")
    signer = issue_certificate(role, pki.keys.tcb_signer.public_key(), root_issuer(pki), at=at)
    message = "certificate: want the role Simulated SGX TCB Signing, got 'Simulated SGX Other Signing'"
    refused(attempt(replace(pki, tcb_signer=signer), good, registers), 5, message)


def test_step_5_a_signer_that_is_a_ca_is_refused(good, pki, registers, at):
    """A certificate of the signer's name that may sign certificates is refused."""
    role = replace(TCB_SIGNER, path_length=0)
    signer = issue_certificate(role, pki.keys.tcb_signer.public_key(), root_issuer(pki), at=at)
    refused(attempt(replace(pki, tcb_signer=signer), good, registers), 5, ".*want an end entity, got a CA")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tcbType": 1}, "TCB info: TDX version 3 type 1 does not fit"),
        ({"version": 2}, "TCB info: TDX version 2 type 0 does not fit"),
        ({"id": "SGX"}, "TCB info: SGX version 3 type 0 does not fit"),
        ({"pceId": "0001"}, "TCB info: want FMSPC 50806f000000 and PCEID 0000, got 50806f000000 and 0001"),
        ({"fmspc": "50806F000001"}, "TCB info: want FMSPC 50806f000000 .* got 50806f000001"),
    ],
)
def test_step_6_tcb_info_of_something_else_is_refused(good, pki, change, message):
    """TCB info of another type, version, TEE or platform is refused, however well signed."""
    refused(good.but(collateral=with_tcb_info(pki, good.collateral, **change)), 6, message)


@pytest.mark.parametrize("change", [{"id": "QE"}, {"id": "QVE"}, {"version": 1}])
def test_step_6_another_enclaves_identity_is_refused(good, pki, change):
    """An identity of another kind of enclave, or of an old version, is refused."""
    refused(good.but(collateral=with_qe_identity(pki, good.collateral, **change)), 6, "QE identity: .* does not fit")


def test_step_6_evaluation_numbers_below_the_minimum_are_refused(good, pki):
    """Both documents must reach the minimum; the result carries the lower number."""
    policy = VerificationPolicy(min_evaluation_number=18)
    assert good.but(policy=policy).verify().evaluation_number == 18
    for collateral in (
        with_tcb_info(pki, good.collateral, tcbEvaluationDataNumber=17),
        with_qe_identity(pki, good.collateral, tcbEvaluationDataNumber=17),
    ):
        assert good.but(collateral=collateral).verify().evaluation_number == 17
        refused(good.but(collateral=collateral, policy=policy), 6, "TCB evaluation: want number 18 or more, got 17")


def test_step_7_revoked_platforms_are_refused(good, pki):
    """A PCK certificate that its CA's CRL lists is refused."""
    revoked = pki.collateral(revoked=(pki.pck.serial_number,))
    refused(good.but(collateral=revoked), 7, "certificate 'Simulated SGX PCK Certificate': revoked, serial 1001")


def test_step_7_a_key_in_two_roles_is_refused(good, pki, registers, at):
    """A maker that uses one key as CA and as signer of documents is refused."""
    keys = replace(pki.keys, tcb_signer=pki.keys.pck)
    signer = issue_certificate(TCB_SIGNER, keys.tcb_signer.public_key(), root_issuer(pki), at=at)
    shared = replace(pki, keys=keys, tcb_signer=signer)
    refused(attempt(shared, good, registers), 7, "chains: want one key per role")


def test_step_7_a_leaf_on_another_curve_is_refused(good, pki, registers, at):
    """A PCK certificate over a P-384 key is refused."""
    issuer = Issuer(subject_name(PCK_AUTHORITY), pki.keys.pck_authority)
    key = ec.generate_private_key(ec.SECP384R1())
    leaf = issue_certificate(PCK, key.public_key(), issuer, at=at, platform=pki.platform)
    refused(attempt(replace(pki, pck=leaf), good, registers, collateral=good.collateral), 7, ".*want a P-256 key")


def test_step_7_a_ca_of_another_path_length_is_refused(good, pki, registers, at):
    """A PCK CA that may certify further CAs is refused, in the chain of the CRL already."""
    role = replace(PCK_AUTHORITY, path_length=1)
    authority = issue_certificate(role, pki.keys.pck_authority.public_key(), root_issuer(pki), at=at)
    longer = replace(pki, pck_authority=authority)
    refused(attempt(longer, good, registers), 4, ".*want a CA of path length 0")
    refused(attempt(longer, good, registers, collateral=good.collateral), 7, ".*want a CA of path length 0")


def test_step_7_a_leaf_that_its_ca_did_not_sign_is_refused(good, pki, registers, at):
    """A leaf with the right names and another CA's signature is refused."""
    issuer = Issuer(subject_name(PCK_AUTHORITY), pki.keys.attestation)
    leaf = issue_certificate(PCK, pki.keys.pck.public_key(), issuer, at=at, platform=pki.platform)
    refused(attempt(replace(pki, pck=leaf), good, registers), 7, ".*not signed by certificate 'Simulated SGX PCK Plat")


def test_step_7_a_leaf_in_another_role_is_refused(good, pki, registers, at):
    """A leaf whose CN is not that of a PCK certificate is refused."""
    issuer = Issuer(subject_name(PCK_AUTHORITY), pki.keys.pck_authority)
    leaf = issue_certificate(TCB_SIGNER, pki.keys.pck.public_key(), issuer, at=at, platform=pki.platform)
    refused(attempt(replace(pki, pck=leaf), good, registers), 7, "certificate: want the role Simulated SGX PCK Cert")


def test_step_8_a_leaf_without_a_platform_is_refused(good, pki, registers, at):
    """A leaf that does not say which platform it is for is refused."""
    issuer = Issuer(subject_name(PCK_AUTHORITY), pki.keys.pck_authority)
    leaf = issue_certificate(PCK, pki.keys.pck.public_key(), issuer, at=at)
    with pytest.raises(CollateralMalformedError, match="want exactly one readable SGX extension"):
        attempt(replace(pki, pck=leaf), good, registers, collateral=good.collateral).verify()


@pytest.mark.parametrize(
    ("step", "enclave", "message"),
    [
        (10, QuotingEnclave(report_data=ReportData(bytes(64))), "QE report: does not bind the attestation key"),
        (11, QuotingEnclave(attributes=bytes.fromhex("17" + "00" * 15)), "quoting enclave: runs in debug mode"),
        (
            11,
            QuotingEnclave(attributes=bytes.fromhex("10" + "00" * 15)),
            "quoting enclave: attributes 10.* not vouched",
        ),
        (11, QuotingEnclave(mr_signer=bytes(32)), "quoting enclave: want signer dc9e.*, got 0000"),
        (11, QuotingEnclave(isv_prod_id=1), "quoting enclave: want product 2, got 1"),
        (11, QuotingEnclave(misc_select=b"\x01\x00\x00\x00"), "quoting enclave: MISCSELECT 01000000 is not"),
        (13, QuotingEnclave(isv_svn=3), "quote library: .*"),
    ],
)
def test_step_10_to_13_another_quoting_enclave_is_refused(good, pki, registers, step, enclave, message):
    """A quoting enclave that binds no key, is debuggable, of another maker or kind, or too old is refused."""
    quote = make_quote(pki, registers=registers, report_data=REPORT_DATA, quoting_enclave=enclave)
    refused(good.but(quote=quote), step, message)


@pytest.mark.parametrize(
    ("step", "offset"),
    [(9, 870), (9, 1154), (9, 1187), (10, 700), (10, 1220), (12, 30), (12, 200), (12, 540), (12, 636), (12, 668)],
)
def test_step_9_to_12_every_signed_part_is_signed(good, step, offset):
    """One bit flipped in body, reports, keys or signatures fails at the step that covers it."""
    quote = bytearray(good.quote)
    quote[offset] ^= 1
    refused(good.but(quote=bytes(quote)), step, ".")


def test_step_12_an_attestation_key_off_the_curve_is_refused(good, pki, registers):
    """A bound attestation key that is no point of the curve is refused, not a crash."""
    quote = parse_quote(good.quote)
    off_curve = bytes(63) + b"\x01"
    report_data = ReportData(hashlib.sha256(off_curve + quote.signature.qe_auth_data).digest() + bytes(32))
    other = parse_quote(
        make_quote(
            pki,
            registers=registers,
            report_data=REPORT_DATA,
            quoting_enclave=QuotingEnclave(report_data=report_data),
        )
    )
    forged = replace(other, signature=replace(other.signature, attestation_key=off_curve))
    check_key_binding(forged.signature)
    with pytest.raises(QuoteUntrustedError, match="step 12: attestation key: not a point of P-256"):
        attestation_key(forged.signature.attestation_key)


def test_step_13_no_matching_level_is_refused(good, pki):
    """A platform that no TCB level describes is refused by the library, and its reason is passed on."""
    refused(good.but(collateral=with_tcb_info(pki, good.collateral, tcbLevels=[])), 13, "quote library: .*TCB level")


def test_step_13_tcb_info_without_module_identities_rates_legacy_modules_alone(good, pki, registers, at):
    """Identities came later than TCB info: without them a module of version 0 is rated, and no other is."""
    text = json.dumps({k: v for k, v in json.loads(good.collateral.tcb_info).items() if k != "tdxModuleIdentities"})
    signature = raw_signature(pki.keys.tcb_signer, text.encode())
    older = good.but(collateral=replace(good.collateral, tcb_info=text, tcb_info_signature=signature))
    svn = {"tee_tcb_svn": bytes([6, 0, 9]).ljust(16, b"\0")}
    raw = make_quote(pki, registers=registers, report_data=REPORT_DATA, fields_override=svn)
    policy = VerificationPolicy(relaxations=(AllowLegacyModule(LATER),))

    assert older.but(quote=raw, policy=policy).verify().tcb_status is TcbStatus.UP_TO_DATE
    refused(older.but(quote=raw), 15, "TDX module: version 0 has no module identity")
    refused(older.but(policy=policy), 13, "quote library: .*TDX module")


@pytest.mark.parametrize(
    ("step", "field", "value", "message"),
    [
        (14, "td_attributes", "0100001000000000", "TD attributes 0x0000000010000001: the TD can be debugged"),
        (14, "td_attributes", "8000001000000000", "TD attributes .*: the TD can be debugged"),
        (14, "td_attributes", "0000000000000000", "TD attributes .*: want SEPT_VE_DISABLE"),
        (14, "td_attributes", "0000003000000000", "TD attributes .*: the TD can be migrated"),
        (14, "td_attributes", "0000005000000000", "TD attributes .*: the policy allows 0x0000000010000000"),
        (14, "td_attributes", "0001001000000000", "TD attributes .*: the policy allows"),
        (15, "mr_signer_seam", "01" + "00" * 47, "TDX module: want zero MRSIGNERSEAM"),
        (15, "seam_attributes", "01" + "00" * 7, "TDX module: want zero MRSIGNERSEAM"),
        (15, "tee_tcb_svn", "060009" + "00" * 13, "TDX module: version 0 has no module identity"),
        (15, "xfam", "00" * 8, "XFAM 0x0000000000000000: want x87 and SSE"),
        (15, "xfam", "02" + "00" * 7, "XFAM 0x0000000000000002: want x87 and SSE"),
    ],
)
def test_step_14_and_15_other_tds_are_refused(good, pki, registers, step, field, value, message):
    """A TD that can be debugged or migrated, or an unknown module, is refused though Intel's key signed the quote."""
    quote = make_quote(pki, registers=registers, report_data=REPORT_DATA, fields_override={field: bytes.fromhex(value)})
    refused(good.but(quote=quote), step, message)


def test_step_14_the_policy_may_allow_three_attributes(good, pki, registers):
    """PKS, KL and PERFMON can be allowed, each by its bit; no other bit can."""
    for bit in (30, 31, 63):
        attributes = (1 << 28 | 1 << bit).to_bytes(8, "little")
        quote = make_quote(
            pki, registers=registers, report_data=REPORT_DATA, fields_override={"td_attributes": attributes}
        )
        allowing = VerificationPolicy(relaxations=(AllowTdAttribute(bit, LATER),))
        assert good.but(quote=quote, policy=allowing).verify().tcb_status is TcbStatus.UP_TO_DATE
        refused(good.but(quote=quote), 14, "TD attributes")
    with pytest.raises(ConfigError, match=r"TD attributes: bits \[0\] cannot be allowed"):
        AllowTdAttribute(0, LATER)


def test_step_15_the_policy_may_list_modules_and_mask_features(good):
    """With a list of MRSEAMs only those run; with an XFAM mask no feature outside it."""
    body = parse_quote(good.quote).body
    xfam = int.from_bytes(body.xfam, "little")
    allowing = VerificationPolicy(mr_seams=frozenset({body.mr_seam}), xfam=xfam)

    assert good.but(policy=allowing).verify() == good.verify()
    none = VerificationPolicy(mr_seams=frozenset({Register(bytes(48))}))
    refused(good.but(policy=none), 15, "TDX module: the policy does not list MRSEAM")
    refused(good.but(policy=VerificationPolicy(xfam=xfam & ~(1 << 17))), 15, "XFAM")


@pytest.mark.parametrize("status", [status for status in LEVEL_STATUSES if status is not TcbStatus.REVOKED])
def test_step_19_statuses_are_accepted_by_policy_alone(good, pki, registers, status):
    """Each status is accepted by a policy that names it and by no other, and the advisories come along."""
    quote = make_quote(pki, registers=registers, report_data=REPORT_DATA, tcb_status=status.value)
    naming = VerificationPolicy(relaxations=(AcceptStatus(status, LATER),))
    others = accepting(*(other for other in LEVEL_STATUSES if other not in (status, TcbStatus.REVOKED)))

    verified = good.but(quote=quote, policy=naming).verify()

    assert verified.tcb_status is status
    assert bool(verified.advisory_ids) == (status is not TcbStatus.UP_TO_DATE)
    if status is not TcbStatus.UP_TO_DATE:
        refused(good.but(quote=quote, policy=others), 19, f"TCB status {status.value}.* is not accepted")


def test_step_13_revoked_is_refused_by_every_policy(good, pki, registers):
    """A revoked platform is refused, and no policy can be written that accepts it."""
    quote = make_quote(pki, registers=registers, report_data=REPORT_DATA, tcb_status="Revoked")
    every = accepting(*(status for status in TcbStatus if status is not TcbStatus.REVOKED))

    refused(good.but(quote=quote, policy=every), 13, "quote library: .*Revoked")
    with pytest.raises(ConfigError, match="Revoked cannot be accepted"):
        AcceptStatus(TcbStatus.REVOKED, LATER)


@BROKEN_CERTIFICATES
@given(data=st.data())
def test_a_changed_byte_changes_no_answer(good, data):
    """Any byte of a quote changed: it is refused by our error, or (outside what is signed) the answer is the same."""
    quote = bytearray(good.quote)
    offset = data.draw(st.integers(0, len(quote) - 1))
    quote[offset] ^= data.draw(st.integers(1, 255))
    try:
        verified = good.but(quote=bytes(quote)).verify()
    except DstackError:
        return
    unchanged = replace(verified, quote=good.verify().quote)
    assert (unchanged, verified.quote.signed) == (good.verify(), parse_quote(good.quote).signed)


@BROKEN_CERTIFICATES
@given(data=st.data())
def test_a_changed_byte_of_collateral_is_refused(good, data):
    """Any byte changed in a CRL, a document or its signature is refused by our error, however it breaks the parsing."""
    names = ("root_ca_crl", "pck_crl", "tcb_info", "tcb_info_signature", "qe_identity", "qe_identity_signature")
    name = data.draw(st.sampled_from(names))
    value = getattr(good.collateral, name)
    content = bytearray(value.encode() if isinstance(value, str) else value)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 127))
    changed = content.decode() if isinstance(value, str) else bytes(content)
    with pytest.raises(DstackError, match=r"."):
        good.but(collateral=replace(good.collateral, **{name: changed})).verify()


@BROKEN_CERTIFICATES
@given(data=st.data())
def test_a_changed_byte_of_a_chain_raises_our_errors_only(good, data):
    """Any byte changed in an issuer chain: refused by our error, or the certificate is still the same."""
    name = data.draw(st.sampled_from(("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")))
    content = bytearray(getattr(good.collateral, name).encode())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 127))
    try:
        verified = good.but(collateral=replace(good.collateral, **{name: content.decode()})).verify()
    except DstackError:
        return
    assert verified == good.verify()


def test_step_4_a_crl_of_another_algorithm_is_refused(good, at):
    """A CRL in the root's name but signed with RSA or Ed25519 is refused, not a crash."""
    builder = x509.CertificateRevocationListBuilder(subject_name(ROOT), at, at + timedelta(days=1))
    builder = builder.add_extension(x509.CRLNumber(1), critical=False)
    signed = (
        builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        builder.sign(ed25519.Ed25519PrivateKey.generate(), None),
    )
    for revocation_list in signed:
        changed = replace(good.collateral, root_ca_crl=revocation_list.public_bytes(Encoding.DER))
        refused(good.but(collateral=changed), 4, "CRL of certificate 'Simulated SGX Root CA': not signed by it")


@pytest.mark.parametrize("role", ["pck", "pck_authority", "root"])
def test_an_attestation_key_has_no_other_role(pki, good, registers, role):
    """Who signs certificates, or is certified, does not sign quotes as well."""
    mixed = replace(pki, keys=replace(pki.keys, attestation=getattr(pki.keys, role)))
    quote = make_quote(mixed, registers=registers, report_data=REPORT_DATA)
    refused(good.but(quote=quote), 12, "attestation key: it is the key of a certificate")


def test_the_library_must_mean_the_same_platform(good, monkeypatch):
    """Where the quote library reads another PPID than we do, nobody knows which machine it is."""
    real = dcap_qvl.verify_with_root_ca

    def other(*arguments):
        answer = real(*arguments)
        return SimpleNamespace(status=answer.status, advisory_ids=answer.advisory_ids, ppid=bytes(16))

    assert good.verify().ppid != bytes(16)
    monkeypatch.setattr(dcap_qvl, "verify_with_root_ca", other)
    refused(good, 13, "quote library: it names another platform")
