"""Properties of evidence and collateral: what is written is read again, and every signed byte counts."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from dstack.attestation.app_info import AppInfo, parse_app_info, serialise_app_info
from dstack.attestation.collateral import NAMES, parse_collateral, serialise_collateral
from dstack.attestation.evidence import Evidence, parse_evidence, serialise_evidence
from dstack.attestation.evidence_v1 import parse_evidence_v1, serialise_evidence_v1
from dstack.attestation.pck import PckExtension, parse_pck_extension
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verify_collateral import verify_collateral
from dstack.errors import CollateralMalformedError, QuoteUntrustedError
from dstack.measurement.event_log import RUNTIME_EVENT_TYPE, Event, RuntimeEvent, logged
from dstack.measurement.mr_config_id import ConfigDocument, parse_config_document, serialise_config_document
from dstack.simulator.certificates import SGX_EXTENSION, serialise_pck_extension
from dstack.simulator.pki import SimulatedPki
from dstack.values import AppId, ComposeHash, Digest32, InstanceId, ReportData
from tests.fuzz.targets import certificate_with

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
PKI = SimulatedPki.generate(AT, seed=b"properties")
COLLATERAL = PKI.collateral()
ROOTS = TrustedRoots((simulated_root(PKI.root_der),))


SIGNED = [name for name in NAMES if "chain" not in name]


def octets(size: int) -> st.SearchStrategy[bytes]:
    """Exactly *size* bytes."""
    return st.binary(min_size=size, max_size=size)


text = st.text(st.characters(codec="utf-8"), max_size=30)
short = st.binary(max_size=40)
runtime = st.builds(RuntimeEvent, text, short)
boot = st.builds(
    Event,
    imr=st.integers(0, 2),
    event_type=st.integers(0, 2**32 - 1).filter(lambda kind: kind != RUNTIME_EVENT_TYPE),
    digest=st.binary(min_size=1, max_size=48),
    name=text,
    payload=short,
)
evidences = st.builds(
    Evidence,
    quote=short,
    event_log=st.lists(boot | runtime.map(logged), max_size=6).map(tuple),
    runtime_events=st.lists(runtime, max_size=6).map(tuple),
    report_data=octets(64).map(ReportData),
    config=text,
)
platforms = st.builds(
    PckExtension,
    ppid=octets(16),
    cpu_svn=octets(16),
    pce_svn=st.integers(0, 2**16 - 1),
    pce_id=octets(2),
    fmspc=octets(6),
    sgx_type=st.integers(0, 2),
    platform_instance_id=st.none() | octets(16),
)
digests = octets(32).map(Digest32)
config_documents = st.builds(
    ConfigDocument,
    compose_hash=octets(32).map(ComposeHash),
    key_provider=st.sampled_from(["none", "local", "kms", "tpm"]),
    key_provider_id=st.none() | short,
    app_id=st.none() | octets(20).map(AppId),
    instance_id=st.none() | st.just(b"") | octets(20).map(InstanceId),
    gpu_policy_hash=st.none() | digests,
    init_script_hashes=st.none() | st.lists(digests, max_size=3).map(tuple),
)


@given(evidences)
def test_evidence_that_was_written_is_read_again(evidence: Evidence) -> None:
    """In both forms of the attestation blob."""
    assert parse_evidence(serialise_evidence(evidence)) == evidence
    assert parse_evidence_v1(serialise_evidence_v1(evidence)) == evidence


@given(platforms)
def test_a_platform_that_was_written_is_read_again(platform: PckExtension) -> None:
    """Through a certificate, as quotes carry it."""
    certificate = certificate_with({SGX_EXTENSION.dotted_string: serialise_pck_extension(platform)})

    assert parse_pck_extension(certificate) == platform


@given(st.builds(AppInfo, *[short] * len(fields(AppInfo))))
def test_app_info_that_was_written_is_read_again(info: AppInfo) -> None:
    """Whatever its eight members hold."""
    assert parse_app_info(serialise_app_info(info)) == info


@given(config_documents)
def test_a_config_document_has_one_spelling(document: ConfigDocument) -> None:
    """What is written is read again, and written the same."""
    written = serialise_config_document(document)

    assert parse_config_document(written) == document
    assert serialise_config_document(parse_config_document(written)) == written


@given(st.binary(max_size=60), st.binary(max_size=60), octets(64), text)
def test_collateral_that_was_written_is_read_again(root_crl: bytes, crl: bytes, signature: bytes, chain: str) -> None:
    """Its wrapping carries any bytes; whether they are CRLs is judged later."""
    collateral = replace(
        COLLATERAL, root_ca_crl=root_crl, pck_crl=crl, tcb_info_signature=signature, qe_identity_issuer_chain=chain
    )

    assert parse_collateral(serialise_collateral(collateral)) == collateral


@pytest.mark.parametrize("name", ["root_ca_crl", "pck_crl"])
@pytest.mark.parametrize("unused", range(1, 8))
def test_a_signature_has_no_unused_bits(name: str, unused: int) -> None:
    """How many bits of a CRL's signature count is not signed; any number but none is refused."""
    raw: bytes = getattr(COLLATERAL, name)
    place = -len(x509.load_der_x509_crl(raw).signature) - 1
    changed = bytearray(raw)
    changed[place] = unused

    with pytest.raises(CollateralMalformedError, match="want a DER CRL"):
        verify_collateral(replace(COLLATERAL, **{name: bytes(changed)}), roots=ROOTS, at=AT + timedelta(days=1))
    assert raw[place] == 0


@given(st.data())
def test_every_byte_of_collateral_is_signed(data: st.DataObject) -> None:
    """One bit changed in any document, signature or CRL: it is refused, whatever else it still says."""
    name = data.draw(st.sampled_from(SIGNED))
    value = getattr(COLLATERAL, name)
    raw = bytearray(value.encode() if isinstance(value, str) else value)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 6))
    changed = replace(COLLATERAL, **{name: raw.decode() if isinstance(value, str) else bytes(raw)})

    with pytest.raises((QuoteUntrustedError, CollateralMalformedError), match=r": "):
        verify_collateral(changed, roots=ROOTS, at=AT + timedelta(days=1))
