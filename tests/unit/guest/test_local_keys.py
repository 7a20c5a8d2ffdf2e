"""Keys of a local key provider: a real connection, the simulator in the place of the enclave."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from dstack.attestation.quote import TdReport, parse_quote
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.errors import AppraisalError, ConfigError, PeerRefusedError, PeerUnavailableError, QuoteUntrustedError
from dstack.guest.boot import APP_KEYS, Booted, Surroundings, boot
from dstack.guest.host_shared import InstanceInfo
from dstack.guest.kms_client import KmsTrust
from dstack.guest.local_keys import request_seed
from dstack.keys.anonymous_box import seal_anonymously
from dstack.keys.derivation import app_keys_from_seed
from dstack.measurement.compose import compose_hash
from dstack.measurement.event_log import runtime_events
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, predict_rtmr3, split_at_boot_mr_done
from dstack.simulator.key_provider import EnclaveCollateral, SimulatedKeyProvider, derive_sealing_key
from dstack.simulator.platform import SimulatedPlatform
from dstack.simulator.quoting import Enclave, TdRegisters, make_enclave_quote, make_quote
from dstack.transport.key_provider import KeyProviderClient
from dstack.values import Digest32, ReportData
from dstack.wire.key_provider import SealingKeyAnswer, SealingKeyRequest, frame
from tests.worlds import APP_ID, NOW, CountingRandom, Site, app_compose, no_kms

ENCLAVE = Enclave(Digest32(b"\x0e" * 32))
ENCLAVE_KEY = b"what only this enclave can derive"
COMPOSE = app_compose(key_provider="local", no_instance_id=True)

Ask = Callable[[SealingKeyRequest], SealingKeyAnswer]


@dataclass(frozen=True, slots=True)
class Host:
    """A host with a provider at a port, and what its guests trust."""

    site: Site
    provider: SimulatedKeyProvider
    trust: KmsTrust

    def boot(self, folder: Path, ask: Ask | None, compose: bytes = COMPOSE) -> tuple[Booted, SimulatedPlatform]:
        """Boot a machine whose host carries its question by *ask*."""
        platform = self.site.platform(compose)
        call = None if ask is None else partial(request_seed, ask, trust=self.trust)
        around = Surroundings(platform, no_kms, lambda: NOW, CountingRandom(), call)
        shared = self.site.shared(compose, InstanceInfo(app_id=APP_ID))
        folder.mkdir(exist_ok=True)
        return boot(shared, around, work_dir=folder), platform


@pytest.fixture
def host(site: Site) -> Host:
    """Its provider is listed."""
    provider = SimulatedKeyProvider(site.pki, ENCLAVE, ENCLAVE_KEY, lambda: NOW)
    policy = VerificationPolicy(mr_enclaves=frozenset({ENCLAVE.mr_enclave}))
    return Host(site, provider, KmsTrust(site.roots, EnclaveCollateral(site.pki, lambda: NOW), policy))


@contextmanager
def saying(*pieces: bytes) -> Iterator[KeyProviderClient]:
    """Somebody at a port who reads a question, and says *pieces*."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 20)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        yield KeyProviderClient("127.0.0.1", listener.getsockname()[1], seconds=5.0)
        thread.join()


def registers(host: Host) -> TdRegisters:
    """Those of a machine here that was just powered on."""
    report = parse_quote(host.site.platform(COMPOSE).quote(ReportData(bytes(64)))).body
    assert isinstance(report, TdReport)
    return TdRegisters(report.mr_td, report.rtmr0, report.rtmr1, report.rtmr2, report.rtmr3)


