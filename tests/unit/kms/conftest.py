"""Simulated machines, and a chain in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.collateral import Collateral
from dstack.attestation.evidence import Evidence
from dstack.attestation.quote import Quote
from dstack.attestation.ratls import evidence_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verification_policy import STRICT, VerificationPolicy
from dstack.chain.facts import Facts
from dstack.errors import ChainUnavailableError, CollateralUnavailableError, ConfigError
from dstack.guest.platform import platform_evidence
from dstack.keys.certs import build_client_cert
from dstack.keys.pem import (
    certificate_pem,
    load_certificate,
    load_private_key,
    private_key_pem,
    spki_der,
)
from dstack.measurement.event_log import RuntimeEvent
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events
from dstack.measurement.vm_config import serialise_vm_config
from dstack.policy import BlockRef, BootInfo, Decision, Granted, Rule, decide
from dstack.policy.key_epochs import FIRST_EPOCH, KeyEpochs
from dstack.simulator.os_image import SimulatedImage, make_image
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.platform import Defects, SimulatedPlatform
from dstack.transport.tls import TlsIdentity
from dstack.values import AppId, ComposeHash, Digest32, InstanceId, OsImageHash, ReportData
from kms.authorization import SelfAuthorization
from kms.evidence import EvidenceVerifier

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
PKI = SimulatedPki.generate(AT, seed=b"tests")
IMAGE = make_image()
BLOCK = BlockRef(77, Digest32(bytes([7]) * 32), 1_800_000_000)

CONTRACT, IMPLEMENTATION = "0x" + "c0" * 20, "0x" + "1a" * 20

APP_ID = AppId(b"app-id app-id app-id")
INSTANCE_ID = InstanceId(b"instance id instance")
COMPOSE_HASH = ComposeHash(sha256(b"app compose").digest())
KMS_COMPOSE_HASH = ComposeHash(sha256(b"kms compose").digest())


class Machine:
    """A booted machine; implements `QuoteProvider`. *changed* are payloads of its boot's events, by name."""

    def __init__(
        self,
        compose_hash: ComposeHash,
        app_id: AppId,
        instance_id: InstanceId | None = None,
        *,
        pki: SimulatedPki = PKI,
        image: SimulatedImage = IMAGE,
        defects: Defects | None = None,
        changed: Mapping[str, bytes] | None = None,
    ) -> None:
        config = serialise_vm_config(image.vm_config())
        self.platform = SimulatedPlatform(pki, image, config, compose_hash, defects)
        inputs = BootInputs(app_id=app_id, compose_hash=compose_hash, instance_id=instance_id, storage_fs="zfs")
        for event in boot_events(OUR_SEQUENCE, inputs):
            self.platform.extend(RuntimeEvent(event.name, (changed or {}).get(event.name, event.payload)))
        self.asked: list[ReportData] = []

    def evidence(self, report_data: ReportData) -> Evidence:
        """As its guest agent would answer; remembers what it was asked for."""
        self.asked.append(report_data)
        return platform_evidence(self.platform, report_data)


def app_machine(*, pki: SimulatedPki = PKI, image: SimulatedImage = IMAGE, defects: Defects | None = None) -> Machine:
    """A machine that runs the app."""
    return Machine(COMPOSE_HASH, APP_ID, INSTANCE_ID, pki=pki, image=image, defects=defects)


def kms_machine() -> Machine:
    """A machine that runs the KMS."""
    return Machine(KMS_COMPOSE_HASH, AppId(KMS_COMPOSE_HASH[:20]))


