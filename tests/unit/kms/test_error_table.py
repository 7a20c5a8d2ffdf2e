"""The table of the KMS's methods and errors (kms.md 2.2): every row, called at real services, answers exactly its text.

A method without a row fails a test, so the table cannot fall behind the services.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.evidence import Evidence
from dstack.errors import AgentUnavailableError
from dstack.keys.certs import OID_ATTESTATION, build_client_cert
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, private_key_pem
from dstack.measurement.vm_config import serialise_vm_config
from dstack.simulator.os_image import make_image
from dstack.transport.listener import Listener
from dstack.transport.tls import TlsIdentity, client_context, server_context
from dstack.values import ReportData
from dstack.wire.kms import SignCertRequest
from dstack.wire.message import from_json, to_json
from kms.admin import Credentials, LegacyCache, admin_app
from kms.app import kms_app, onboard_app
from kms.generation import generate_keys
from kms.image_cache import ImageCache
from kms.keystore import KeySet, open_keystore
from kms.onboard import Onboarding
from kms.onboard_service import OnboardService
from kms.permission import PermissionWatch
from kms.release import KeyRelease
from kms.service import KmsService
from tests.unit.kms.conftest import (
    AT,
    IMAGE,
    Defects,
    Machine,
    World,
    allow_kms,
    app_machine,
    client_identity,
    kms_machine,
)
from tests.unit.kms.test_app import SETTINGS
from tests.unit.kms.test_release_of_certificates import KEY, request

TOKEN = "the operator's token"


@dataclass(frozen=True)
class Services:
    """A KMS that the chain permits, its operator's service, and one without keys; all at real sockets."""

    world: World
    keys: KeySet
    onboarding: Onboarding
    kms: KmsService
    first_start: OnboardService
    ports: dict[str, int]

    def call(self, method: str, body: object, caller: Machine | None, *, is_bound: bool = True) -> httpx.Response:
        """Call `Service.Method` in JSON; *caller* shows a certificate with evidence of that machine."""
        service, name = method.split(".")
        tls = None
        if caller is not None:
            stranger = None if is_bound else ec.generate_private_key(ec.SECP256R1())
            identity = client_identity(caller, self.keys.temp_ca, bound_to=stranger)
            tls = client_context(ca_pem=self.keys.root_ca_pem, identity=identity)
        elif service == "KMS":
            tls = client_context(ca_pem=self.keys.root_ca_pem)
        url = f"{'https' if service == 'KMS' else 'http'}://localhost:{self.ports[service]}/prpc/{service}.{name}?json"
        headers = {"Authorization": f"Bearer {TOKEN}"} if service == "Admin" else {}
        with httpx.Client(verify=tls or True, headers=headers) as client:
            return client.post(url, content=body if isinstance(body, str) else json.dumps(body))


@pytest.fixture
def services(world: World, tmp_path: Path) -> Iterator[Services]:
    """All of them."""
    allow_kms(world)
    keys = generate_keys("localhost", world.machine, at=AT)
    release = KeyRelease(keys.roots, world.own, world.verifier, world.chain)
    images = ImageCache(tmp_path / "cache", None)
    legacy = LegacyCache(images, Credentials.of_token(TOKEN))
    service = KmsService(keys, release, world.chain, None, simulated=True, cache=legacy)
    with ExitStack() as stack:
        keystore = stack.enter_context(open_keystore(tmp_path / "keys"))
        onboarding = Onboarding(keystore, world.machine, world.verifier, world.own, world.chain)
        first_start = OnboardService(onboarding, world.own, SETTINGS, finish=lambda: None)
        tls = server_context(keys.rpc, client_ca_pem=keys.temp_ca.certificate_pem)
        listeners = {
            "KMS": Listener(kms_app(service), tls=tls),
            "Admin": Listener(admin_app(images, Credentials.of_token(TOKEN))),
            "Onboard": Listener(onboard_app(first_start, PermissionWatch(world.own, world.chain))),
        }
        for listener in listeners.values():
            stack.enter_context(listener.running())
        ports = {name: listener.port for name, listener in listeners.items()}
        yield Services(world, keys, onboarding, service, first_start, ports)


# What is wrong in a row.


def nothing(_: Services) -> None:
    """Nothing is."""


