"""App keys: only by a permit, only for whom the connection's evidence speaks."""

from __future__ import annotations

import ast
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.errors import KeyReleaseDeniedError, UnavailableError
from dstack.keys import (
    RootKeys,
    derive_app_keys,
    derive_env_key,
    env_public_key,
    k256_public_key,
    verify_env_public_key,
)
from kms.generation import generate_keys
from kms.release import KeyRelease
from kms.roots import Roots
from tests.unit.kms.conftest import (
    APP_ID,
    AT,
    COMPOSE_HASH,
    INSTANCE_ID,
    Machine,
    World,
    allow_kms,
    app_machine,
    client_identity,
    kms_machine,
)

ROOT = RootKeys(ca=bytes([1]) * 32, k256=bytes([2]) * 32)
TEMP_CA = generate_keys("kms.example", kms_machine(), at=AT).temp_ca


def certificate_of(machine: Machine | None, *, bound_to: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """What TLS tells the KMS of a caller: its certificate in DER."""
    return ssl.PEM_cert_to_DER_cert(client_identity(machine, TEMP_CA, bound_to=bound_to).certificate_pem)


@pytest.fixture
def release(world: World) -> KeyRelease:
    """The release of a KMS that the chain permits."""
    allow_kms(world)
    return KeyRelease(Roots(ROOT), world.own, world.verifier, world.chain)


def test_permitted_app_gets_its_keys(release: KeyRelease) -> None:
    """The keys are those of the app and instance that the evidence names, with the permit they rest on."""
    released = release.app_keys(certificate_of(app_machine()), "", "request")

    assert released.keys == derive_app_keys(ROOT, APP_ID, INSTANCE_ID)
    assert released.permit.boot.compose_hash == COMPOSE_HASH


def test_app_without_instance_id_gets_the_shared_keys(release: KeyRelease) -> None:
    """An app whose instances have no id gets the keys of no instance."""
    released = release.app_keys(certificate_of(Machine(COMPOSE_HASH, APP_ID)), "", "request")

    assert released.keys == derive_app_keys(ROOT, APP_ID, None)


@pytest.mark.parametrize("certificate", [None, certificate_of(None)], ids=["no certificate", "no evidence in it"])
def test_caller_without_evidence_is_refused(release: KeyRelease, certificate: bytes | None) -> None:
    """A caller that shows no evidence is refused in upstream's words."""
    with pytest.raises(KeyReleaseDeniedError, match=r"^App not allowed: No attestation provided$") as refused:
        release.app_keys(certificate, "", "request")

    assert refused.value.rule == "EVIDENCE_MISSING"


def test_evidence_bound_to_another_key_is_refused(release: KeyRelease) -> None:
    """A genuine quote that somebody else's key was bound to does not speak for this connection."""
    stolen = certificate_of(app_machine(), bound_to=ec.generate_private_key(ec.SECP256R1()))

    with pytest.raises(KeyReleaseDeniedError, match=r"^App not allowed: report data: ") as refused:
        release.app_keys(stolen, "", "request")

    assert refused.value.rule == "APPRAISAL"


def test_nothing_is_released_by_a_kms_that_is_not_permitted(world: World, release: KeyRelease) -> None:
    """The KMS asks about itself first: neither app keys nor env keys leave one that the chain no longer permits."""
    world.chain.kms_machines.clear()

    with pytest.raises(KeyReleaseDeniedError, match=r"^KMS self authorization failed: KMS is not allowed: "):
        release.app_keys(certificate_of(app_machine()), "", "request")
    with pytest.raises(KeyReleaseDeniedError, match=r"^KMS self authorization failed: KMS is not allowed: "):
        release.env_key(APP_ID, None, "request")


def test_chain_that_does_not_answer_releases_nothing(world: World, release: KeyRelease) -> None:
    """Without the chain there are no keys and there is no denial."""
    world.chain.reachable = False

    with pytest.raises(UnavailableError, match=r"^could not ask: chain: no endpoint answered$"):
        release.app_keys(certificate_of(app_machine()), "", "request")


def test_env_key_is_vouched_for(release: KeyRelease) -> None:
    """The env key is signed by the root, without and with the time it was asked at."""
    key = release.env_key(APP_ID, None, "request")

    assert key.timestamp == int(AT.timestamp())
    root = k256_public_key(ROOT.k256)
    verify_env_public_key(root, APP_ID, key.public_key, key.timestamp, key.signature_v1)
    verify_env_public_key(root, APP_ID, key.public_key, None, key.signature)
    assert key.public_key == env_public_key(derive_env_key(ROOT, APP_ID))


def test_only_a_permit_leads_to_app_keys(project_root: Path) -> None:
    """In the whole KMS one function derives app keys, and it takes a permit; one function makes permits."""
    used: dict[str, list[tuple[str, str]]] = {"derive_app_keys": [], "Permit": []}
    for path in sorted((project_root / "kms").glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for call in ast.walk(function):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in used:
                        used[call.func.id].append((path.name, function.name))

    assert used == {
        "derive_app_keys": [("roots.py", "release_app_keys")],
        "Permit": [("authorization.py", "authorize")],
    }
