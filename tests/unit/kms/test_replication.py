"""Onboarding from another KMS: over real TLS, from a source that our own chain permits, and from no one in between."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.ratls import evidence_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.errors import (
    AppraisalError,
    InputError,
    KeyReleaseDeniedError,
    KeystoreError,
    PeerRefusedError,
    PeerUnavailableError,
)
from dstack.keys import derive_app_keys
from dstack.keys.certs import Extension
from dstack.keys.pem import load_certificate, load_private_key, private_key_pem, spki_der
from dstack.transport.listener import Listener
from dstack.transport.server import Method
from dstack.transport.tls import TlsIdentity, server_context
from dstack.wire.kms import KmsKeyResponse
from kms.app import kms_app
from kms.generation import generate_keys
from kms.keystore import KeySet, Keystore, open_keystore
from kms.onboard import Onboarding
from kms.release import KeyRelease
from kms.service import KmsService
from tests.unit.kms.conftest import APP_ID, AT, INSTANCE_ID, World, allow_kms, app_machine, kms_machine
from tests.worlds import root_keys

DOMAIN = "second.example"
Spoil = Callable[[KmsKeyResponse], KmsKeyResponse]


class Source(KmsService):
    """A KMS whose answer to GetKmsKey may be spoiled."""

    spoil: Spoil

    def methods(self) -> dict[str, Method]:
        """As the real one's, but for what is spoiled."""
        table = super().methods()
        honest = table["GetKmsKey"]
        spoil = type(self).spoil
        return {**table, "GetKmsKey": Method(honest.request, lambda *asked: spoil(honest.call(*asked)))}


@contextmanager
def serving(
    world: World, keys: KeySet, spoil: Callable[[KmsKeyResponse], KmsKeyResponse] | None = None
) -> Iterator[int]:
    """The port of a KMS with these keys."""
    release = KeyRelease(keys.roots, world.own, world.verifier, world.chain)
    kind = KmsService if spoil is None else type("Spoiled", (Source,), {"spoil": staticmethod(spoil)})
    service = kind(keys, release, world.chain, None, simulated=True)
    tls = server_context(keys.rpc, client_ca_pem=keys.temp_ca.certificate_pem)
    with Listener(kms_app(service), tls=tls).running() as listener:
        yield listener.port


@dataclass(frozen=True)
class Second:
    """A machine without keys that wants those of another KMS."""

    onboarding: Onboarding
    keystore: Keystore
    world: World

    def onboard(self, port: int, path: str = "") -> bytes:
        """Fetch the keys from that port; the k256 root that came."""
        return self.onboarding.onboard(f"https://127.0.0.1:{port}{path}", DOMAIN, "request").k256_pubkey


@pytest.fixture
def second(world: World, tmp_path: Path) -> Iterator[Second]:
    """One that the chain permits."""
    allow_kms(world)
    with open_keystore(tmp_path) as keystore:
        yield Second(Onboarding(keystore, kms_machine(), world.verifier, world.own, world.chain), keystore, world)


@pytest.fixture(scope="module")
def keys() -> KeySet:
    """Those of the first KMS."""
    return generate_keys("first.example", kms_machine(), at=AT)


@pytest.mark.parametrize("path", ["", "/", "/prpc", "/prpc/"])
def test_the_same_kms_a_second_time(second: Second, keys: KeySet, path: str) -> None:
    """Derived keys are equal byte for byte; root and temporary CA keep their keys, the server gets one of its own."""
    with serving(second.world, keys) as port:
        assert second.onboard(port, path) == keys.roots.k256_pubkey

    loaded = second.keystore.load()
    derived = [derive_app_keys(root_keys(each.roots), APP_ID, INSTANCE_ID) for each in (loaded, keys)]
    assert derived[0] == derived[1]
    assert spki_der(load_certificate(loaded.root_ca_pem)) == spki_der(load_certificate(keys.root_ca_pem))
    assert loaded.temp_ca.key_pem == keys.temp_ca.key_pem
    assert (loaded.domain, loaded.rpc.key_pem != keys.rpc.key_pem) == (DOMAIN, True)
    assert second.keystore.bootstrap_info() is None


def test_only_once(second: Second, keys: KeySet) -> None:
    """Keys that are there are never replaced, by whichever way."""
    with serving(second.world, keys) as port:
        second.onboard(port)
        with pytest.raises(KeystoreError, match=r"^KMS has already been onboarded$"):
            second.onboard(port)
    with pytest.raises(KeystoreError, match=r"^KMS has already been bootstrapped$"):
        second.onboarding.bootstrap(DOMAIN, "request")


def test_source_that_our_chain_does_not_permit_is_refused(second: Second, keys: KeySet) -> None:
    """What a source says of itself, even with genuine evidence, is judged by our own view of the chain."""
    machine = app_machine()
    other = _with_evidence(keys, lambda spki: evidence_extensions(machine.evidence(ratls_report_data(spki))))

    with serving(second.world, other) as port, pytest.raises(KeyReleaseDeniedError) as refused:
        second.onboard(port)

    assert str(refused.value) == "Source KMS is not allowed: boot denied: Aggregated MR not allowed"
    assert second.keystore.exists() is False


def test_source_without_evidence_is_refused(second: Second, keys: KeySet) -> None:
    """A server that does not say what it is gives us no keys."""
    with (
        serving(second.world, _with_evidence(keys, lambda _: [])) as port,
        pytest.raises(KeyReleaseDeniedError, match=r"^Source KMS is not allowed: No attestation provided$"),
    ):
        second.onboard(port)


