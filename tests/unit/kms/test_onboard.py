"""The first start: once, only if permitted, and proven by a quote over the new keys."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.attestation.evidence import Evidence, parse_evidence
from dstack.attestation.ratls import certificate_report_data, evidence_from_certificate
from dstack.attestation.report_data import bootstrap_report_data
from dstack.errors import AgentUnavailableError, InputError, KeyReleaseDeniedError, KeystoreError, UnavailableError
from dstack.keys.certs import (
    OID_CERTIFICATE_USAGE,
    OID_EVENT_LOG,
    OID_TDX_QUOTE,
    USAGE_KMS_RPC,
    certificate_payload,
)
from dstack.keys.pem import load_certificate, spki_der
from dstack.measurement.event_log import parse_event_log, runtime_events
from dstack.values import ReportData
from dstack.wire.kms import BootstrapResponse
from dstack.wire.message import from_json
from kms.generation import generate_keys, reissue_rpc_certificate, renew_authorities
from kms.keystore import Keystore, open_keystore
from kms.onboard import Onboarding
from tests.unit.kms.conftest import AT, BLOCK, World, allow_kms, kms_machine
from tests.worlds import root_keys

DOMAIN = "kms.example"


@pytest.fixture
def keystore(tmp_path: Path) -> Iterator[Keystore]:
    """An empty store."""
    with open_keystore(tmp_path) as store:
        yield store


@pytest.fixture
def onboarding(world: World, keystore: Keystore) -> Onboarding:
    """The onboarding of a KMS that the chain permits."""
    allow_kms(world)
    return Onboarding(keystore, world.machine, world.verifier, world.own, world.chain)


def test_bootstrap_makes_keys_and_a_quote_over_them(onboarding: Onboarding, keystore: Keystore, world: World) -> None:
    """The answer holds both public keys and evidence bound to them, and is what bootstrap-info.json says."""
    answer = onboarding.bootstrap(DOMAIN, "request")

    keys = keystore.load()
    assert answer.ca_pubkey == spki_der(load_certificate(keys.root_ca_pem))
    assert answer.k256_pubkey == keys.roots.k256_pubkey
    assert keys.domain == DOMAIN
    bound_to = bootstrap_report_data(answer.ca_pubkey, answer.k256_pubkey)
    appraisal = world.verifier.appraise(parse_evidence(answer.attestation), bound_to=bound_to)
    assert appraisal.mr_aggregated == world.own.appraisal().mr_aggregated
    assert from_json(BootstrapResponse, keystore.bootstrap_info() or b"") == answer


def test_kms_that_the_chain_does_not_permit_makes_no_keys(world: World, keystore: Keystore) -> None:
    """The chain is asked before anything is made, and its reason follows upstream's words."""
    onboarding = Onboarding(keystore, world.machine, world.verifier, world.own, world.chain)

    with pytest.raises(KeyReleaseDeniedError) as refused:
        onboarding.bootstrap(DOMAIN, "request")

    assert str(refused.value) == "KMS is not allowed to bootstrap: boot denied: Aggregated MR not allowed"
    assert (refused.value.rule, refused.value.block) == ("AGGREGATED_MR", BLOCK.number)
    assert keystore.exists() is False
    assert len(world.machine.asked) == 1


def test_chain_that_does_not_answer_makes_no_keys(world: World, keystore: Keystore, onboarding: Onboarding) -> None:
    """Not being able to ask is no permission."""
    world.chain.reachable = False

    with pytest.raises(UnavailableError, match=r"^could not ask: chain: "):
        onboarding.bootstrap(DOMAIN, "request")

    assert keystore.exists() is False


def test_second_bootstrap_is_refused(onboarding: Onboarding, keystore: Keystore) -> None:
    """Keys are made once; the first ones stay."""
    onboarding.bootstrap(DOMAIN, "request")
    keys = keystore.load()

    with pytest.raises(KeystoreError, match=r"^KMS has already been bootstrapped$"):
        onboarding.bootstrap(DOMAIN, "request")

    assert keystore.load() == keys


