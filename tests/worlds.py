"""Small worlds for tests: a simulated platform, machines that booted on it, a chain in memory, replicators.

Nothing here replaces code of ours: the platform is the simulator's, the chain and the clock implement the same
protocols as the real ones.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dstack.attestation.appraise import Appraisal
from dstack.attestation.collateral import Collateral
from dstack.attestation.evidence import Evidence
from dstack.attestation.quote import Quote
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verification_policy import STRICT
from dstack.chain.facts import Facts
from dstack.errors import ChainUnavailableError, PeerUnavailableError
from dstack.guest.app_keys import ProvidedKeys
from dstack.guest.boot import Booted, Surroundings, boot
from dstack.guest.host_shared import HostShared, InstanceInfo, SysConfig
from dstack.guest.platform import Platform, platform_evidence
from dstack.keys.derivation import RootKeys
from dstack.keys.pem import load_private_key, p256_scalar
from dstack.measurement.compose import app_compose_from_docker_compose, compose_hash, parse_app_compose
from dstack.measurement.vm_config import serialise_vm_config
from dstack.policy import BlockRef, BootInfo, Decision, Denied, Granted, Rule
from dstack.simulator.os_image import SimulatedImage, make_image
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.platform import Defects, SimulatedPlatform
from dstack.values import AppId, ComposeHash, Digest32, ReportData
from kms.roots import Roots
from replicator import node
from replicator.acpi_tables import GiveTables
from replicator.answers import Answer, parse_answer
from replicator.config import ChainSettings
from replicator.containers import Container
from replicator.custody import Custody, Genesis, Receipt, fingerprint_of
from replicator.documents import Address, Law, Party, serialise_request
from replicator.law import LawReader, Verdict
from replicator.node import Replicator
from replicator.peers import EvidenceVerifier, QuoteProvider
from replicator.receipts import KeptReceipt, ReceiptFolder
from replicator.sending import Sending
from replicator.storage import SecureFile

NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
APP_ID = AppId(b"\xa1" * 20)
CONTRACT = Address(b"\xc1" * 20)
OPERATOR = Address(b"\x0e" * 20)
CHAIN_ID = 31337
LAW = Law(CHAIN_ID, OPERATOR, CONTRACT)
BLOCK = BlockRef(1234, Digest32(b"\xb1" * 32), int(NOW.timestamp()))
SECRET = b"the secure file of this app"


def app_compose(image: str = "notes:1", *, key_provider: str = "none", no_instance_id: bool = False) -> bytes:
    """An app-compose.json; another *image* is another version of the app."""
    docker_compose = f"services:\n  app:\n    image: {image}\n".encode()
    return app_compose_from_docker_compose(
        docker_compose, name="notes", key_provider=key_provider, no_instance_id=no_instance_id
    )


def no_kms(kms_url: str, platform: Platform, *, at: datetime) -> ProvidedKeys:
    """A place where no KMS answers."""
    raise PeerUnavailableError(f"{kms_url}: no answer")


@dataclass(slots=True)
class CountingRandom:
    """Bytes that differ at every call and are the same in every run."""

    calls: int = 0

    def __call__(self, size: int) -> bytes:
        self.calls += 1
        return self.calls.to_bytes(4, "big").rjust(size, b"\x5a")[:size]


@dataclass(slots=True)
class SeededRandom:
    """Bytes that differ at every call and for every seed, and are the same in every run."""

    seed: bytes
    calls: int = 0

    def __call__(self, size: int) -> bytes:
        self.calls += 1
        return hashlib.shake_256(self.seed + self.calls.to_bytes(4, "big")).digest(size)


@dataclass(frozen=True, slots=True)
class Machine:
    """A booted machine; it quotes as its guest agent would."""

    platform: SimulatedPlatform
    booted: Booted

    def evidence(self, report_data: ReportData) -> Evidence:
        """Evidence that carries *report_data*."""
        return platform_evidence(self.platform, report_data)


@dataclass(frozen=True, slots=True)
class Site:
    """One simulated platform and one OS image; who verifies takes ACPI tables from `acpi`, else from the log."""

    pki: SimulatedPki
    image: SimulatedImage
    acpi: GiveTables | None = field(default=None, kw_only=True)

    @classmethod
    def make(cls, seed: bytes = b"tests") -> Site:
        """A site; another *seed* is another maker with another root."""
        return cls(SimulatedPki.generate(NOW, seed=seed), make_image())

    @property
    def roots(self) -> TrustedRoots:
        """Trust in this site's maker alone."""
        return TrustedRoots((simulated_root(self.pki.root_der),))

    @property
    def verifier(self) -> EvidenceVerifier:
        """Verifies quotes of this site."""
        return EvidenceVerifier(self.roots, STRICT, self, acpi=self.acpi)

    def collateral_for(self, quote: Quote) -> Collateral:
        """What this site's maker says of any of its platforms."""
        return self.pki.collateral()

    def platform(self, compose: bytes, defects: Defects | None = None) -> SimulatedPlatform:
        """A machine just powered on."""
        config = serialise_vm_config(self.image.vm_config())
        return SimulatedPlatform(self.pki, self.image, config, compose_hash(compose), defects)

    def shared(self, compose: bytes, info: InstanceInfo, kms_urls: tuple[str, ...] = ()) -> HostShared:
        """What a host here gives its guest."""
        config = SysConfig(kms_urls, serialise_vm_config(self.image.vm_config()))
        return HostShared(parse_app_compose(compose), config, info)

    def machine(
        self, folder: Path, compose: bytes | None = None, *, app_id: AppId = APP_ID, defects: Defects | None = None
    ) -> Machine:
        """A machine that booted *compose* without a key provider, with *app_id* pinned."""
        raw = app_compose() if compose is None else compose
        platform = self.platform(raw, defects)
        around = Surroundings(platform, no_kms, lambda: NOW, CountingRandom())
        folder.mkdir(parents=True, exist_ok=True)
        return Machine(platform, boot(self.shared(raw, InstanceInfo(app_id=app_id)), around, work_dir=folder))