def kms_denied(services: Services) -> None:
    """The chain does not permit this KMS any more."""
    services.world.chain.kms_machines.clear()


def app_denied(services: Services) -> None:
    """The chain does not permit the app's compose hash."""
    services.world.chain.compose_hashes.clear()


def image_denied(services: Services) -> None:
    """The chain does not permit the OS image."""
    services.world.chain.os_images.clear()


def chain_silent(services: Services) -> None:
    """No endpoint answers."""
    services.world.chain.reachable = False


def collateral_missing(services: Services) -> None:
    """Nobody has statements about the platform, and what was verified before is too old."""
    services.world.collateral.collateral = None
    services.world.clock.now += timedelta(minutes=6)


def agent_gone(services: Services) -> None:
    """Nobody gives quotes any more, and those from before are too old."""

    def nobody(_: ReportData) -> Evidence:
        raise AgentUnavailableError("guest agent: no answer")

    services.world.machine.evidence = nobody  # type: ignore[method-assign]
    services.world.clock.now += timedelta(minutes=6)


def bootstrapped(services: Services) -> None:
    """There are keys already."""
    services.onboarding.bootstrap("kms.example", "before")


def both(*wrongs: Callable[[Services], None]) -> Callable[[Services], None]:
    """Two things are wrong at once; which of them is told shows the order."""

    def all_of_them(services: Services) -> None:
        for each in wrongs:
            each(services)

    return all_of_them


@dataclass(frozen=True)
class Row:
    """One row: the method, the exact text that comes, what is asked (or what makes it), what is wrong, and who asks."""

    method: str
    error: str
    body: object = None
    wrong: Callable[[Services], None] = nothing
    caller: Callable[[], Machine] | None = None


SELF_DENIED = "KMS self authorization failed: KMS is not allowed: Aggregated MR not allowed"
SILENT = "could not ask: chain: no endpoint answered"
LONG = "a" * 64 + ".example"


def sign(version: int = 2, **changed: object) -> Callable[[], str]:
    """A request for a certificate, made when it is sent."""

    def made() -> str:
        _, csr, signature = request(app_machine())
        return to_json(replace(SignCertRequest(version, csr, signature, ""), **changed))  # type: ignore[arg-type]

    return made


def unconfirmed() -> str:
    """A request whose confirm word is another, signed as it should be."""
    _, csr, _ = request(app_machine())
    other = csr.replace(b"please sign cert:", b"please sign cert?")
    return to_json(SignCertRequest(2, other, KEY.sign(other, ec.ECDSA(hashes.SHA256())), ""))


def _borrowed() -> str:
    """A request with evidence that is bound to another key."""
    return to_json(SignCertRequest(*request(app_machine(), bound_to=ec.generate_private_key(ec.SECP256R1())), ""))


UNVERIFIED = "Failed to verify os image hash: vm_config: not JSON: Expecting value: line 1 column 1 (char 0)"
DOMAIN_FORM = (
    "server name: want a DNS name of at most 253 letters, "
    "each label 1 to 63 of A-Z, a-z, 0-9 and inner hyphens, or an IP address"
)

