"""SignCert: certificates under an app's authority, for machines that the chain permits to be that app."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.app_info import AppInfo, parse_app_info
from dstack.attestation.evidence import parse_evidence, serialise_evidence, strip_evidence
from dstack.attestation.report_data import ratls_report_data
from dstack.attestation.signing_request import serialise_signing_request
from dstack.errors import InputError, KeyReleaseDeniedError, MessageMalformedError, SignatureUntrustedError
from dstack.keys import derive_app_ca, p256_from_scalar
from dstack.keys.app_certs import CertificateWishes
from dstack.keys.certs import OID_APP_ID, OID_APP_INFO, OID_ATTESTATION, certificate_payload
from dstack.keys.pem import load_certificate, spki_der
from dstack.measurement.event_log import RuntimeEvent
from dstack.measurement.identities import device_id
from dstack.policy import boot_info
from dstack.policy.boot_info import boot_time_info
from kms.generation import generate_keys
from kms.release import KeyRelease
from tests.unit.kms.conftest import (
    APP_ID,
    AT,
    COMPOSE_HASH,
    INSTANCE_ID,
    PKI,
    Machine,
    World,
    allow_kms,
    app_machine,
    kms_machine,
)
from tests.worlds import root_keys

KEYS = generate_keys("kms.example", kms_machine(), at=AT)
KEY = p256_from_scalar(bytes(31) + b"\x05")
WISHES = CertificateWishes(None, "app.example", ("app.example",), True, True, ext_quote=True, ext_app_info=True)


@pytest.fixture
def release(world: World) -> KeyRelease:
    """The release of a KMS that the chain permits."""
    allow_kms(world)
    return KeyRelease(KEYS.roots, world.own, world.verifier, world.chain)


def request(
    machine: Machine, wishes: CertificateWishes = WISHES, *, bound_to: ec.EllipticCurvePrivateKey = KEY
) -> tuple[int, bytes, bytes]:
    """A signed request of *machine*."""
    evidence = machine.evidence(ratls_report_data(spki_der(bound_to)))
    raw = serialise_signing_request(spki_der(KEY), wishes, serialise_evidence(evidence))
    return 2, raw, KEY.sign(raw, ec.ECDSA(hashes.SHA256()))


def signed(release: KeyRelease, asked: tuple[int, bytes, bytes]) -> list[x509.Certificate]:
    """The chain of certificates."""
    return [load_certificate(pem) for pem in release.certificate(KEYS.root_ca_pem, *asked, "", "request")]


def test_permitted_app_gets_a_certificate_under_its_own_authority(release: KeyRelease) -> None:
    """Leaf, app CA and root sign one another; the app CA's key follows from the app id, the leaf is the asker's."""
    leaf, app_ca, root = signed(release, request(app_machine()))

    leaf.verify_directly_issued_by(app_ca)
    app_ca.verify_directly_issued_by(root)
    assert spki_der(app_ca) == spki_der(p256_from_scalar(derive_app_ca(root_keys(KEYS.roots), APP_ID)))
    assert spki_der(leaf) == spki_der(KEY)
    assert [certificate_payload(each, OID_APP_ID) for each in (leaf, app_ca)] == [APP_ID, APP_ID]
    in_leaf = parse_evidence(certificate_payload(leaf, OID_ATTESTATION) or b"")
    assert in_leaf == strip_evidence(in_leaf)
    assert in_leaf.report_data == ratls_report_data(spki_der(KEY))


def test_app_info_is_that_of_verified_evidence(release: KeyRelease, world: World) -> None:
    """It names app, image and device; unlike upstream's, which is made before anything is verified."""
    machine = app_machine()
    bound_to = ratls_report_data(spki_der(KEY))
    boot = boot_info(world.verifier.appraise(machine.evidence(bound_to), bound_to=bound_to))

    leaf = signed(release, request(machine))[0]

    assert parse_app_info(certificate_payload(leaf, OID_APP_INFO) or b"") == AppInfo(
        APP_ID,
        COMPOSE_HASH,
        INSTANCE_ID,
        device_id(PKI.platform.ppid),
        boot.mr_system,
        boot.mr_aggregated,
        boot.os_image_hash,
        boot.key_provider_info,
    )


def test_what_is_not_wished_for_is_not_there(release: KeyRelease) -> None:
    """Evidence and app info are in the certificate only on request."""
    leaf = signed(release, request(app_machine(), replace(WISHES, ext_quote=False, ext_app_info=False)))[0]

    assert [certificate_payload(leaf, oid) for oid in (OID_ATTESTATION, OID_APP_INFO)] == [None, None]


def test_chain_is_asked_about_the_machine_as_it_booted(release: KeyRelease, world: World) -> None:
    """What the app extended into RTMR3 after it got its keys changes nothing of the question."""
    machine = app_machine()
    bound_to = ratls_report_data(spki_der(KEY))
    before = boot_time_info(world.verifier.appraise(machine.evidence(bound_to), bound_to=bound_to))
    machine.platform.extend(RuntimeEvent("app event", b"later"))

    signed(release, request(machine))

    assert world.chain.asked[-1] == before
    appraisal = world.verifier.appraise(machine.evidence(bound_to), bound_to=bound_to)
    assert boot_info(appraisal).mr_aggregated != before.mr_aggregated


def test_evidence_of_another_key_is_refused(release: KeyRelease) -> None:
    """Evidence that somebody else's key was bound to does not speak for this request."""
    other = ec.generate_private_key(ec.SECP256R1())

    with pytest.raises(KeyReleaseDeniedError, match=r"^Certificate not allowed: report data: ") as refused:
        signed(release, request(app_machine(), bound_to=other))

    assert refused.value.rule == "APPRAISAL"


def test_app_that_the_chain_does_not_permit_gets_none(release: KeyRelease, world: World) -> None:
    """The chain's reason follows upstream's words."""
    world.chain.compose_hashes.clear()

    with pytest.raises(KeyReleaseDeniedError, match=r"^Certificate not allowed: Boot denied: Compose hash"):
        signed(release, request(app_machine()))


def test_request_that_was_changed_is_refused(release: KeyRelease) -> None:
    """Who does not hold the key cannot have it certified, whatever the evidence says."""
    version, raw, signature = request(app_machine())

    with pytest.raises(SignatureUntrustedError, match="its signature is not by the key in it"):
        signed(release, (version, raw, signature[:-1] + bytes((signature[-1] ^ 1,))))


@pytest.mark.parametrize("version", [0, 3])
def test_other_api_versions_are_refused(release: KeyRelease, version: int) -> None:
    """In upstream's words."""
    with pytest.raises(MessageMalformedError, match=f"^Unsupported API version: {version}$"):
        signed(release, (version, *request(app_machine())[1:]))


def test_wish_that_cannot_be_granted_is_named(release: KeyRelease) -> None:
    """A permitted app learns which of its wishes no certificate can hold."""
    with pytest.raises(InputError, match="subject_alt_names: want a DNS name or an IP address, got 'no name'"):
        signed(release, request(app_machine(), replace(WISHES, subject_alt_names=("no name",))))


def test_kms_that_is_not_permitted_signs_nothing(release: KeyRelease, world: World) -> None:
    """It asks about itself before it reads the request."""
    world.chain.kms_machines.clear()

    with pytest.raises(KeyReleaseDeniedError, match=r"^KMS self authorization failed: "):
        signed(release, (2, b"", b""))