def test_a_machine_gets_the_same_keys_at_every_boot(host: Host, tmp_path: Path) -> None:
    """The keys follow from the registers at boot-mr-done; another app on this platform gets others."""
    with host.provider.serving() as port:
        ask = KeyProviderClient("127.0.0.1", port).ask
        first, platform = host.boot(tmp_path / "first", ask)
        again, _ = host.boot(tmp_path / "again", ask)
        other, _ = host.boot(tmp_path / "other", ask, app_compose("other:1", key_provider="local", no_instance_id=True))

    inputs = BootInputs(
        app_id=APP_ID,
        compose_hash=compose_hash(COMPOSE),
        instance_id=None,
        storage_fs="zfs",
        key_provider="local",
        key_provider_id=ENCLAVE.mr_enclave,
    )
    events = boot_events(OUR_SEQUENCE, inputs)
    assert runtime_events(platform.event_log()) == events
    report = parse_quote(platform.quote(ReportData(bytes(64)))).body
    assert isinstance(report, TdReport)
    rtmr3 = predict_rtmr3(split_at_boot_mr_done(events)[0])
    seed = sha256(ENCLAVE_KEY + report.mr_td + report.rtmr0 + report.rtmr1 + report.rtmr2 + rtmr3).digest()
    assert first.provided.keys == again.provided.keys == app_keys_from_seed(seed)
    assert other.provided.keys != first.provided.keys
    assert first.key_provider_info == b'{"name":"local-sgx","id":"' + ENCLAVE.mr_enclave.hex().encode() + b'"}'
    kept = json.loads((tmp_path / "first" / APP_KEYS).read_text())
    assert kept["key_provider"] == {"Local": {"key": kept["key_provider"]["Local"]["key"], "mr": "0e" * 32}}
    assert (kept["disk_crypt_key"], kept["env_crypt_key"]) == (first.provided.keys.disk_crypt_key.hex(), "")


def test_derivation_is_a_digest_of_key_and_registers() -> None:
    """Upstream's own constant for it."""
    derived = derive_sealing_key(b"sealing key", b"measurements")
    assert derived.hex() == "dc3b7262588a756aa3c809cecbc1e4a04e1ceb4713731ef49cb335fd68d07781"


def test_without_a_provider_nothing_boots(host: Host, tmp_path: Path) -> None:
    """The app wants one; no other keys are made in its place."""
    with pytest.raises(ConfigError, match="the app wants a local one, and this host offers none"):
        host.boot(tmp_path, None)
    assert not (tmp_path / APP_KEYS).exists()


def test_only_listed_enclaves_give_keys(host: Host, tmp_path: Path) -> None:
    """Another enclave, one in debug mode, a TD, or another maker's platform is refused."""
    unlisted = replace(host.provider, enclave=Enclave(Digest32(bytes(32))))
    debug = replace(
        host.provider, enclave=replace(ENCLAVE, attributes=bytes.fromhex("0700000000000000e700000000000000"))
    )
    foreign = replace(host.provider, pki=Site.make(b"foreign").pki)
    with pytest.raises(QuoteUntrustedError, match="step 16: enclave: the policy does not list"):
        host.boot(tmp_path, unlisted.answer)
    with pytest.raises(QuoteUntrustedError, match="step 16: enclave: runs in debug mode"):
        host.boot(tmp_path, debug.answer)

    def answer_of_foreign(request: SealingKeyRequest) -> SealingKeyAnswer:
        box = seal_anonymously(parse_quote(request.quote).report_data[:32], bytes(32))
        bound = ReportData(sha256(box).digest() + bytes(32))
        return SealingKeyAnswer(box, make_enclave_quote(foreign.pki, enclave=ENCLAVE, report_data=bound))

    with pytest.raises(QuoteUntrustedError):
        host.boot(tmp_path, answer_of_foreign)
    assert not (tmp_path / APP_KEYS).exists()