TABLE = (
    # GetAppKey, in the order of its preconditions
    Row("KMS.GetAppKey", "Unsupported API version: 2", {"api_version": 2}, kms_denied, app_machine),
    Row("KMS.GetAppKey", SELF_DENIED, {"api_version": 1}, kms_denied),
    Row("KMS.GetAppKey", SILENT, {"api_version": 1}, chain_silent, app_machine),
    Row("KMS.GetAppKey", "App not allowed: No attestation provided", {"api_version": 1}),
    Row("KMS.GetAppKey", "App not allowed: Boot denied: Compose hash not allowed", {}, app_denied, app_machine),
    Row("KMS.GetAppKey", "App not allowed: Boot denied: OS image is not allowed", {}, image_denied, app_machine),
    Row(
        "KMS.GetAppKey",
        f"App not allowed: {UNVERIFIED}",
        {"vm_config": "?"},
        caller=app_machine,
    ),
    Row("KMS.GetAppKey", "App not allowed: No attestation provided", {}, app_denied),
    # GetKmsKey
    Row("KMS.GetKmsKey", SELF_DENIED, {}, kms_denied, kms_machine),
    Row("KMS.GetKmsKey", SELF_DENIED, {}, kms_denied),
    Row("KMS.GetKmsKey", SILENT, {}, chain_silent, kms_machine),
    Row("KMS.GetKmsKey", "KMS not allowed: No attestation provided", {}),
    Row("KMS.GetKmsKey", "KMS not allowed: Boot denied: Aggregated MR not allowed", {}, caller=app_machine),
    Row(
        "KMS.GetKmsKey",
        f"KMS not allowed: {UNVERIFIED}",
        {"vm_config": "?"},
        caller=kms_machine,
    ),
    # GetAppEnvEncryptPubKey
    Row("KMS.GetAppEnvEncryptPubKey", SELF_DENIED, {"app_id": "aa" * 20}, kms_denied),
    Row("KMS.GetAppEnvEncryptPubKey", SILENT, {"app_id": "aa" * 20}, chain_silent),
    Row("KMS.GetAppEnvEncryptPubKey", "app_id must be 20 bytes", {"app_id": "aa" * 19}),
    Row("KMS.GetAppEnvEncryptPubKey", "app_id must be 20 bytes", {}),
    Row(
        "KMS.GetAppEnvEncryptPubKey",
        "key epoch: want 0, got 1",
        {"app_id": "aa" * 20, "key_epoch": 1},
    ),
    # Upstream asks about itself first; what is malformed costs nobody a question here.
    Row("KMS.GetAppEnvEncryptPubKey", "app_id must be 20 bytes", {"app_id": "aa" * 21}, kms_denied),
    # GetMeta has no preconditions; GetTempCaCert asks about this KMS alone
    Row("KMS.GetTempCaCert", SELF_DENIED, None, kms_denied),
    Row("KMS.GetTempCaCert", SILENT, None, chain_silent),
    # SignCert
    Row("KMS.SignCert", SELF_DENIED, sign(), kms_denied),
    Row("KMS.SignCert", SILENT, sign(), chain_silent),
    Row("KMS.SignCert", "Unsupported API version: 0", {"api_version": 0}),
    Row("KMS.SignCert", "Unsupported API version: 3", sign(3)),
    Row("KMS.SignCert", "confirm word: want 1 bytes at offset 0, 0 are left", {"api_version": 2}),
    Row("KMS.SignCert", "signing request: its signature is not by the key in it", sign(signature=b"?")),
    Row(
        "KMS.SignCert",
        "signing request: want the confirm word 'please sign cert:', got 'please sign cert?'",
        unconfirmed,
    ),
    Row("KMS.SignCert", SELF_DENIED, sign(3), kms_denied),
    Row("KMS.SignCert", "Unsupported API version: 3", sign(3, csr=b"?", signature=b"?")),
    Row(
        "KMS.SignCert",
        "signing request: its signature is not by the key in it",
        lambda: to_json(replace(from_json(SignCertRequest, unconfirmed()), signature=b"?")),
    ),
    Row("KMS.SignCert", "Certificate not allowed: Boot denied: Compose hash not allowed", sign(), app_denied),
    Row("KMS.SignCert", "Certificate not allowed: Boot denied: OS image is not allowed", sign(), image_denied),
    Row(
        "KMS.SignCert",
        f"Certificate not allowed: {UNVERIFIED}",
        sign(vm_config="?"),
    ),
    # ClearImageCache: with the operator's service, and as up to 0.5.11
    Row("Admin.ClearImageCache", "invalid cache key", {"image_hash": "../x"}),
    Row("Admin.ClearImageCache", "invalid cache key", {"config_hash": "0"}),
    Row("KMS.ClearImageCache", "Invalid token", {"token": "?", "image_hash": "ab"}),
    Row("KMS.ClearImageCache", "invalid cache key", {"token": TOKEN, "image_hash": "zz"}),
    Row("KMS.ClearImageCache", "Invalid token", {"image_hash": "zz"}),
    # Onboarding
    Row("Onboard.GetAttestationInfo", "collateral: none for this platform", None, collateral_missing),
    Row("Onboard.GetAttestationInfo", "guest agent: no answer", None, agent_gone),
    Row("Onboard.Bootstrap", DOMAIN_FORM, {"domain": ""}),
    Row("Onboard.Bootstrap", DOMAIN_FORM, {"domain": "a..b"}, both(bootstrapped, kms_denied)),
    Row("Onboard.Bootstrap", DOMAIN_FORM, {"domain": LONG}),
    Row("Onboard.Bootstrap", DOMAIN_FORM, {"domain": "-a.example"}),
    Row("Onboard.Bootstrap", "KMS has already been bootstrapped", {"domain": "kms.example"}, bootstrapped),
    Row(
        "Onboard.Bootstrap",
        "KMS is not allowed to bootstrap: boot denied: Aggregated MR not allowed",
        {"domain": "kms.example"},
        kms_denied,
    ),
    Row(
        "Onboard.Bootstrap",
        "KMS has already been bootstrapped",
        {"domain": "kms.example"},
        both(bootstrapped, kms_denied),
    ),
    Row("Onboard.Bootstrap", SILENT, {"domain": "kms.example"}, chain_silent),
    Row("Onboard.Bootstrap", "could not ask: guest agent: no answer", {"domain": "kms.example"}, agent_gone),
    Row("Onboard.Onboard", DOMAIN_FORM, {"source_url": "https://127.0.0.1:1", "domain": ""}),
    Row(
        "Onboard.Onboard",
        "KMS has already been onboarded",
        {"source_url": "https://127.0.0.1:1", "domain": "kms.example"},
        bootstrapped,
    ),
    Row(
        "Onboard.Onboard",
        SELF_DENIED,
        {"source_url": "https://127.0.0.1:1", "domain": "kms.example"},
        kms_denied,
    ),
    Row(
        "Onboard.Onboard",
        "source_url: want https://HOST[:PORT] of a KMS",
        {"source_url": "http://127.0.0.1:1", "domain": "kms.example"},
    ),
    Row(
        "Onboard.Onboard",
        "KMS has already been onboarded",
        {"source_url": "http://127.0.0.1:1", "domain": "kms.example"},
        both(bootstrapped, kms_denied),
    ),
    Row(
        "Onboard.Onboard",
        SILENT,
        {"source_url": "https://127.0.0.1:1", "domain": "kms.example"},
        chain_silent,
    ),
    Row("Onboard.Finish", "KMS has not been bootstrapped yet"),
)

