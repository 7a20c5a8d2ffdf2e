"""What is fuzzed: every parser of bytes that a stranger may send, by name.

A target reads its input and returns, or raises one of the project's errors; anything else is a finding. Where there is
a serialiser, what was read must survive writing and reading again. Nothing here imports the simulator: a fuzzing
process holds the parsers and little else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha384
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.app_info import parse_app_info, serialise_app_info
from dstack.attestation.certificates import parse_chain, parse_crl
from dstack.attestation.collateral import parse_collateral, serialise_collateral
from dstack.attestation.envelope import open_envelope
from dstack.attestation.evidence import parse_evidence, serialise_evidence
from dstack.attestation.evidence_v1 import parse_evidence_v1, serialise_evidence_v1
from dstack.attestation.pck import SGX_EXTENSION, parse_pck_extension
from dstack.attestation.pcs_answers import TCB_INFO, parse_crl_answer, parse_issuer_chain, parse_signed_document
from dstack.attestation.policy_document import parse_policy
from dstack.attestation.quote import parse_quote
from dstack.attestation.ratls import evidence_from_certificate
from dstack.attestation.reference import parse_reference
from dstack.attestation.signing_request import verify_signing_request
from dstack.attestation.tcb import parse_qe_identity, parse_tcb_info
from dstack.chain.action_data import parse_action_data
from dstack.chain.operator import Kind
from dstack.chain.signing_file import parse_signing_file, serialise_signing_file
from dstack.errors import DstackError, EvidenceMalformedError, SignatureUntrustedError
from dstack.guest.host_shared import parse_instance_info, parse_sys_config
from dstack.keys.environment import allowed_variables, parse_environment, serialise_env_file, serialise_environment
from dstack.measurement.acpi import derive_acpi_blobs
from dstack.measurement.acpi_store import parse_store_index, serialise_store_index
from dstack.measurement.authenticode import authenticode_sha384
from dstack.measurement.ccel import parse_ccel
from dstack.measurement.compose import parse_app_compose
from dstack.measurement.docker_compose import parse_docker_compose
from dstack.measurement.document import parse_measurement_document, serialise_measurement_document
from dstack.measurement.event_log import parse_event_log, replay_event_log, serialise_event_log
from dstack.measurement.image import parse_checksum_file, parse_image_metadata
from dstack.measurement.kernel import kernel_digest
from dstack.measurement.mr_config_id import parse_config_document, serialise_config_document
from dstack.measurement.mrtd import mrtd
from dstack.measurement.result_json import parse_measurement
from dstack.measurement.td_hob import parse_hob_witness, serialise_hob_witness, td_hob
from dstack.measurement.tdvf import parse_firmware
from dstack.measurement.vm_config import parse_vm_config, serialise_vm_config
from dstack.wire import guest, key_provider, kms
from dstack.wire.message import from_json, from_protobuf, from_query, to_json, to_protobuf
from dstack.wire.prpc import read_error_json, read_error_protobuf
from replicator.answers import parse_answer, serialise_answer
from replicator.custody import parse_receipt
from replicator.documents import compact, parse_request, serialise_request

Target = Callable[[bytes], object]

GIB = 1 << 30
LONGEST_INPUT = 16 * 1024
_LONGEST_ERROR = 2000
_KEY = ec.derive_private_key(7, ec.SECP256R1())
_BORN = datetime(2027, 1, 1, tzinfo=UTC)
# The first byte of an input selects the message that the rest is read as.
MESSAGES: Final = (
    kms.GetAppKeyRequest,
    kms.KmsKeyResponse,
    kms.SignCertRequest,
    kms.PublicKeyResponse,
    kms.GetMetaResponse,
    kms.OnboardRequest,
    guest.GetTlsKeyRequest,
    guest.GetQuoteResponse,
    guest.InfoResponse,
    guest.VerifyRequest,
)


def attempt(target: Target, data: bytes) -> None:
    """Run *target* once; returns when it returned, or refused in a bounded sentence.

    Raises:
        AssertionError: An error text is too long, or what was read did not survive being written.
    """
    sentence = ""
    try:
        target(data)
    except DstackError as exc:
        sentence = str(exc)
    assert len(sentence) <= _LONGEST_ERROR, f"an error text of {len(sentence)} characters"


def _again(parse: Callable[[Any], Any], serialise: Callable[[Any], Any]) -> Target:
    """Read, write, read: both readings are equal."""

    def target(data: bytes) -> None:
        value = parse(data)
        assert parse(serialise(value)) == value, "what was read did not survive being written"

    return target


def _text(data: bytes) -> str:
    """Any text, lone surrogates included, as a library may hand it over."""
    return data.decode(errors="surrogateescape")


def _evidence(data: bytes) -> None:
    evidence = parse_evidence(data)
    try:
        written = serialise_evidence(evidence)
    except EvidenceMalformedError:
        return
    assert parse_evidence(written).runtime_events == evidence.runtime_events


def _event_log(data: bytes) -> None:
    events = parse_event_log(data)
    assert replay_event_log(parse_event_log(serialise_event_log(events))) == replay_event_log(events)


def _pck_extension(data: bytes) -> None:
    parse_pck_extension(certificate_with({SGX_EXTENSION.dotted_string: data}))


def certificate_with(extensions: Mapping[str, bytes]) -> x509.Certificate:
    """A self-signed certificate that carries *extensions*, contents by OID."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fuzz")])
    builder = x509.CertificateBuilder(name, name, _KEY.public_key(), 1, _BORN, _BORN + timedelta(days=1))
    for oid, content in extensions.items():
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), content)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(_KEY, hashes.SHA256(), ecdsa_deterministic=True)