@dataclass(slots=True)
class MemoryChain:
    """The chain, as far as our services ask it: which compose hashes are allowed, for an app or for a KMS."""

    allowed: set[ComposeHash] = field(default_factory=set)
    chain_id: int = CHAIN_ID
    reachable: bool = True
    asked: list[BootInfo] = field(default_factory=list)
    law: Law = LAW
    recorded: Digest32 | None = None
    requires_genesis: bool = False
    now: BlockRef = BLOCK

    def block(self) -> BlockRef:
        """The newest block."""
        if not self.reachable:
            raise ChainUnavailableError("no endpoint answers")
        return self.now

    def judge(self, boot: BootInfo, appraisal: Appraisal) -> Verdict:
        """As UpgradeOperator and KmsAuth together."""
        return Verdict(self.authorize_app(boot), self.recorded)

    def genesis(self, app_id: AppId) -> Digest32 | None:
        """As `UpgradeOperator.genesisOf`."""
        self.block()
        return self.recorded

    def authorize_app(self, boot: BootInfo) -> Decision:
        """As `KmsAuth.isAppAllowed`."""
        if not self.reachable:
            raise ChainUnavailableError("no endpoint answers")
        self.asked.append(boot)
        if boot.compose_hash in self.allowed:
            return Granted(self.now)
        return Denied(Rule.COMPOSE_HASH, boot.compose_hash.hex(), Rule.COMPOSE_HASH.value, self.now)

    def authorize_kms(self, boot: BootInfo) -> Decision:
        """As `KmsAuth.isKmsAllowed`."""
        return self.authorize_app(boot)

    def recent_facts(self) -> Facts | None:
        """What was read a moment ago."""
        return Facts(f"0x{CONTRACT.hex()}", self.chain_id, "", "0x" + "00" * 20, BLOCK, time.monotonic())


