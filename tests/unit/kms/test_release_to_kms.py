"""Root keys: only for a machine that the chain permits to be a KMS."""

from __future__ import annotations

import ssl

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.errors import KeyReleaseDeniedError, UnavailableError
from dstack.policy import Granted
from kms.authorization import Permit
from kms.decisions import Question, Subject
from kms.generation import generate_keys
from kms.release import KeyRelease
from kms.roots import Roots
from tests.unit.kms.conftest import AT, Machine, World, allow_kms, app_machine, client_identity, kms_machine

KEYS = generate_keys("kms.example", kms_machine(), at=AT)


def certificate_of(machine: Machine | None, *, bound_to: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """What TLS tells the KMS of a caller: its certificate in DER."""
    identity = client_identity(machine, KEYS.temp_ca, bound_to=bound_to)
    return ssl.PEM_cert_to_DER_cert(identity.certificate_pem)


@pytest.fixture
def release(world: World) -> KeyRelease:
    """The release of a KMS that the chain permits."""
    allow_kms(world)
    return KeyRelease(KEYS.roots, world.own, world.verifier, world.chain)


def test_permitted_kms_gets_the_root_keys(release: KeyRelease) -> None:
    """What a new KMS receives makes it the same KMS."""
    handed_over = release.root_keys(certificate_of(kms_machine()), "", "request")

    assert Roots.from_peer(handed_over) == KEYS.roots


def test_permitted_app_is_no_kms(release: KeyRelease) -> None:
    """A machine that may have its app's keys may not have the root keys."""
    release.app_keys(certificate_of(app_machine()), "", "request")

    with pytest.raises(KeyReleaseDeniedError, match=r"^KMS not allowed: Boot denied: Aggregated MR not allowed$"):
        release.root_keys(certificate_of(app_machine()), "", "request")


@pytest.mark.parametrize("certificate", [None, certificate_of(None)], ids=["no certificate", "no evidence in it"])
def test_caller_without_evidence_gets_nothing(release: KeyRelease, certificate: bytes | None) -> None:
    """There is no way to the root keys without evidence."""
    with pytest.raises(KeyReleaseDeniedError, match=r"^KMS not allowed: No attestation provided$"):
        release.root_keys(certificate, "", "request")


def test_evidence_behind_another_key_gets_nothing(release: KeyRelease) -> None:
    """The evidence of a permitted KMS does not speak for whoever copied it."""
    stolen = certificate_of(kms_machine(), bound_to=ec.generate_private_key(ec.SECP256R1()))

    with pytest.raises(KeyReleaseDeniedError, match=r"^KMS not allowed: report data: "):
        release.root_keys(stolen, "", "request")


def test_kms_that_is_not_permitted_hands_nothing_over(world: World, release: KeyRelease) -> None:
    """The giving side must be permitted too, and asks first."""
    world.chain.kms_machines.clear()

    with pytest.raises(KeyReleaseDeniedError, match=r"^KMS self authorization failed: KMS is not allowed: "):
        release.root_keys(certificate_of(kms_machine()), "", "request")


def test_silent_chain_hands_nothing_over(world: World, release: KeyRelease) -> None:
    """Could not ask is not yes."""
    world.chain.reachable = False

    with pytest.raises(UnavailableError, match=r"^could not ask: chain: no endpoint answered$"):
        release.root_keys(certificate_of(kms_machine()), "", "request")


@pytest.mark.parametrize("subject", sorted(set(Subject) - {Subject.KMS}, key=lambda each: each.label))
def test_permit_for_something_else_is_none(release: KeyRelease, subject: Subject) -> None:
    """A yes to another question does not open the root keys, nor the other way round."""
    permit = release.own.require(_question(Subject.SELF))
    other = Permit(subject, permit.boot, Granted(permit.granted.block))

    with pytest.raises(KeyReleaseDeniedError, match=f"want a permit for kms, got one for {subject.label}"):
        KEYS.roots.release_root_keys(other)
    if subject is not Subject.APP:
        with pytest.raises(KeyReleaseDeniedError, match="want a permit for app, got one for"):
            KEYS.roots.release_app_keys(other, epoch=0)


def _question(subject: Subject) -> Question:
    return Question(subject, "request")
