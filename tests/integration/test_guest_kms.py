"""A guest and a KMS over real TLS in one process: who gets keys, and what a guest asks of a KMS."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from dstack.attestation.appraise import appraise
from dstack.attestation.ratls import evidence_extensions
from dstack.attestation.report_data import padded_report_data
from dstack.attestation.verification_policy import STRICT
from dstack.attestation.verify import verify_quote
from dstack.errors import (
    AppraisalError,
    KeyReleaseDeniedError,
    PeerRefusedError,
    PeerUnavailableError,
    QuoteUntrustedError,
)
from dstack.guest.app_keys import KmsProvider, PreviousKeys
from dstack.guest.boot import APP_KEYS, Booted, Surroundings, boot
from dstack.guest.host_shared import InstanceInfo
from dstack.guest.kms_client import KmsTrust, request_app_keys
from dstack.guest.platform import platform_evidence
from dstack.keys.certs import Extension, build_rpc_cert
from dstack.keys.derivation import AppKeys, derive_app_keys
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, spki_der
from dstack.keys.scalars import p256_from_scalar
from dstack.measurement.identities import key_provider_payload
from dstack.simulator.platform import SimulatedPlatform
from dstack.transport.listener import Listener
from dstack.transport.server import CallContext
from dstack.transport.tls import server_context
from dstack.wire.kms import AppKeyResponse, EpochKeys, GetAppKeyRequest
from kms.app import kms_app
from kms.authorization import SelfAuthorization
from kms.evidence import EvidenceVerifier
from kms.generation import generate_keys
from kms.keystore import KeySet
from kms.release import KeyRelease
from kms.service import KmsService
from tests.worlds import (
    APP_ID,
    BLOCK,
    NOW,
    CountingRandom,
    Machine,
    MemoryChain,
    Site,
    app_compose,
    root_keys,
)

HOST = "127.0.0.1"
NOBODY = f"https://{HOST}:1"
APP = app_compose(key_provider="kms")


@dataclass(frozen=True, slots=True)
class Kms:
    """A running KMS."""

    url: str
    keys: KeySet
    chain: MemoryChain


@pytest.fixture(scope="module")
def kms_machine(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The machine a KMS runs in."""
    return site.machine(tmp_path_factory.mktemp("kms"), app_compose("kms:1"))


class Answering(KmsService):
    """A KMS whose answers are changed on their way out."""

    change: Callable[[AppKeyResponse], AppKeyResponse]

    def get_app_key(self, request: GetAppKeyRequest, context: CallContext) -> AppKeyResponse:
        """As any other, then changed."""
        return type(self).change(super().get_app_key(request, context))


def answering(change: Callable[[AppKeyResponse], AppKeyResponse]) -> type[Answering]:
    """The service of a KMS that changes its answers so."""
    return type("Changed", (Answering,), {"change": staticmethod(change)})


@contextmanager
def running_kms(
    site: Site,
    machine: Machine,
    change: Callable[[KeySet], KeySet] = lambda keys: keys,
    service_class: type[KmsService] = KmsService,
) -> Iterator[Kms]:
    """A KMS that the chain allows, and an app that it allows; *change* alters what it serves with."""
    keys = change(generate_keys(HOST, machine, at=NOW))
    chain = MemoryChain(
        {machine.booted.app_compose.compose_hash, site.shared(APP, InstanceInfo()).app_compose.compose_hash}
    )
    verifier = EvidenceVerifier(site.roots, STRICT, site, lambda: NOW, acpi=None)
    release = KeyRelease(keys.roots, SelfAuthorization(machine, verifier, chain), verifier, chain)
    service = service_class(keys, release, chain, None, simulated=True)
    tls = server_context(keys.rpc, client_ca_pem=keys.temp_ca.certificate_pem)
    with Listener(kms_app(service), host=HOST, tls=tls).running() as listener:
        yield Kms(f"https://{HOST}:{listener.port}", keys, chain)


@pytest.fixture(scope="module")
def kms(site: Site, kms_machine: Machine) -> Iterator[Kms]:
    """A running KMS."""
    with running_kms(site, kms_machine) as running:
        yield running


def start(
    site: Site, kms: Kms, folder: Path, compose: bytes = APP, trust: KmsTrust | None = None, url: str = ""
) -> tuple[Booted, SimulatedPlatform]:
    """Boot *compose* against *kms*."""
    platform = site.platform(compose)
    around = Surroundings(platform, partial(request_app_keys, trust=trust), lambda: NOW, CountingRandom())
    shared = site.shared(compose, InstanceInfo(app_id=APP_ID), (url or kms.url,))
    return boot(shared, around, work_dir=folder), platform