@dataclass(slots=True)
class Clock:
    """A clock that stands until it is moved."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        self.now += by


def receive(new: Replicator, sending: Sending) -> Receipt:
    """Round 3 as the network does it: the line, then chunk by chunk."""
    delivery = new.receive(sending.line.encode())
    try:
        for sealed in sending.chunks(delivery.next_chunk):
            delivery.add(sealed)
        return new.finish(delivery)
    finally:
        delivery.close()


@dataclass(frozen=True, slots=True)
class Handover:
    """An old node that holds the secure file, a new node of the next version, and the chain between them."""

    folder: Path
    site: Site
    chain: MemoryChain
    clock: Clock
    old: Replicator
    new: Replicator
    old_machine: Machine
    new_machine: Machine

    @property
    def new_secure_file(self) -> Path:
        """Where the new node stores what it receives."""
        return self.folder / "new" / "secure-file"

    def request(self) -> bytes:
        """Round 1: the new node's request document."""
        return serialise_request(self.new.request_key()).encode()

    def answer(self, request: bytes) -> Answer:
        """Round 2: the old node's answer, without the chunks."""
        return parse_answer(self.old.onboard(request).line.encode())

    def hand_over(self) -> Receipt:
        """All three rounds."""
        return receive(self.new, self.old.onboard(self.request()))

    def receipts(self, name: str) -> list[dict[str, Any]]:
        """The receipts of handovers that node *name* keeps."""
        found = [json.loads(path.read_text()) for path in sorted((self.folder / name / "receipts").glob("*.json"))]
        return [each for each in found if each["role"] != "genesis"]


SETTINGS = ChainSettings(LAW, ("http://127.0.0.1:8545",), "latest")


def make_node(
    folder: Path,
    machine: QuoteProvider,
    site: Site,
    chain: LawReader,
    clock: Callable[[], datetime],
    settings: ChainSettings = SETTINGS,
    *,
    containers: tuple[Container, ...] = (),
    old_forms: bool = False,
    seed: bytes = b"",
) -> Replicator:
    """A replicator on *machine*, keeping its files in *folder*; as after a start, so also after a crash."""
    receipts = ReceiptFolder(folder / "receipts")
    receipts.prepare()
    secure_file = SecureFile(folder / "secure-file")
    secure_file.recover(receipts)
    around = node.Surroundings(
        quotes=machine,
        verifier=site.verifier,
        connect=lambda _: chain,
        secure_file=secure_file,
        receipts=receipts,
        clock=clock,
        random=SeededRandom(seed or str(folder).encode()),
    )
    return Replicator(around, settings, containers=containers, old_forms=old_forms)


def place_genesis(node: Replicator, content: bytes = SECRET) -> Genesis:
    """Make *node* the first of its app, with *content*."""
    around = node.around
    incoming = around.secure_file.incoming("test")
    incoming.add(content)
    digest = incoming.seal_off()
    own = node.identity
    nonce = Digest32(around.random(32))
    maker = Party.of(own.boot())
    genesis = Genesis(own.app_id, node.law.law, fingerprint_of(digest), len(content), nonce, 0, maker)
    kept = KeptReceipt("genesis", genesis, own.quoted(genesis.report_data()), own.simulated)
    around.secure_file.replace(incoming, Custody(genesis), at=0, receipt=kept, to=around.receipts)
    return genesis


def make_handover(folder: Path, site: Site, content: bytes = SECRET) -> Handover:
    """Both nodes up and allowed, the secure file at the old one, nothing handed over yet."""
    machines = {name: site.machine(folder / name, app_compose(f"notes:{name}")) for name in ("old", "new")}
    chain = MemoryChain({machine.booted.app_compose.compose_hash for machine in machines.values()})
    clock = Clock()
    old, new = (make_node(folder / name, machine, site, chain, clock) for name, machine in machines.items())
    place_genesis(old, content)
    return Handover(folder, site, chain, clock, old, new, machines["old"], machines["new"])


def root_keys(roots: Roots) -> RootKeys:
    """The scalars behind *roots*, as the keystore would write them."""
    files = roots.files()
    return RootKeys(ca=p256_scalar(load_private_key(files["root-ca.key"])), k256=files["root-k256.key"])