# Methods that have nothing to refuse.
WITHOUT_ERRORS = {"KMS.GetMeta"}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.method}: {row.error}"[:100])
def test_each_row_answers_its_text(services: Services, row: Row) -> None:
    """Status 400, and exactly the text of the table."""
    row.wrong(services)

    body = row.body() if callable(row.body) else row.body
    answer = services.call(row.method, body, row.caller() if row.caller else None)

    assert (answer.status_code, answer.json()["error"]) == (400, row.error)


@pytest.mark.parametrize("service", ["KMS", "Admin", "Onboard"])
def test_an_unknown_method_is_named(services: Services, service: str) -> None:
    """As upstream names it, in both encodings: without the prefix."""
    answer = services.call(f"{service}.Nothing", {}, None)

    assert (answer.status_code, answer.json()["error"]) == (400, "Service not found: Nothing")


def test_every_method_has_a_row(services: Services) -> None:
    """Whatever the services offer is in the table, or is known to have nothing to refuse."""
    offered = {
        f"{name}.{method}"
        for name, methods in (("KMS", services.kms.methods()), ("Onboard", services.first_start.methods()))
        for method in methods
    } | {"Admin.ClearImageCache"}

    assert {row.method for row in TABLE} | WITHOUT_ERRORS == offered
    assert services.call("KMS.GetMeta", None, None).status_code == 200


def test_the_operators_service_asks_who_is_there(services: Services) -> None:
    """Without a token it answers 401 and the challenge, whatever the method."""
    answer = httpx.post(f"http://localhost:{services.ports['Admin']}/prpc/Admin.ClearImageCache?json", content="{}")

    challenge = answer.headers["www-authenticate"]
    assert (answer.status_code, challenge) == (401, 'Basic realm="dstack-kms admin"')


def _other_image() -> tuple[Machine, str]:
    """A machine that runs another image than the one which it names, with that one's own documents."""
    return app_machine(image=make_image("another image")), serialise_vm_config(IMAGE.vm_config())


