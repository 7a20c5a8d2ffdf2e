"""Both services as their callers see them, over real sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.chain.facts import Facts
from dstack.keys import derive_app_keys
from dstack.transport.listener import Listener
from dstack.transport.tls import client_context, server_context
from dstack.wire.kms import AppIdRequest, GetMetaResponse, GetTempCaCertResponse, PublicKeyResponse
from dstack.wire.message import from_protobuf, to_protobuf
from dstack.wire.prpc import read_error_protobuf
from kms.app import kms_app, onboard_app
from kms.config import parse_settings
from kms.generation import generate_keys
from kms.keystore import KeySet, open_keystore
from kms.onboard import Onboarding
from kms.onboard_service import OnboardService
from kms.permission import PermissionWatch
from kms.release import KeyRelease
from kms.service import KmsService
from tests.unit.kms.conftest import (
    APP_ID,
    AT,
    BLOCK,
    CONTRACT,
    IMAGE,
    IMPLEMENTATION,
    INSTANCE_ID,
    World,
    allow_kms,
    app_machine,
    client_identity,
)
from tests.worlds import root_keys

INFO = b'{"ca_pubkey":"01","k256_pubkey":"02","attestation":"03"}'
SETTINGS = parse_settings(
    f"""
    [core]
    site_name = "here"
    [core.attestation.urls]
    collateral_dir = "."
    [core.auth_api.chain]
    rpc_url = "https://user:secret@rpc.example:8545/key"
    kms_contract = "{CONTRACT}"
    """
)


@dataclass(frozen=True)
class Served:
    """A running service, and what it runs on."""

    url: str
    keys: KeySet
    world: World

    def post(self, method: str, body: object = None) -> httpx.Response:
        """Call in JSON."""
        return httpx.post(f"{self.url}/prpc/{method}?json", content=json.dumps(body))


@pytest.fixture
def kms(world: World) -> Iterator[Served]:
    """The KMS service of a KMS that the chain permits; without TLS, so that nobody shows a certificate."""
    allow_kms(world)
    keys = generate_keys("localhost", world.machine, at=AT)
    release = KeyRelease(keys.roots, world.own, world.verifier, world.chain)
    service = KmsService(keys, release, world.chain, INFO, simulated=True)
    with Listener(kms_app(service)).running() as listener:
        yield Served(f"http://127.0.0.1:{listener.port}", keys, world)


@pytest.fixture
def onboard(world: World, tmp_path: Path) -> Iterator[Served]:
    """The onboarding service; its listener stops when it is finished."""
    with ExitStack() as stack:
        keystore = stack.enter_context(open_keystore(tmp_path))
        onboarding = Onboarding(keystore, world.machine, world.verifier, world.own, world.chain)
        service = OnboardService(onboarding, world.own, SETTINGS, finish=lambda: listener.stop())
        listener = Listener(onboard_app(service, PermissionWatch(world.own, world.chain)))
        stack.enter_context(listener.running())
        yield Served(f"http://127.0.0.1:{listener.port}", generate_keys("unused", world.machine, at=AT), world)


def test_meta_says_who_this_kms_is(kms: Served) -> None:
    """GetMeta shows public keys, contract and chain, and that a simulated root makes this no production KMS."""
    assert kms.post("KMS.GetMeta").json() == {
        "ca_cert": kms.keys.root_ca_pem,
        "allow_any_upgrade": False,
        "k256_pubkey": kms.keys.roots.k256_pubkey.hex(),
        "bootstrap_info": {"ca_pubkey": "01", "k256_pubkey": "02", "attestation": "03"},
        "is_dev": True,
        "gateway_app_id": "0xgateway",
        "kms_contract_address": CONTRACT,
        "chain_id": 31337,
        "app_auth_implementation": IMPLEMENTATION,
    }


@pytest.mark.parametrize("name", ["GetMeta", "KMS.GetMeta", "KMS.KMS.GetMeta"])
def test_meta_by_get_and_in_protobuf(kms: Served, name: str) -> None:
    """GET answers JSON and a bare POST protobuf, under every spelling of the name; the version is in the header."""
    by_get, by_post = httpx.get(f"{kms.url}/prpc/{name}"), httpx.post(f"{kms.url}/prpc/{name}")

    assert by_get.json()["chain_id"] == from_protobuf(GetMetaResponse, by_post.content).chain_id == 31337
    assert by_get.headers["x-app-version"] == "v0.1.0 (dstack-python)"


@pytest.mark.parametrize("info", [None, b"not JSON"])
def test_meta_without_bootstrap_info(world: World, info: bytes | None) -> None:
    """Keys that came by onboarding have no bootstrap info, and a damaged file is none."""
    keys = generate_keys("localhost", world.machine, at=AT)
    release = KeyRelease(keys.roots, world.own, world.verifier, world.chain)
    service = KmsService(keys, release, world.chain, info, simulated=False)

    with Listener(kms_app(service)).running() as listener:
        meta = httpx.get(f"http://127.0.0.1:{listener.port}/prpc/GetMeta").json()

    assert (meta["bootstrap_info"], meta["is_dev"]) == (None, False)


def test_temp_ca_is_handed_out(kms: Served) -> None:
    """Whoever asks gets the temporary CA with its key, as long as the chain permits this KMS."""
    answer = from_protobuf(GetTempCaCertResponse, httpx.post(f"{kms.url}/prpc/GetTempCaCert").content)
    assert answer == GetTempCaCertResponse(
        kms.keys.temp_ca.certificate_pem, kms.keys.temp_ca.key_pem, kms.keys.root_ca_pem
    )

    kms.world.chain.kms_machines.clear()
    refused = kms.post("GetTempCaCert")
    assert (refused.status_code, refused.json()) == (
        400,
        {
            "error": "KMS self authorization failed: KMS is not allowed: Aggregated MR not allowed",
            "kind": "refused",
            "rule": "AGGREGATED_MR",
            "block": BLOCK.number,
        },
    )


def test_env_key_in_json_and_protobuf(kms: Served) -> None:
    """The env key is the same in both encodings, and `0x` before the app id is taken."""
    in_json = kms.post("KMS.GetAppEnvEncryptPubKey", {"app_id": "0x" + APP_ID.hex()}).json()
    raw = httpx.post(f"{kms.url}/prpc/GetAppEnvEncryptPubKey", content=to_protobuf(AppIdRequest(APP_ID))).content

    in_protobuf = from_protobuf(PublicKeyResponse, raw)
    assert in_json == {
        "public_key": in_protobuf.public_key.hex(),
        "signature": in_protobuf.signature.hex(),
        "timestamp": int(AT.timestamp()),
        "signature_v1": in_protobuf.signature_v1.hex(),
    }


@pytest.mark.parametrize("app_id", ["", "aa", "aa" * 21])
def test_app_id_of_another_length_is_refused(kms: Served, app_id: str) -> None:
    """An app id is exactly 20 bytes, before anything is derived or signed."""
    answer = kms.post("GetAppEnvEncryptPubKey", {"app_id": app_id})

    assert (answer.status_code, answer.json()) == (400, {"error": "app_id must be 20 bytes", "kind": "input"})


def test_app_key_without_a_certificate_is_refused(kms: Served) -> None:
    """Without a client certificate there is no evidence, and no key."""
    answer = kms.post("GetAppKey", {"api_version": 1, "vm_config": ""})

    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "App not allowed: No attestation provided", "kind": "refused", "rule": "EVIDENCE_MISSING"},
    )


def test_later_api_version_is_refused(kms: Served) -> None:
    """A request of an API that this KMS does not know is not half understood."""
    assert kms.post("GetAppKey", {"api_version": 2}).json()["error"] == "Unsupported API version: 2"


def test_chain_down_is_neither_yes_nor_no(kms: Served) -> None:
    """Without the chain every method says that it could not ask."""
    kms.world.chain.reachable = False

    answers = [kms.post("GetAppKey", {}), kms.post("GetTempCaCert")]

    assert [answer.json() for answer in answers] == [
        {"error": "could not ask: chain: no endpoint answered", "kind": "unavailable"}
    ] * 2


@pytest.mark.parametrize("name", ["ClearImageCache", "Bootstrap", "Onboard.Bootstrap"])
def test_method_of_a_later_version_is_not_found(kms: Served, name: str) -> None:
    """What this KMS does not do is not found, in both encodings."""
    in_json, in_protobuf = kms.post(name), httpx.post(f"{kms.url}/prpc/{name}")

    assert in_json.json() == {"error": f"Service not found: {name}", "kind": "input"}
    assert read_error_protobuf(in_protobuf.content) == f"Service not found: {name}"


def test_who_says_no_host_is_no_browser(onboard: Served) -> None:
    """A probe in HTTP/1.0 without that header is answered before there are keys, too."""
    address = urlsplit(onboard.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))

    assert (answer[:13], answer[-2:]) == (b"HTTP/1.1 200 ", b"OK")


def test_health(kms: Served, onboard: Served) -> None:
    """Both services say that they are there."""
    assert [httpx.get(f"{served.url}/health").text for served in (kms, onboard)] == ["OK", "OK"]


def test_every_answer_of_the_service_says_its_version(kms: Served) -> None:
    """Also what is no method, what is refused, and what there is not."""
    answers = [
        *(httpx.get(f"{kms.url}{path}") for path in ("/health", "/metrics", "/nothing", "/prpc/Nothing", "/prpc/a/b")),
        httpx.put(f"{kms.url}/prpc/GetMeta"),
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 404, 400, 404, 405]
    assert {answer.headers.get_list("x-app-version") == ["v0.1.0 (dstack-python)"] for answer in answers} == {True}


def test_who_only_watches_may_ask_for_the_head(kms: Served, onboard: Served) -> None:
    """HEAD is answered like GET, without the body; methods are no documents."""
    looks = [f"{kms.url}/health", f"{kms.url}/metrics", f"{onboard.url}/health"]
    answers = [httpx.head(look) for look in looks]

    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"")] * 3
    assert answers[0].headers["content-length"] == "2"
    assert [httpx.head(f"{onboard.url}{path}").status_code for path in ("/finish", "/prpc/Finish")] == [405, 405]


def test_attestation_info_shows_what_to_allow(onboard: Served) -> None:
    """Before Bootstrap an operator sees what the contracts must allow; the RPC URL without its credentials."""
    own = onboard.world.own.appraisal()

    assert onboard.post("Onboard.GetAttestationInfo", {}).json() == {
        "device_id": own.device_id.hex(),
        "mr_aggregated": own.mr_aggregated.hex(),
        "os_image_hash": own.os_image_hash.hex(),
        "tee_variant": "dstack-tdx",
        "attestation_mode": "dstack-tdx",
        "site_name": "here",
        "eth_rpc_url": "https://rpc.example:8545",
        "kms_contract_address": CONTRACT,
        "ppid": own.verified.ppid.hex(),
    }


def test_attestation_info_tells_what_an_auth_server_says(world: World, tmp_path: Path) -> None:
    """Where the settings name no contract, contract and endpoint are the auth server's; nothing before it has said."""
    webhook = parse_settings(
        """
        [core.attestation.urls]
        collateral_dir = "."
        [core.auth_api]
        type = "webhook"
        webhook.url = "http://127.0.0.1:8000"
        """
    )
    facts = Facts(CONTRACT, 1, "", IMPLEMENTATION, BLOCK, 0.0, "https://rpc.example")
    with open_keystore(tmp_path) as keystore:
        onboarding = Onboarding(keystore, world.machine, world.verifier, world.own, world.chain)
        infos = [
            OnboardService(onboarding, world.own, webhook, lambda: None, said).attestation_info()
            for said in (lambda: None, lambda: facts)
        ]

    assert [(info.kms_contract_address, info.eth_rpc_url) for info in infos] == [
        ("", ""),
        (CONTRACT, "https://rpc.example"),
    ]