def test_source_with_copied_evidence_is_refused(second: Second, keys: KeySet) -> None:
    """Evidence that is bound to another key than the connection's is not the source's."""
    copied = evidence_extensions(
        kms_machine().evidence(ratls_report_data(spki_der(load_private_key(keys.rpc.key_pem))))
    )
    thief = generate_keys("first.example", kms_machine(), at=AT)

    with (
        serving(second.world, _with_evidence(thief, lambda _: copied)) as port,
        pytest.raises(KeyReleaseDeniedError, match=r"^Source KMS is not allowed: report data: "),
    ):
        second.onboard(port)


def test_machine_that_the_chain_does_not_permit_does_not_ask(second: Second) -> None:
    """A machine that may hold no root keys is refused before anybody is called."""
    second.world.chain.kms_machines.clear()

    with pytest.raises(KeyReleaseDeniedError, match=r"^KMS self authorization failed: KMS is not allowed: "):
        second.onboard(1)


def test_man_in_the_middle_of_the_second_connection_is_noticed(second: Second, keys: KeySet) -> None:
    """Two permitted machines answer in turn; the second one's keys are not taken, because it is not the first."""
    other = generate_keys("first.example", kms_machine(), at=AT)

    with (
        serving(second.world, keys) as first_port,
        serving(second.world, other) as other_port,
        _relay(first_port, other_port) as port,
        pytest.raises(PeerUnavailableError, match="GetKmsKey: no answer"),
    ):
        second.onboard(port)

    # A server with another temporary CA refuses our certificate before it sees our question.
    assert second.keystore.exists() is False


def test_man_in_the_middle_with_the_same_temporary_authority_is_noticed(second: Second, keys: KeySet) -> None:
    """The temporary CA's key is public, so an attacker has it too; the pinned certificate is what gives them away."""
    other = replace(generate_keys("first.example", kms_machine(), at=AT), temp_ca=keys.temp_ca)

    with (
        serving(second.world, keys) as first_port,
        serving(second.world, other) as other_port,
        _relay(first_port, other_port) as port,
        pytest.raises(AppraisalError, match="its second connection shows another certificate than the first"),
    ):
        second.onboard(port)
    assert second.keystore.exists() is False


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda answer: replace(answer, keys=()), "want exactly one set of keys, got 0"),
        (lambda answer: replace(answer, keys=answer.keys * 2), "want exactly one set of keys, got 2"),
        (lambda answer: replace(answer, temp_ca_key="?"), "source KMS: private key: want PEM"),
        (
            lambda answer: replace(answer, temp_ca_key=private_key_pem(ec.generate_private_key(ec.SECP256R1()))),
            "its temporary CA's key is not that of the certificate it gave",
        ),
        (
            lambda answer: replace(answer, keys=(replace(answer.keys[0], ca_key=answer.temp_ca_key),)),
            "its root key is not that of the root certificate it names",
        ),
        (
            lambda answer: replace(answer, keys=(replace(answer.keys[0], k256_key=bytes(31)),)),
            "source KMS: root k256 key: want 32 bytes, got 31",
        ),
    ],
)
def test_keys_that_do_not_belong_together_are_refused(second: Second, keys: KeySet, spoil: Spoil, what: str) -> None:
    """What a permitted source gives is still checked against its certificates; nothing of it is kept."""
    with serving(second.world, keys, spoil) as port, pytest.raises(PeerRefusedError, match=what):
        second.onboard(port)

    assert second.keystore.exists() is False


@pytest.mark.parametrize(
    "url",
    [
        "",
        "first.example",
        "http://first.example",
        "https://",
        "https://a/?b",
        "https://u:p@a",
        "https://é",
        "https://[::1",
        "https://a:65536",
        "https://a:b",
        "https://a:0",
        "https://a/\n",
        "https://" + "a" * 2050,
    ],
)
def test_url_that_is_none_is_refused(second: Second, url: str) -> None:
    """Only HTTPS, and no credentials in it."""
    with pytest.raises(InputError, match=r"source_url: want https://HOST\[:PORT\] of a KMS"):
        second.onboarding.onboard(url, DOMAIN, "request")


def _with_evidence(keys: KeySet, extensions: Callable[[bytes], list[Extension]]) -> KeySet:
    """*keys* with a server certificate that carries other extensions."""
    key = load_private_key(keys.rpc.key_pem)
    issued = keys.roots.issue_rpc_certificate(keys.root_ca_pem, key, keys.domain, extensions(spki_der(key)), at=AT)
    return replace(keys, rpc=TlsIdentity(issued, keys.rpc.key_pem))


@contextmanager
def _relay(*ports: int) -> Iterator[int]:
    """A port that passes its first connection on to the first of *ports*, the next to the next."""
    with socket.create_server(("127.0.0.1", 0)) as entrance:
        thread = threading.Thread(target=_pass_on, args=(entrance, ports))
        thread.start()
        try:
            yield entrance.getsockname()[1]
        finally:
            # Whoever still waits for a connection gets none.
            entrance.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def _pass_on(entrance: socket.socket, ports: tuple[int, ...]) -> None:
    for port in ports:
        try:
            incoming = entrance.accept()[0]
        except OSError:  # The entrance is shut: nobody comes any more.
            return
        with incoming, suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as outgoing:
            _copy(incoming, outgoing)


def _copy(incoming: socket.socket, outgoing: socket.socket) -> None:
    """Both ways, until one side has nothing more to say."""
    others = {incoming: outgoing, outgoing: incoming}
    while True:
        for ready in select.select(list(others), [], [])[0]:
            piece = ready.recv(1 << 16)
            if not piece:
                return
            others[ready].sendall(piece)