def _firmware(data: bytes) -> None:
    firmware = parse_firmware(data)
    for two_pass in (False, True):
        mrtd(firmware, two_pass=two_pass)
    td_hob(firmware.witness, 2 * GIB)
    sha384(firmware.cfv)


def _kernel(data: bytes) -> None:
    for initrd_size, memory_size in ((0, 2 * GIB), (1 << 20, 4 * GIB)):
        kernel_digest(data, initrd_size=initrd_size, memory_size=memory_size)


def _signing_request(data: bytes) -> None:
    """The first byte of an input selects the version; the signature is judged when all is read, and is none."""
    with suppress(SignatureUntrustedError):
        verify_signing_request(data[0] % 3 if data else 2, data[1:], b"")


def _pcs_answer(data: bytes) -> None:
    text, _ = parse_signed_document(data, TCB_INFO)
    assert text.encode() in data


def _action_data(data: bytes) -> None:
    """The first byte of an input selects the kind of action."""
    kinds = tuple(Kind)
    parse_action_data(kinds[data[0] % len(kinds)] if data else kinds[0], data[1:])


def _selected(data: bytes) -> tuple[type[Any], bytes]:
    return MESSAGES[data[0] % len(MESSAGES)] if data else MESSAGES[0], data[1:]


def _prpc_json(data: bytes) -> None:
    message, body = _selected(data)
    _again(lambda raw: from_json(message, raw), to_json)(body)
    read_error_json(body)


def _prpc_protobuf(data: bytes) -> None:
    message, body = _selected(data)
    _again(lambda raw: from_protobuf(message, raw), to_protobuf)(body)
    read_error_protobuf(body)


def _prpc_query(data: bytes) -> None:
    message, body = _selected(data)
    from_query(message, _text(body))


def _environment(data: bytes) -> None:
    _again(parse_environment, serialise_environment)(data)
    variables = parse_environment(data)
    serialise_env_file(allowed_variables(variables, {each.key for each in variables}))


TARGETS: Final[dict[str, Target]] = {
    "quote": parse_quote,
    "evidence": _evidence,
    "evidence_v1": _again(parse_evidence_v1, serialise_evidence_v1),
    "envelope": open_envelope,
    "event_log": _event_log,
    "pck_extension": _pck_extension,
    "ratls_certificate": evidence_from_certificate,
    "pck_chain": lambda data: parse_chain(data, what="PCK chain"),
    "crl": lambda data: parse_crl(data, what="CRL"),
    "tcb_info": lambda data: parse_tcb_info(_text(data)),
    "qe_identity": lambda data: parse_qe_identity(_text(data)),
    "collateral": _again(parse_collateral, serialise_collateral),
    "app_compose": parse_app_compose,
    "docker_compose": parse_docker_compose,
    "vm_config": lambda data: _again(parse_vm_config, serialise_vm_config)(_text(data)),
    "measurement_document": _again(parse_measurement_document, serialise_measurement_document),
    "firmware": _firmware,
    "kernel": _kernel,
    "pe": authenticode_sha384,
    "acpi_tables": derive_acpi_blobs,
    "ccel": parse_ccel,
    "image_metadata": parse_image_metadata,
    "config_document": _again(parse_config_document, serialise_config_document),
    "signing_request": _signing_request,
    "acpi_store_index": _again(parse_store_index, serialise_store_index),
    "measurement_result": parse_measurement,
    "app_info": _again(parse_app_info, serialise_app_info),
    "pcs_answer": _pcs_answer,
    "crl_wrapper": parse_crl_answer,
    "issuer_chain": lambda data: parse_issuer_chain(data.decode("latin-1")),
    "hob_witness": _again(parse_hob_witness, serialise_hob_witness),
    "checksum_file": parse_checksum_file,
    "policy": parse_policy,
    "reference": parse_reference,
    "sys_config": parse_sys_config,
    "instance_info": parse_instance_info,
    "action_data": _action_data,
    "signing_file": _again(parse_signing_file, serialise_signing_file),
    "prpc_json": _prpc_json,
    "prpc_protobuf": _prpc_protobuf,
    "prpc_query": _prpc_query,
    "environment": _environment,
    "key_request": _again(key_provider.parse_request, key_provider.serialise_request),
    "key_answer": _again(key_provider.parse_answer, key_provider.serialise_answer),
    "handover_request": _again(parse_request, lambda request: serialise_request(request).encode()),
    "handover_receipt": _again(parse_receipt, lambda receipt: compact(receipt.members()).encode()),
    "handover_answer": _again(parse_answer, lambda answer: serialise_answer(answer).encode()),
}
