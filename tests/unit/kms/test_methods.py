"""Methods of the KMS service over the wire that its other tests do not call: both encodings, every quirk."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation import scale
from dstack.attestation.evidence import Evidence, parse_evidence
from dstack.attestation.ratls import classic_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.keys import derive_app_keys
from dstack.keys.certs import OID_APP_INFO, OID_ATTESTATION, build_client_cert, certificate_payload
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, private_key_pem, spki_der
from dstack.measurement.event_log import serialise_event_log
from dstack.transport.listener import Listener
from dstack.transport.tls import TlsIdentity, server_context, unauthenticated_client_context
from dstack.wire.kms import (
    ClearImageCacheRequest,
    LegacyClearImageCacheRequest,
    SignCertRequest,
    SignCertResponse,
)
from dstack.wire.message import from_protobuf, to_json, to_protobuf
from dstack.wire.prpc import read_error_protobuf
from kms.admin import Credentials, LegacyCache
from kms.app import kms_app
from kms.image_cache import ImageCache
from kms.metrics import Metrics
from kms.release import KeyRelease
from kms.service import KmsService
from tests.unit.kms.conftest import APP_ID, AT, IMAGE, INSTANCE_ID, World, allow_kms, app_machine, client_identity
from tests.unit.kms.test_release_of_certificates import KEY, KEYS, request
from tests.worlds import root_keys

TOKEN = "the operator's token"


@pytest.fixture
def service(world: World, tmp_path: Path) -> KmsService:
    """That of a KMS that the chain permits; with ClearImageCache as it was up to 0.5.11."""
    allow_kms(world)
    release = KeyRelease(KEYS.roots, world.own, world.verifier, world.chain)
    cache = LegacyCache(ImageCache(tmp_path, None), Credentials(hashlib.sha256(TOKEN.encode()).digest()))
    return KmsService(KEYS, release, world.chain, None, simulated=True, cache=cache)


@pytest.fixture
def url(service: KmsService) -> Iterator[str]:
    """Where it is."""
    with Listener(kms_app(service)).running() as listener:
        yield f"http://127.0.0.1:{listener.port}"


def _sign_cert() -> SignCertRequest:
    version, csr, signature = request(app_machine())
    return SignCertRequest(version, csr, signature, "")


@pytest.mark.parametrize("name", ["SignCert", "KMS.SignCert"])
def test_sign_cert_needs_no_client_certificate(url: str, name: str) -> None:
    """The evidence is in the request; JSON without Content-Type and protobuf give a chain of three certificates."""
    asked = _sign_cert()

    in_json = httpx.post(f"{url}/prpc/{name}?json", content=to_json(asked)).json()["certificate_chain"]
    raw = httpx.post(f"{url}/prpc/{name}", content=to_protobuf(asked)).content
    in_protobuf = from_protobuf(SignCertResponse, raw).certificate_chain

    for chain in (in_json, in_protobuf):
        leaf, app_ca, root = map(load_certificate, chain)
        leaf.verify_directly_issued_by(app_ca)
        app_ca.verify_directly_issued_by(root)
    assert in_json[2] == in_protobuf[2] == KEYS.root_ca_pem


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"api_version": 0}, "Unsupported API version: 0"),
        ({"api_version": 3}, "Unsupported API version: 3"),
        ({"api_version": 2, "csr": ""}, "confirm word: want 1 bytes at offset 0, 0 are left"),
        ({"api_version": 2, "csr": "0"}, "csr: want hexadecimal of even length"),
        ({"api_version": -1}, "api_version: want a number from 0 to 4294967295"),
        ({"api_version": "1"}, "api_version: want a whole number, got text"),
    ],
)
def test_sign_cert_says_what_is_wrong(url: str, asked: dict[str, object], error: str) -> None:
    """Each malformed request has its own sentence, and status 400."""
    answer = httpx.post(f"{url}/prpc/SignCert?json", content=json.dumps(asked))

    assert (answer.status_code, answer.json()["error"]) == (400, error)


def test_refused_certificate_names_the_chain_of_causes(url: str, world: World) -> None:
    """Outermost first, joined by colons; the same text in both encodings."""
    world.chain.compose_hashes.clear()
    asked = _sign_cert()

    in_json = httpx.post(f"{url}/prpc/SignCert?json", content=to_json(asked))
    in_protobuf = httpx.post(f"{url}/prpc/SignCert", content=to_protobuf(asked))

    assert in_json.text.startswith('{\n  "error": "Certificate not allowed: Boot denied: Compose hash not allowed",\n')
    assert read_error_protobuf(in_protobuf.content) == in_json.json()["error"]
    assert (in_json.status_code, in_protobuf.status_code) == (400, 400)


def test_kms_key_without_a_certificate_is_refused(url: str) -> None:
    """In both encodings; nothing releases root keys without evidence."""
    answer = httpx.post(f"{url}/prpc/KMS.GetKmsKey?json", content='{"vm_config": ""}')
    raw = httpx.post(f"{url}/prpc/GetKmsKey", content=b"")

    assert answer.json()["error"] == read_error_protobuf(raw.content) == "KMS not allowed: No attestation provided"


def test_image_cache_is_cleared_as_up_to_0_5_11(url: str, tmp_path: Path) -> None:
    """The token is in the message; a wrong one is refused and clears nothing."""
    (tmp_path / "images" / "ab").mkdir(parents=True)

    refused = httpx.post(f"{url}/prpc/ClearImageCache?json", content=to_json(LegacyClearImageCacheRequest("?", "ab")))
    assert (refused.status_code, refused.json()["error"]) == (400, "Invalid token")
    assert (tmp_path / "images" / "ab").exists()

    cleared = httpx.post(f"{url}/prpc/ClearImageCache", content=to_protobuf(LegacyClearImageCacheRequest(TOKEN, "ab")))
    assert (cleared.status_code, cleared.content) == (200, b"")
    assert not (tmp_path / "images" / "ab").exists()


def test_newer_callers_are_not_mistaken(url: str) -> None:
    """The message of the operator's service has no token, and is refused here."""
    raw = to_protobuf(ClearImageCacheRequest("all", "all"))

    assert read_error_protobuf(httpx.post(f"{url}/prpc/ClearImageCache", content=raw).content) == "Invalid token"