def test_allowed_guest_gets_the_keys_of_its_app_and_instance(site: Site, kms: Kms, tmp_path: Path) -> None:
    """The keys are those the KMS's root derives for the app id and instance id the guest measured; stored 0600."""
    booted, _ = start(site, kms, tmp_path)

    assert booted.provided.keys == derive_app_keys(root_keys(kms.keys.roots), APP_ID, booted.instance_id)
    kept = tmp_path / APP_KEYS
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text())["disk_crypt_key"] == booted.provided.keys.disk_crypt_key.hex()


def test_booted_guest_measures_who_gave_its_keys(site: Site, kms: Kms, tmp_path: Path) -> None:
    """The guest's evidence appraises, and names the KMS's root as its key provider."""
    booted, platform = start(site, kms, tmp_path)
    report_data = padded_report_data(b"nonce")

    evidence = platform_evidence(platform, report_data)
    verified = verify_quote(evidence.quote, site.pki.collateral(), roots=site.roots, at=NOW)
    appraisal = appraise(evidence, verified, expected_report_data=report_data)

    root_spki = spki_der(load_certificate(kms.keys.root_ca_pem))
    assert appraisal.key_provider_info == booted.key_provider_info == key_provider_payload("kms", root_spki)
    assert isinstance(booted.provided.provider, KmsProvider)
    assert booted.provided.provider.os_image_hash == site.image.os_image_hash


def test_denial_names_rule_and_block(site: Site, kms: Kms, tmp_path: Path) -> None:
    """A guest whose compose hash is not allowed learns the rule and the block, and leaves no keys behind."""
    with pytest.raises(KeyReleaseDeniedError, match="Compose hash not allowed") as denied:
        start(site, kms, tmp_path, app_compose("notes:2", key_provider="kms"))

    assert (denied.value.rule, denied.value.block) == ("COMPOSE_HASH", BLOCK.number)
    assert not (tmp_path / APP_KEYS).exists()


def test_pinned_kms_is_required(site: Site, kms: Kms, tmp_path: Path) -> None:
    """An app that pins another KMS does not run on the keys of this one."""
    members = json.loads(APP) | {"key_provider_id": "aa" * 91}
    pinned = json.dumps(members).encode()
    kms.chain.allowed.add(site.shared(pinned, InstanceInfo()).app_compose.compose_hash)

    with pytest.raises(AppraisalError, match="Unexpected key provider id"):
        start(site, kms, tmp_path, pinned)

    assert not (tmp_path / APP_KEYS).exists()


def test_host_name_of_the_url_is_checked(site: Site, kms: Kms, tmp_path: Path) -> None:
    """A KMS reached under a name that its certificate does not carry is not believed."""
    with pytest.raises(PeerUnavailableError, match="certificate verify failed"):
        start(site, kms, tmp_path, url=kms.url.replace(HOST, "localhost"))


def test_evidence_of_the_kms_verifies(site: Site, kms: Kms, tmp_path: Path) -> None:
    """A guest that demands evidence of the KMS takes a KMS on a platform it trusts."""
    booted, _ = start(site, kms, tmp_path, trust=KmsTrust(site.roots, site))

    assert booted.provided.keys == derive_app_keys(root_keys(kms.keys.roots), APP_ID, booted.instance_id)


def test_kms_on_a_foreign_platform_is_refused(site: Site, kms: Kms, tmp_path: Path) -> None:
    """A guest that demands evidence refuses a KMS whose quote ends at another root."""
    with pytest.raises(QuoteUntrustedError, match="step 3"):
        start(site, kms, tmp_path, trust=KmsTrust(Site.make(b"another maker").roots, site))

    assert not (tmp_path / APP_KEYS).exists()


def with_certificate(keys: KeySet, extensions: list[Extension]) -> KeySet:
    """*keys* with a server certificate that carries *extensions* in the place of its evidence."""
    key, root = load_private_key(keys.rpc.key_pem), load_certificate(keys.root_ca_pem)
    changed = build_rpc_cert(key, root, p256_from_scalar(root_keys(keys.roots).ca), HOST, extensions, at=NOW)
    return replace(keys, rpc=replace(keys.rpc, certificate_pem=certificate_pem(changed)))


def test_kms_without_evidence_is_refused_where_evidence_is_demanded(
    site: Site, kms_machine: Machine, tmp_path: Path
) -> None:
    """A KMS without evidence gives keys to a guest that demands none, and is refused by one that does."""
    with running_kms(site, kms_machine, lambda keys: with_certificate(keys, [])) as bare:
        start(site, bare, tmp_path)

        with pytest.raises(AppraisalError, match="want evidence of the KMS, got none"):
            start(site, bare, tmp_path, trust=KmsTrust(site.roots, site))


def test_evidence_bound_to_another_key_is_refused(site: Site, kms_machine: Machine, tmp_path: Path) -> None:
    """A server that shows genuine evidence of a KMS, but holds another key, is refused even without demands."""
    borrowed = evidence_extensions(kms_machine.evidence(padded_report_data(b"made for something else")))

    with (
        running_kms(site, kms_machine, lambda keys: with_certificate(keys, borrowed)) as impostor,
        pytest.raises(AppraisalError, match="not bound to its key"),
    ):
        start(site, impostor, tmp_path)

    assert not (tmp_path / APP_KEYS).exists()