@dataclass
class ChainInMemory:
    """The contracts' rules over sets; implements `ChainAuthority` and `ChainFacts`."""

    kms_machines: set[bytes] = field(default_factory=set)
    os_images: set[OsImageHash] = field(default_factory=lambda: {IMAGE.os_image_hash})
    compose_hashes: set[ComposeHash] = field(default_factory=lambda: {COMPOSE_HASH})
    reachable: bool = True
    asked: list[BootInfo] = field(default_factory=list)
    chain_id: int = 31337
    gateway: str = "0xgateway"
    epochs: KeyEpochs = FIRST_EPOCH
    block: BlockRef = BLOCK

    def check(self, *, chain_id: int | None = None) -> BlockRef:
        """As at the start of a program."""
        if not self.reachable:
            raise ChainUnavailableError("chain: no endpoint answered")
        if chain_id is not None and chain_id != self.chain_id:
            raise ConfigError(f"chain id: want {chain_id}, got {self.chain_id}")
        return self.block

    def recent_facts(self) -> Facts | None:
        """What was read a moment ago."""
        return Facts(CONTRACT, self.chain_id, self.gateway, IMPLEMENTATION, BLOCK, time.monotonic())

    def authorize_kms(self, boot: BootInfo) -> Decision:
        """By aggregated MR alone."""
        return self._decide(boot, Rule.AGGREGATED_MR, boot.mr_aggregated in self.kms_machines)

    def authorize_app(self, boot: BootInfo) -> Decision:
        """By OS image, then by compose hash."""
        if boot.os_image_hash not in self.os_images:
            return self._decide(boot, Rule.OS_IMAGE, False)
        decision = self._decide(boot, Rule.COMPOSE_HASH, boot.compose_hash in self.compose_hashes)
        return replace(decision, gateway_app_id=self.gateway) if isinstance(decision, Granted) else decision

    def _decide(self, boot: BootInfo, rule: Rule, allowed: bool) -> Decision:
        if not self.reachable:
            raise ChainUnavailableError("chain: no endpoint answered")
        self.asked.append(boot)
        decision = decide(allowed, "" if allowed else rule.value, self.block, {rule: "what was seen"})
        return replace(decision, epochs=self.epochs) if isinstance(decision, Granted) else decision


@dataclass
class CollateralInMemory:
    """What the simulated platform's maker says; implements `CollateralSource`."""

    collateral: Collateral | None = field(default_factory=PKI.collateral)

    def collateral_for(self, quote: Quote) -> Collateral:
        """The same for every platform, or none."""
        if self.collateral is None:
            raise CollateralUnavailableError("collateral: none for this platform")
        return self.collateral


@dataclass
class Clock:
    """Stands still until it is set."""

    now: datetime = AT

    def __call__(self) -> datetime:
        """The time it was set to."""
        return self.now


@dataclass
class World:
    """A KMS machine, the chain it asks, and what it verifies with."""

    machine: Machine
    chain: ChainInMemory
    collateral: CollateralInMemory
    clock: Clock
    verifier: EvidenceVerifier
    own: SelfAuthorization


@pytest.fixture
def make_world() -> Callable[..., World]:
    """Makes a world; the policy is the default one unless given."""

    def make(policy: VerificationPolicy = STRICT) -> World:
        machine, chain, collateral, clock = kms_machine(), ChainInMemory(), CollateralInMemory(), Clock()
        roots = TrustedRoots((simulated_root(PKI.root_der),))
        verifier = EvidenceVerifier(roots, policy, collateral, clock, acpi=None)
        own = SelfAuthorization(machine, verifier, chain)
        return World(machine, chain, collateral, clock, verifier, own)

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A world whose chain does not know the KMS yet."""
    return make_world()


def allow_kms(world: World) -> None:
    """Let the chain permit the KMS."""
    world.chain.kms_machines.add(world.own.appraisal().mr_aggregated)


def client_identity(
    machine: Machine | None, temp_ca: TlsIdentity, *, bound_to: ec.EllipticCurvePrivateKey | None = None
) -> TlsIdentity:
    """A caller's certificate with evidence of *machine*, bound to its own key or to another one."""
    key = ec.generate_private_key(ec.SECP256R1())
    extensions = []
    if machine is not None:
        extensions = evidence_extensions(machine.evidence(ratls_report_data(spki_der(bound_to or key))))
    authority = load_certificate(temp_ca.certificate_pem), load_private_key(temp_ca.key_pem)
    certificate = build_client_cert(key, *authority, extensions, at=AT)
    return TlsIdentity(certificate_pem(certificate), private_key_pem(key))