def test_each_answer_has_a_name_for_the_logs(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The request's line carries the id that the caller was told, also for what is not found."""
    with caplog.at_level("INFO", logger="kms.requests"):
        told = [httpx.post(f"{url}/prpc/{name}").headers["x-request-id"] for name in ("GetMeta", "Nothing")]

    lines = [json.loads(line) for line in caplog.messages]
    assert [(line["request"], line["method"], line["status"]) for line in lines] == [
        (told[0], "GetMeta", 200),
        (told[1], "unknown", 400),
    ]


def test_metrics_are_told_if_they_may_be(service: KmsService) -> None:
    """`/metrics` counts what was asked; with the setting off there is no such place."""
    for shown, status in ((True, 200), (False, 404)):
        with Listener(kms_app(service, Metrics(), show_metrics=shown)).running() as listener:
            httpx.post(f"http://127.0.0.1:{listener.port}/prpc/GetAppKey?json", content="{}")
            answer = httpx.get(f"http://127.0.0.1:{listener.port}/metrics")
        assert answer.status_code == status
        assert ("dstack_kms_attestation_failures_total 1.0" in answer.text) is shown


def test_other_paths_are_not_found(url: str) -> None:
    """Outside the methods the answer is the framework's."""
    assert [httpx.get(url + path).status_code for path in ("/", "/prpc", "/prpc/a/b", "/finish")] == [404] * 4


@pytest.fixture
def tls_url(service: KmsService) -> Iterator[str]:
    """The same over TLS."""
    tls = server_context(KEYS.rpc, client_ca_pem=KEYS.temp_ca.certificate_pem)
    with Listener(kms_app(service), tls=tls).running() as listener:
        yield f"https://localhost:{listener.port}"


def _classic_client(evidence: Evidence, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    """A guest up to 0.5.8: quote and log in extensions of their own, the config nowhere."""
    authority = load_certificate(KEYS.temp_ca.certificate_pem), load_private_key(KEYS.temp_ca.key_pem)
    built = build_client_cert(key, *authority, classic_extensions(evidence), at=AT)
    return unauthenticated_client_context(TlsIdentity(certificate_pem(built), private_key_pem(key)))


def test_a_guest_up_to_0_5_8_gets_its_keys(tls_url: str) -> None:
    """Its certificate carries the classic pair, so the config comes with the request; without it no image is named."""
    key = ec.generate_private_key(ec.SECP256R1())
    evidence = app_machine().evidence(ratls_report_data(spki_der(key)))
    with httpx.Client(verify=_classic_client(evidence, key)) as client:
        given, refused = (
            client.post(f"{tls_url}/prpc/GetAppKey?json", content=json.dumps({"api_version": 1, "vm_config": config}))
            for config in (evidence.config, "")
        )

    derived = derive_app_keys(root_keys(KEYS.roots), APP_ID, INSTANCE_ID)
    assert given.json()["disk_crypt_key"] == derived.disk_crypt_key.hex()
    assert given.json()["os_image_hash"] == IMAGE.os_image_hash.hex()
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("App not allowed: Failed to verify os image hash: ")


def test_a_guest_up_to_0_5_5_gets_its_certificate(url: str) -> None:
    """API version 1 of SignCert: quote and log apart, the config in the request."""
    evidence = app_machine().evidence(ratls_report_data(spki_der(KEY)))
    log = serialise_event_log(evidence.event_log).encode()
    head = (b"please sign cert:", spki_der(KEY))
    raw = b"".join(
        (
            *map(scale.write_bytes, head),
            b"\0" + scale.write_bytes(b"app.example"),
            scale.write_length(1) + scale.write_bytes(b"app.example"),
            bytes((1, 0, 1)),
            *map(scale.write_bytes, (evidence.quote, log)),
        )
    )
    asked = SignCertRequest(1, raw, KEY.sign(raw, ec.ECDSA(hashes.SHA256())), evidence.config)

    chain = httpx.post(f"{url}/prpc/SignCert?json", content=to_json(asked)).json()["certificate_chain"]

    leaf, app_ca, _ = map(load_certificate, chain)
    leaf.verify_directly_issued_by(app_ca)
    assert spki_der(leaf) == spki_der(KEY)
    assert parse_evidence(certificate_payload(leaf, OID_ATTESTATION) or b"").quote == evidence.quote
    assert certificate_payload(leaf, OID_APP_INFO) is None


def test_evidence_is_looked_at_where_it_counts(tls_url: str) -> None:
    """Upstream verifies a client's evidence at every method; here what anybody may ask, its bearer may ask too."""
    identity = client_identity(app_machine(), KEYS.temp_ca, bound_to=ec.generate_private_key(ec.SECP256R1()))
    with httpx.Client(verify=unauthenticated_client_context(identity)) as client:
        statuses = {name: client.get(f"{tls_url}/prpc/{name}").status_code for name in ("GetMeta", "GetTempCaCert")}
        keys = {name: client.get(f"{tls_url}/prpc/{name}").json()["rule"] for name in ("GetAppKey", "GetKmsKey")}

    assert statuses == {"GetMeta": 200, "GetTempCaCert": 200}
    assert keys == {"GetAppKey": "APPRAISAL", "GetKmsKey": "APPRAISAL"}