def test_a_link_leads_to_the_page_and_to_nothing_else(onboard: Served) -> None:
    """From elsewhere a browser may be led to this page, but not into a frame of it, nor to what does something."""
    allow_kms(onboard.world)
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    frame = {**link, "Sec-Fetch-Dest": "iframe"}
    bootstrap = "/prpc/Onboard.Bootstrap?domain=kms.example"
    asked = [("/", link), ("/", frame), ("/", {**link, "Sec-Fetch-Mode": "cors"}), ("/finish", link), (bootstrap, link)]

    statuses = [httpx.get(f"{onboard.url}{path}", headers=headers).status_code for path, headers in asked]

    assert statuses == [200, 400, 400, 400, 400]


def test_story_of_a_first_start(onboard: Served) -> None:
    """Refused by the chain; not to be finished; allowed and made; refused a second time; finished, and gone."""
    refused = onboard.post("Onboard.Bootstrap", {"domain": "kms.example"})
    assert refused.json()["error"] == "KMS is not allowed to bootstrap: boot denied: Aggregated MR not allowed"
    early = httpx.get(f"{onboard.url}/finish")
    assert (early.status_code, early.json()["error"]) == (400, "KMS has not been bootstrapped yet")
    assert onboard.post("Onboard.Finish").status_code == 400

    allow_kms(onboard.world)
    made = onboard.post("Onboard.Bootstrap", {"domain": "kms.example"})
    assert (made.status_code, sorted(made.json())) == (200, ["attestation", "ca_pubkey", "k256_pubkey"])
    again = onboard.post("Onboard.Bootstrap", {"domain": "kms.example"})
    assert (again.status_code, again.json()["error"]) == (400, "KMS has already been bootstrapped")

    assert httpx.get(f"{onboard.url}/finish").text == "OK"
    assert _is_gone(onboard.url)