def test_simultaneous_bootstraps_make_one_set_of_keys(onboarding: Onboarding, keystore: Keystore) -> None:
    """Of several calls at once one makes the keys and the others are refused."""
    outcomes: list[str] = []

    def bootstrap() -> None:
        try:
            outcomes.append(onboarding.bootstrap(DOMAIN, "request").k256_pubkey.hex())
        except KeystoreError as exc:
            outcomes.append(str(exc))

    threads = [threading.Thread(target=bootstrap) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    made = keystore.load().roots.k256_pubkey.hex()
    assert sorted(outcomes) == sorted([made] + ["KMS has already been bootstrapped"] * 3)


@pytest.mark.parametrize("domain", ["", "-a.example", "a..b", "ä.example", "a" * 64, "x." * 127 + "xx", "a b"])
def test_name_that_no_server_has_is_refused(onboarding: Onboarding, keystore: Keystore, domain: str) -> None:
    """The domain is an ASCII name or an address, and is judged before anything else."""
    with pytest.raises(InputError, match="server name: want"):
        onboarding.bootstrap(domain, "request")

    assert keystore.exists() is False


def test_keys_without_their_quote_are_not_kept(keystore: Keystore, world: World) -> None:
    """If the agent fails between the making and the quoting, there are no keys."""
    allow_kms(world)

    class Mute:
        """Quotes once, then no more."""

        def __init__(self) -> None:
            self.left = 1

        def evidence(self, report_data: ReportData) -> Evidence:
            if self.left == 0:
                raise AgentUnavailableError("agent: gone")
            self.left -= 1
            return world.machine.evidence(report_data)

    onboarding = Onboarding(keystore, Mute(), world.verifier, world.own, world.chain)
    with pytest.raises(AgentUnavailableError, match="agent: gone"):
        onboarding.bootstrap(DOMAIN, "request")

    assert keystore.exists() is False


def test_finish_needs_keys(onboarding: Onboarding) -> None:
    """Onboarding is over when there are keys, not before."""
    with pytest.raises(KeystoreError, match=r"^KMS has not been bootstrapped yet$"):
        onboarding.require_keys()

    onboarding.bootstrap(DOMAIN, "request")
    onboarding.require_keys()


def test_server_certificate_carries_evidence_of_its_key(world: World) -> None:
    """The server certificate is for KMS calls, and its evidence verifies and is bound to its key."""
    keys = generate_keys(DOMAIN, world.machine, at=AT)

    certificate = load_certificate(keys.rpc.certificate_pem)
    assert certificate_payload(certificate, OID_CERTIFICATE_USAGE) == USAGE_KMS_RPC
    der = ssl.PEM_cert_to_DER_cert(keys.rpc.certificate_pem)
    evidence = evidence_from_certificate(der)
    assert evidence is not None
    appraisal = world.verifier.appraise(evidence, bound_to=certificate_report_data(der))
    assert appraisal.mr_aggregated == world.own.appraisal().mr_aggregated


def test_reissued_certificate_keeps_key_and_name(world: World) -> None:
    """At a start only the certificate is new: other evidence, same key, same roots."""
    keys = generate_keys(DOMAIN, kms_machine(), at=AT)

    again = reissue_rpc_certificate(keys, world.machine, at=AT)

    assert again.rpc.certificate_pem != keys.rpc.certificate_pem
    assert (again.rpc.key_pem, again.roots, again.temp_ca) == (keys.rpc.key_pem, keys.roots, keys.temp_ca)
    assert world.machine.asked == [certificate_report_data(ssl.PEM_cert_to_DER_cert(keys.rpc.certificate_pem))]


def test_generated_keys_differ() -> None:
    """No two KMSs have a key in common."""
    first, second = (generate_keys(DOMAIN, kms_machine(), at=AT) for _ in range(2))
    secrets = [
        secret
        for keys in (first, second)
        for secret in (root_keys(keys.roots).ca, root_keys(keys.roots).k256, keys.temp_ca.key_pem, keys.rpc.key_pem)
    ]

    assert len(set(secrets)) == 8


def test_authorities_are_renewed_in_their_last_year_only() -> None:
    """Until then what clients keep of them stays equal; afterwards name, serial number and key do."""
    keys = generate_keys(DOMAIN, kms_machine(), at=AT)
    ten_years = timedelta(days=3650)

    assert renew_authorities(keys, at=AT + ten_years - timedelta(days=366)) is keys
    late = AT + ten_years - timedelta(days=365)
    renewed = renew_authorities(keys, at=late)
    for before, after in (
        (keys.root_ca_pem, renewed.root_ca_pem),
        (keys.temp_ca.certificate_pem, renewed.temp_ca.certificate_pem),
    ):
        old, new = load_certificate(before), load_certificate(after)
        assert new.not_valid_after_utc == late + ten_years
        assert (new.subject, new.serial_number, spki_der(new)) == (old.subject, old.serial_number, spki_der(old))
    assert (renewed.roots, renewed.temp_ca.key_pem) == (keys.roots, keys.temp_ca.key_pem)


def test_evidence_in_the_form_of_old_readers() -> None:
    """With the setting, the certificate carries the evidence twice: as today's readers take it, and as 0.5.5 did."""
    keys = reissue_rpc_certificate(generate_keys(DOMAIN, kms_machine(), at=AT), kms_machine(), at=AT, classic=True)
    certificate = load_certificate(keys.rpc.certificate_pem)

    quote, log = (certificate_payload(certificate, oid) for oid in (OID_TDX_QUOTE, OID_EVENT_LOG))
    evidence = evidence_from_certificate(ssl.PEM_cert_to_DER_cert(keys.rpc.certificate_pem))
    assert evidence is not None
    assert quote == evidence.quote
    assert runtime_events(parse_event_log(log or b"")) == evidence.runtime_events
    plain = load_certificate(generate_keys(DOMAIN, kms_machine(), at=AT).rpc.certificate_pem)
    assert certificate_payload(plain, OID_TDX_QUOTE) is None
