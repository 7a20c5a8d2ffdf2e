"""Where fuzzing starts: what our own simulator makes, and the golden data of this project."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cryptography.hazmat.primitives.serialization import Encoding

from dstack.attestation.app_info import AppInfo, serialise_app_info
from dstack.attestation.collateral import Collateral, parse_collateral, serialise_collateral
from dstack.attestation.evidence import Evidence, serialise_evidence
from dstack.attestation.evidence_v1 import serialise_evidence_v1
from dstack.attestation.pck import SGX_EXTENSION
from dstack.attestation.signing_request import serialise_signing_request
from dstack.chain.action_data import AppVersion, SunsetChange
from dstack.chain.client import checked_address
from dstack.chain.operator import Kind
from dstack.chain.safe import SafeTransaction
from dstack.chain.signing_file import SigningFile, serialise_signing_file
from dstack.guest.host_shared import serialise_instance_info
from dstack.keys.app_certs import CertificateWishes
from dstack.keys.certs import OID_ATTESTATION, OID_EVENT_LOG, OID_TDX_QUOTE
from dstack.keys.der import octet_string
from dstack.keys.environment import Variable, serialise_environment
from dstack.keys.pem import spki_der
from dstack.measurement.acpi_store import AcpiShape, StoredTables, serialise_store_index
from dstack.measurement.compose import app_compose_from_docker_compose
from dstack.measurement.document import DOCUMENT_NAME
from dstack.measurement.event_log import RUNTIME_EVENT_TYPE, RuntimeEvent, logged, serialise_event_log
from dstack.measurement.image import CHECKSUM_FILE_NAME
from dstack.measurement.mr_config_id import ConfigDocument, serialise_config_document
from dstack.measurement.prediction import Input
from dstack.measurement.registers import ZERO_REGISTER
from dstack.measurement.td_hob import serialise_hob_witness
from dstack.measurement.vm_config import serialise_vm_config
from dstack.simulator.os_image import make_image
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, InstanceId, OsImageHash, ReportData
from dstack.wire import key_provider
from dstack.wire.message import to_json, to_protobuf
from replicator import custody, documents
from replicator.answers import Answer, serialise_answer
from tests import image_parts
from tests.fuzz.targets import MESSAGES, certificate_with

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "tests" / "vectors"
AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


@cache
def _pki() -> SimulatedPki:
    return SimulatedPki.generate(AT, seed=b"fuzz")


@cache
def _quote() -> bytes:
    return make_quote(_pki(), registers=TdRegisters(*[ZERO_REGISTER] * 5), report_data=ReportData(bytes(64)))


def _quotes() -> list[bytes]:
    return [_quote(), *(path.read_bytes() for path in sorted(VECTORS.glob("quotes/*/quote.bin")))]


def _collaterals() -> list[Collateral]:
    known = [parse_collateral(path.read_bytes()) for path in sorted(VECTORS.glob("quotes/*/collateral.json"))]
    return [_pki().collateral(), _pki().collateral(revoked=(5, 2**64)), *known]


def _events() -> list[RuntimeEvent]:
    names = ("system-preparing", "app-id", "compose-hash", "instance-id", "boot-mr-done")
    return [RuntimeEvent(name, name.encode()) for name in names]


def _evidence() -> Evidence:
    events = _events()
    return Evidence(_quote(), tuple(map(logged, events)), tuple(events), ReportData(bytes(64)), '{"a":1}')


def _event_logs() -> list[bytes]:
    both = [*map(logged, _events()), logged(RuntimeEvent("user", b"\0\xff", 2))]
    return [b"[]", serialise_event_log(both).encode()]


def _pck_extensions() -> Iterable[bytes]:
    extension = _pki().pck.extensions.get_extension_for_oid(SGX_EXTENSION).value
    yield extension.value


def _ratls_certificates() -> list[bytes]:
    log = octet_string(serialise_event_log(map(logged, _events())).encode())
    unified = certificate_with({OID_ATTESTATION: octet_string(serialise_evidence(_evidence()))})
    classic = certificate_with({OID_TDX_QUOTE: octet_string(_quote()), OID_EVENT_LOG: log})
    return [certificate.public_bytes(Encoding.DER) for certificate in (unified, classic, _pki().pck)]


def _composes() -> list[bytes]:
    return [
        app_compose_from_docker_compose(text, name="fuzz", key_provider="none", no_instance_id=False)
        for text in _docker_composes()
    ]


def _docker_composes() -> list[bytes]:
    return [
        b"services:\n  web:\n    image: nginx@sha256:" + b"a" * 64 + b"\n    ports: ['80:80']\n",
        b"x-base: &base {restart: always}\nservices: {a: {<<: *base, image: 'a:1'}, b: {build: .}}\n",
    ]


def _messages(write: Callable[[object], bytes]) -> list[bytes]:
    """Each message with what its fields hold by default."""
    return [bytes([at]) + write(message()) for at, message in enumerate(MESSAGES)]


def _ccels() -> list[bytes]:
    header = struct.pack("<II20xI", 1, 3, 33) + b"Spec ID Event03\0" + bytes(17)
    records = [struct.pack("<IIIH48sI", imr, 4, 1, 0xC, b"d" * 48, 3) + b"abc" for imr in (1, 2, 3)]
    return [header + b"".join(records) + b"\xff" * 8, header]


def _config_document() -> bytes:
    hashes = (Digest32(bytes(32)), Digest32(b"\1" * 32))
    return serialise_config_document(
        ConfigDocument(
            compose_hash=ComposeHash(b"\1" * 32),
            key_provider="kms",
            key_provider_id=b"\2" * 91,
            app_id=AppId(b"\3" * 20),
            gpu_policy_hash=hashes[0],
            init_script_hashes=hashes,
        )
    )


def _signing_requests() -> Iterable[bytes]:
    spki = spki_der(_pki().root)
    wishes = CertificateWishes("org", "app", ("a.example", "b.example"), True, True, True)
    later = CertificateWishes(None, "app", (), False, True, False, True, 1, 2)
    for each in (wishes, later):
        yield b"\2" + serialise_signing_request(spki, each, serialise_evidence(_evidence()))


def _pcs_answers() -> list[bytes]:
    return [
        f'{{"tcbInfo":{each.tcb_info},"signature":"{each.tcb_info_signature.hex()}"}}'.encode()
        for each in _collaterals()
    ]


def _crl_wrappers() -> list[bytes]:
    der = _pki().collateral().pck_crl
    return [der, der.hex().encode(), b"-----BEGIN X509 CRL-----\n" + b64encode(der) + b"\n-----END X509 CRL-----\n"]


def _measurement_results() -> list[bytes]:
    event = {"imr": 0, "event_type": 1, "digest": "00" * 48, "event": "", "event_payload": "", "label": "CFV"}
    runtime = {**event, "imr": 3, "event_type": RUNTIME_EVENT_TYPE, "event": "app-id", "version": 2}
    events = [{**each, "origin": "image", "depends_on": [Input.FIRMWARE.value]} for each in (event, runtime)]
    return [json.dumps({"registers": {"mrtd": "00" * 48}, "events": events}).encode()]


_POLICY = b"""{"relaxations": [{"accept_status": "SWHardeningNeeded", "until": "2027-06-30T00:00:00Z"},
 {"allow_td_attribute": "PERFMON", "until": "2027-06-30T00:00:00Z"}],
 "min_evaluation_number": 17, "xfam": "0x602e7", "mr_enclaves": []}"""


def _actions() -> Iterable[bytes]:
    image = OsImageHash(b"\3" * 32)
    version = AppVersion(2, ComposeHash(b"\1" * 32), (image,), supersedes=1, sunset=AT)
    for at, kind in enumerate(Kind):
        if kind is Kind.VERSION:
            yield bytes([at]) + version.encode()
        elif kind is Kind.SUNSET:
            yield bytes([at]) + SunsetChange(2, AT).encode()


def _signing_file() -> SigningFile:
    owner, safe, target = (checked_address("0x" + digit * 40, what="address") for digit in "345")
    return SigningFile(SafeTransaction(31337, safe, target, b"\x01\x02", 7), (owner,), 1)


def _request() -> documents.QuotedRequest:
    law = documents.Law(1, documents.Address(b"\4" * 20), documents.Address(b"\5" * 20))
    request = documents.Request(Digest32(bytes(32)), Digest32(bytes(32)), AppId(bytes(20)), law, 2)
    return documents.QuotedRequest(request, b"evidence")


def _answer() -> Answer:
    quoted = _request()
    request, zero = quoted.request, Digest32(bytes(32))
    node = documents.Party(
        ComposeHash(b"\1" * 32), InstanceId(b"\2" * 20), OsImageHash(b"\3" * 32), DeviceId(bytes(32)), "UpToDate"
    )
    genesis = custody.Genesis(request.app_id, request.law, zero, 7, zero, 1, node)
    terms = custody.Terms(
        request=request,
        transcript=quoted.transcript(),
        block_number=42,
        block_hash=zero,
        at=1,
        sender=node,
        receiver=node,
        simulated_root=True,
        fingerprint=genesis.fingerprint,
        size=7,
        genesis=genesis.hash(),
        custody=genesis.hash(),
        depth=0,
    )
    return Answer(b"k" * 80, custody.Receipt(terms, zero), custody.Custody(genesis), b"evidence")


def _envelopes() -> list[bytes]:
    answer = {"quote": _quote().hex(), "event_log": _event_logs()[1].decode(), "report_data": "", "vm_config": ""}
    return [
        _quote(),
        _quote().hex().encode(),
        serialise_evidence(_evidence()),
        serialise_evidence_v1(_evidence()),
        json.dumps(answer).encode(),
        json.dumps({"attestation": serialise_evidence(_evidence()).hex()}).encode(),
        *_ratls_certificates()[:2],
    ]


SEEDS: Final[dict[str, Callable[[], Iterable[bytes]]]] = {
    "quote": _quotes,
    "evidence": lambda: [serialise_evidence(_evidence()), _quote()],
    "evidence_v1": lambda: [serialise_evidence_v1(_evidence())],
    "envelope": _envelopes,
    "event_log": _event_logs,
    "pck_extension": _pck_extensions,
    "ratls_certificate": _ratls_certificates,
    "pck_chain": lambda: [_pki().pck_chain_pem, _pki().pck_chain_pem + b"\0"],
    "crl": lambda: [crl for each in _collaterals() for crl in (each.root_ca_crl, each.pck_crl)],
    "tcb_info": lambda: [each.tcb_info.encode() for each in _collaterals()],
    "qe_identity": lambda: [each.qe_identity.encode() for each in _collaterals()],
    "collateral": lambda: [serialise_collateral(each).encode() for each in _collaterals()],
    "app_compose": _composes,
    "docker_compose": _docker_composes,
    "vm_config": lambda: [serialise_vm_config(make_image().vm_config()).encode()],
    "measurement_document": lambda: [make_image().files[DOCUMENT_NAME]],
    "firmware": lambda: [image_parts.firmware(), (VECTORS / "measurement" / "tdvf-a.bin").read_bytes()],
    "kernel": lambda: [image_parts.Pe().build(), (VECTORS / "measurement" / "kernel-a.bin").read_bytes()],
    "pe": lambda: [image_parts.Pe().build(), image_parts.Pe(magic=0x10B, sections=((0x600, 0x2A00),)).build()],
    "acpi_tables": lambda: [image_parts.acpi_tables()],
    "ccel": _ccels,
    "acpi_store_index": lambda: [
        serialise_store_index({AcpiShape.of(make_image().vm_config()): StoredTables("a.bin", "reviewed")})
    ],
    "measurement_result": _measurement_results,
    "image_metadata": lambda: [make_image().files["metadata.json"]],
    "config_document": lambda: [_config_document()],
    "signing_request": _signing_requests,
    "app_info": lambda: [serialise_app_info(AppInfo(*[bytes(size) for size in (20, 32, 20, 32, 32, 32, 32, 8)]))],
    "pcs_answer": _pcs_answers,
    "crl_wrapper": _crl_wrappers,
    "issuer_chain": lambda: [quote(_pki().collateral().tcb_info_issuer_chain).encode()],
    "hob_witness": lambda: [serialise_hob_witness(make_image().document.hob)],
    "checksum_file": lambda: [make_image().files[CHECKSUM_FILE_NAME]],
    "policy": lambda: [_POLICY],
    "reference": lambda: [b'{"mrtd": "' + b"00" * 48 + b'"}', *_measurement_results()],
    "sys_config": lambda: [b'{"kms_urls": ["https://kms.example"], "vm_config": "{}", "pccs_url": ""}'],
    "instance_info": lambda: [serialise_instance_info(bytes(20), InstanceId(bytes(20)), AppId(bytes(20))).encode()],
    "action_data": _actions,
    "signing_file": lambda: [serialise_signing_file(_signing_file())],
    "prpc_json": lambda: _messages(lambda message: to_json(message).encode()),
    "prpc_protobuf": lambda: _messages(to_protobuf),
    "prpc_query": lambda: [b"\0api_version=1&vm_config=%7b%7d", b"\6subject=a&alt_names[0]=b&alt_names[1]=c"],
    "environment": lambda: [serialise_environment([Variable("A", "1"), Variable("B", "ü")])],
    "key_request": lambda: [key_provider.serialise_request(key_provider.SealingKeyRequest(b"\0\1\xff"))],
    "key_answer": lambda: [key_provider.serialise_answer(key_provider.SealingKeyAnswer(b"\1", b"\3\4"))],
    "handover_request": lambda: [documents.serialise_request(_request()).encode()],
    "handover_receipt": lambda: [documents.compact(_answer().receipt.members()).encode()],
    "handover_answer": lambda: [serialise_answer(_answer()).encode()],
}


def write_seeds(name: str, folder: Path) -> int:
    """Write the seeds of target *name* into *folder*; returns the bytes of the longest."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = list(SEEDS[name]())
    for at, seed in enumerate(seeds):
        (folder / f"seed-{at}").write_bytes(seed)
    return max(map(len, seeds))