def test_finish_by_method_answers_null(onboard: Served) -> None:
    """Finish as a method answers the empty message."""
    allow_kms(onboard.world)
    onboard.post("Onboard.Bootstrap", {"domain": "kms.example"})

    assert onboard.post("Onboard.Finish").text == "null"


def test_caller_is_known_by_the_certificate_of_its_connection(world: World) -> None:
    """Over TLS an app with bound evidence gets its keys; the same app's evidence behind another key does not."""
    allow_kms(world)
    keys = generate_keys("localhost", world.machine, at=AT)
    release = KeyRelease(keys.roots, world.own, world.verifier, world.chain)
    service = KmsService(keys, release, world.chain, None, simulated=True)
    own = client_identity(app_machine(), keys.temp_ca)
    stolen = client_identity(app_machine(), keys.temp_ca, bound_to=ec.generate_private_key(ec.SECP256R1()))

    tls = server_context(keys.rpc, client_ca_pem=keys.temp_ca.certificate_pem)
    with Listener(kms_app(service), tls=tls).running() as listener:
        url = f"https://localhost:{listener.port}/prpc/GetAppKey?json"
        answers = [
            httpx.post(url, verify=client_context(ca_pem=keys.root_ca_pem, identity=identity))
            for identity in (own, stolen)
        ]

    derived = derive_app_keys(root_keys(keys.roots), APP_ID, INSTANCE_ID)
    assert answers[0].json() == {
        "ca_cert": keys.root_ca_pem,
        "disk_crypt_key": derived.disk_crypt_key.hex(),
        "env_crypt_key": derived.env_crypt_key.hex(),
        "k256_key": derived.k256_key.hex(),
        "k256_signature": derived.k256_signature.hex(),
        "tproxy_app_id": "0xgateway",
        "gateway_app_id": "0xgateway",
        "os_image_hash": IMAGE.os_image_hash.hex(),
    }
    assert answers[1].json()["error"].startswith("App not allowed: report data: ")


def _is_gone(url: str) -> bool:
    """Whether, before long, nobody answers any more."""
    for _ in range(500):
        try:
            httpx.get(f"{url}/health")
        except httpx.HTTPError:
            return True
    return False