@pytest.mark.parametrize("wrong", [nothing, app_denied, image_denied])
def test_an_image_that_is_only_named_is_refused(services: Services, wrong: Callable[[Services], None]) -> None:
    """For each method that takes evidence; the chain, which is told of verified images alone, is not asked.

    Where both are wrong upstream's text would be that of the chain, which it asks before.
    """
    machine, named = _other_image()
    wrong(services)
    asked = services.world.chain.asked

    keys = services.call("KMS.GetAppKey", {"vm_config": named}, machine).json()
    roots = services.call("KMS.GetKmsKey", {"vm_config": named}, machine).json()
    signed = to_json(replace(SignCertRequest(*request(machine), ""), vm_config=named))
    certificate = services.call("KMS.SignCert", signed, None).json()

    for answer, subject in ((keys, "App"), (roots, "KMS"), (certificate, "Certificate")):
        assert answer["error"].startswith(f"{subject} not allowed: Failed to verify os image hash: MRTD: want ")
        assert answer["rule"] == "APPRAISAL"
    own = services.world.own.appraisal().mr_aggregated
    assert {boot.mr_aggregated for boot in asked} == {own}


@pytest.mark.parametrize("platform", [1, 2, 3, 4])
def test_evidence_of_another_kind_of_machine_gets_nothing(services: Services, platform: int) -> None:
    """GCP, Nitro and SEV-SNP have no release gates here, because nothing is released to them."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = (
        load_certificate(services.keys.temp_ca.certificate_pem),
        load_private_key(services.keys.temp_ca.key_pem),
    )
    certificate = build_client_cert(key, *authority, [(OID_ATTESTATION, bytes((0, platform)) + bytes(200))], at=AT)
    identity = TlsIdentity(certificate_pem(certificate), private_key_pem(key))
    tls = client_context(ca_pem=services.keys.root_ca_pem, identity=identity)

    answers = [
        httpx.post(f"https://localhost:{services.ports['KMS']}/prpc/{method}?json", content="{}", verify=tls)
        for method in ("GetAppKey", "GetKmsKey")
    ]

    assert [(answer.status_code, answer.json()["error"]) for answer in answers] == [
        (400, f"{subject} not allowed: evidence: want platform 0 (TDX), got {platform}") for subject in ("App", "KMS")
    ]


@pytest.mark.parametrize("name", ["bootstrap-info.json", "root-ca.key", "root-k256.key"])
def test_what_is_left_of_keys_is_never_overwritten(services: Services, tmp_path: Path, name: str) -> None:
    """A single file of a KMS that was here before refuses Bootstrap and Onboard, and stays what it is."""
    file = tmp_path / "keys" / name
    file.write_bytes(b"from before")

    for method, body in (
        ("Bootstrap", {"domain": "kms.example"}),
        ("Onboard", {"domain": "kms.example", "source_url": "https://127.0.0.1:1"}),
    ):
        answer = services.call(f"Onboard.{method}", body, None)
        assert answer.status_code == 400
        assert f"{tmp_path / 'keys'}: want all key files or none, missing " in answer.json()["error"]
    assert [path.name for path in (tmp_path / "keys").iterdir() if path.suffix in (".key", ".json")] == [name]
    assert file.read_bytes() == b"from before"


def test_evidence_of_another_key_or_a_debug_machine_is_refused(services: Services) -> None:
    """Where the text holds values of the evidence: what it begins with, for each method that takes evidence."""
    debug = services.call("KMS.GetAppKey", {}, app_machine(defects=Defects(debug=True))).json()["error"]
    copied = services.call("KMS.GetAppKey", {}, app_machine(), is_bound=False).json()["error"]
    copied_kms = services.call("KMS.GetKmsKey", {}, kms_machine(), is_bound=False).json()["error"]
    borrowed = services.call("KMS.SignCert", _borrowed(), None).json()["error"]

    assert debug.startswith("App not allowed: step 14: ")
    assert copied.startswith("App not allowed: report data: ")
    assert copied_kms.startswith("KMS not allowed: report data: ")
    assert borrowed.startswith("Certificate not allowed: report data: ")