def test_boxes_are_bound_fresh_and_whole(host: Host, tmp_path: Path) -> None:
    """A box exchanged on the way, an old one, one with another content, and no quote at all."""
    kept: list[SealingKeyAnswer] = []

    def exchanged(request: SealingKeyRequest) -> SealingKeyAnswer:
        kept.append(host.provider.answer(request))
        public_key = parse_quote(request.quote).report_data[:32]
        return replace(kept[-1], encrypted_key=seal_anonymously(public_key, b"a key of the host's choice ......"[:32]))

    def short(request: SealingKeyRequest) -> SealingKeyAnswer:
        box = seal_anonymously(parse_quote(request.quote).report_data[:32], b"short")
        bound = ReportData(sha256(box).digest() + bytes(32))
        return SealingKeyAnswer(box, make_enclave_quote(host.site.pki, enclave=ENCLAVE, report_data=bound))

    with pytest.raises(AppraisalError, match="key provider: want report data"):
        host.boot(tmp_path, exchanged)
    with pytest.raises(PeerRefusedError, match="encrypted_key: want 32 bytes in it, got 5"):
        host.boot(tmp_path, short)
    with pytest.raises(PeerRefusedError, match="key provider: provider_quote: "):
        host.boot(tmp_path, lambda _: replace(kept[0], provider_quote=b"none"))

    def replayed(_request: SealingKeyRequest) -> SealingKeyAnswer:
        old = make_quote(host.site.pki, registers=registers(host), report_data=ReportData(bytes([9]) * 32 + bytes(32)))
        return host.provider.answer(SealingKeyRequest(old))

    with pytest.raises(PeerRefusedError, match="encrypted_key: anonymous box: not for this key, or changed"):
        host.boot(tmp_path, replayed)
    assert not (tmp_path / APP_KEYS).exists()


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ((), "want 4 bytes, the connection ended after 0"),
        ((b"\0\0",), "want 4 bytes, the connection ended after 2"),
        ((b"\xff\xff\xff\xff",), "want 1 to 8388608 bytes, got 4294967295"),
        ((bytes(4),), "want 1 to 8388608 bytes, got 0"),
        ((b"\0\0\0\5", b"{}"), "want 5 bytes, the connection ended after 2"),
        ((frame(b"{}"),), "encrypted_key: want an array of at most 4096 bytes, got NoneType"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "want 1 to 8388608 bytes, got 1213486160"),
    ],
)
def test_whoever_is_no_provider_gave_no_answer(pieces: tuple[bytes, ...], said: str) -> None:
    """Cut or malformed frames, and other protocols, are no answer: neither yes nor no."""
    with (
        saying(*pieces) as client,
        pytest.raises(PeerUnavailableError, match=rf"key provider at 127.0.0.1:\d+: .*{said}"),
    ):
        client.ask(SealingKeyRequest(b"quote"))


def test_a_silent_provider_ends_in_time() -> None:
    """It accepts and says nothing; or drips, byte by byte, for longer than a question may take."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = KeyProviderClient("127.0.0.1", listener.getsockname()[1], seconds=0.2)
        with pytest.raises(PeerUnavailableError, match=r"no answer within 0\.2 seconds"):
            client.ask(SealingKeyRequest(b"quote"))
        dripping = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            while not dripping.wait(0.1):
                try:
                    connection.sendall(b"\0\0\1\0"[:1])
                except OSError:
                    return
            connection.close()

        listener.accept()[0].close()
        thread = threading.Thread(target=drip)
        thread.start()
        slow = replace(client, seconds=0.15)
        with pytest.raises(PeerUnavailableError, match=r"no answer within 0\.15 seconds"):
            slow.ask(SealingKeyRequest(b"quote"))
        dripping.set()
        thread.join()


def test_the_provider_serves_genuine_tds_alone(host: Host, site: Site) -> None:
    """A quote of another maker, or of an enclave, gets no key: the connection just ends."""
    foreign = make_quote(Site.make(b"foreign").pki, registers=registers(host), report_data=ReportData(bytes(64)))
    enclave = make_enclave_quote(site.pki, enclave=ENCLAVE, report_data=ReportData(bytes(64)))
    with host.provider.serving() as port:
        client = KeyProviderClient("127.0.0.1", port)
        for quote in (foreign, enclave, b"none"):
            with pytest.raises(PeerUnavailableError, match="the connection ended after 0"):
                client.ask(SealingKeyRequest(quote))