def without_usage(keys: KeySet) -> KeySet:
    """*keys* with a server certificate of the same root and name that nobody issued for KMS calls."""
    genuine, root = load_certificate(keys.rpc.certificate_pem), load_certificate(keys.root_ca_pem)
    builder = x509.CertificateBuilder(
        issuer_name=root.subject,
        subject_name=genuine.subject,
        public_key=genuine.public_key(),
        serial_number=genuine.serial_number,
        not_valid_before=genuine.not_valid_before_utc,
        not_valid_after=genuine.not_valid_after_utc,
    ).add_extension(genuine.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, critical=False)
    changed = builder.sign(p256_from_scalar(root_keys(keys.roots).ca), hashes.SHA256())
    return replace(keys, rpc=replace(keys.rpc, certificate_pem=certificate_pem(changed)))


def test_certificate_for_another_usage_is_refused(site: Site, kms_machine: Machine, tmp_path: Path) -> None:
    """A certificate of the right root and name that is not meant for KMS calls is refused."""
    with (
        running_kms(site, kms_machine, without_usage) as impostor,
        pytest.raises(AppraisalError, match="want usage b'kms:rpc', got None"),
    ):
        start(site, impostor, tmp_path)

    assert not (tmp_path / APP_KEYS).exists()


def before(answer: AppKeyResponse, **changes: object) -> AppKeyResponse:
    """*answer* in epoch 1, with the keys of the epoch before."""
    previous = EpochKeys(0, *(bytes([number]) * 32 for number in (1, 2, 3)), bytes(65), 1_900_000_000)
    return replace(answer, key_epoch=1, previous=replace(previous, **changes))


def test_keys_of_the_epoch_before_are_taken(site: Site, kms_machine: Machine, tmp_path: Path) -> None:
    """In their form they are; what the tests below change is all that is wrong there."""
    with running_kms(site, kms_machine, service_class=answering(before)) as rotated:
        booted, _ = start(site, rotated, tmp_path)

    assert booted.provided.epoch == 1
    assert booted.provided.previous == PreviousKeys(
        AppKeys(b"\1" * 32, b"\2" * 32, b"\3" * 32, bytes(65)), 0, datetime.fromtimestamp(1_900_000_000, UTC)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"key_epoch": 1},
            "previous: want the epoch before 1 and an end before the year 10000, got 1 until 1900000000",
        ),
        ({"key_epoch": 7}, "previous: want the epoch before 1 .* got 7 until"),
        ({"served_until": 253_402_300_800}, "previous: want the epoch before 1 .* got 0 until 253402300800"),
        ({"served_until": 2**64 - 1}, "previous: want the epoch before 1 .* got 0 until 18446744073709551615"),
        ({"disk_crypt_key": b"\1" * 31}, "disk_crypt_key: want 32 bytes"),
        ({"env_crypt_key": b""}, "env_crypt_key: want 32 bytes"),
        ({"k256_key": b"\1" * 33}, "k256_key: want 32 bytes"),
        ({"k256_signature": bytes(64)}, "k256_signature: want 65 bytes, got 64"),
    ],
)
def test_malformed_keys_of_the_epoch_before_are_refused(
    site: Site, kms_machine: Machine, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """A guest boots on none of the keys of a KMS whose answer is partly wrong, and leaves none behind."""
    with (
        running_kms(site, kms_machine, service_class=answering(partial(before, **changes))) as impostor,
        pytest.raises(PeerRefusedError, match=f"^KMS: {message}"),
    ):
        start(site, impostor, tmp_path)

    assert not (tmp_path / APP_KEYS).exists()


def test_next_kms_is_asked_where_one_is_silent(site: Site, kms: Kms, tmp_path: Path) -> None:
    """A guest that finds nobody at its first URL gets its keys at the second."""
    around = Surroundings(site.platform(APP), request_app_keys, lambda: NOW, CountingRandom())
    shared = site.shared(APP, InstanceInfo(app_id=APP_ID), (NOBODY, kms.url))

    booted = boot(shared, around, work_dir=tmp_path)

    assert booted.provided.keys == derive_app_keys(root_keys(kms.keys.roots), APP_ID, booted.instance_id)


def test_silence_is_reported_as_silence(site: Site, kms: Kms, tmp_path: Path) -> None:
    """Where no KMS answers the guest says who did not, and boots on no keys."""
    with pytest.raises(PeerUnavailableError, match=f"{NOBODY}/prpc: GetTempCaCert: no answer"):
        start(site, kms, tmp_path, url=NOBODY)

    assert not (tmp_path / APP_KEYS).exists()
