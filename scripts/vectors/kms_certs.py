"""The kinds of the folder `kms` about certificates: built anew from keys and names, and signing requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from dstack.attestation.app_info import AppInfo, parse_app_info, serialise_app_info
from dstack.attestation.ratls import evidence_from_certificate
from dstack.attestation.report_data import ratls_report_data
from dstack.attestation.signing_request import SigningRequest, verify_signing_request
from dstack.errors import AppraisalError, InputError, RefusedError
from dstack.keys import certs
from dstack.keys.app_certs import CertificateWishes, build_app_leaf
from dstack.keys.pem import load_certificate, load_private_key
from dstack.keys.x509_form import VALIDITY
from dstack.measurement.event_log import serialise_event_log
from dstack.values import AppId
from vectors.cases import WHOLE_FILE
from vectors.compare import Computation, Computed, Part, Sections

_bytes = bytes.fromhex

# What a builder is told of a sample, because nothing else says it: all of it is the caller's choice.
_END, _NAMES, _SIGNATURE = "not_after", "names", "signature"


def _sample(path: str) -> Part:
    """A signature is random, time and names are nobody's: these come from the sample, and the rest is built."""
    return Part(path, lambda pem: _chosen(load_certificate(pem)))


def _chosen(sample: x509.Certificate) -> dict[str, Any]:
    return {_END: sample.not_valid_after_utc, _NAMES: _names(sample), _SIGNATURE: sample.signature}


def _evidence(path: str) -> Part:
    """The evidence in a sample."""
    return Part(path, lambda pem: _payload(pem, certs.OID_ATTESTATION))


def _wishes(path: str) -> Part:
    """What the requester of a sample wished for."""
    return Part(path, lambda pem: _wishes_of(load_certificate(pem)))


def _payload(pem: str, oid: str) -> bytes | None:
    return certs.certificate_payload(load_certificate(pem), oid)


def _names(sample: x509.Certificate) -> tuple[str, ...]:
    """Its alternative names; none where it lacks them."""
    found = _extension(sample, x509.SubjectAlternativeName)
    return () if found is None else tuple(str(name.value) for name in found)


def _extension(sample: x509.Certificate, kind: type[Any]) -> Any:
    try:
        return sample.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _text(sample: x509.Certificate, oid: x509.ObjectIdentifier) -> str | None:
    return next((str(each.value) for each in sample.subject.get_attributes_for_oid(oid)), None)


def _wishes_of(sample: x509.Certificate) -> CertificateWishes:
    purposes = _extension(sample, x509.ExtendedKeyUsage) or ()
    return CertificateWishes(
        org_name=_text(sample, x509.NameOID.ORGANIZATION_NAME),
        subject=_text(sample, x509.NameOID.COMMON_NAME) or "",
        subject_alt_names=_names(sample),
        usage_server_auth=x509.ExtendedKeyUsageOID.SERVER_AUTH in purposes,
        usage_client_auth=x509.ExtendedKeyUsageOID.CLIENT_AUTH in purposes,
        ext_quote=certs.certificate_payload(sample, certs.OID_ATTESTATION) is not None,
        ext_app_info=certs.certificate_payload(sample, certs.OID_APP_INFO) is not None,
        not_before=int(sample.not_valid_before_utc.timestamp()),
        not_after=int(sample.not_valid_after_utc.timestamp()),
    )


def _root_ca(key: str, sample: dict[str, Any]) -> Computed:
    return {"root_ca": _with_signature(certs.build_root_ca(load_private_key(key), at=_issued(sample)), sample)}


def _temp_ca(key: str, sample: dict[str, Any]) -> Computed:
    return {"tmp_ca": _with_signature(certs.build_temp_ca(load_private_key(key), at=_issued(sample)), sample)}


def _rpc(name: str, keys: Mapping[str, str], sample: dict[str, Any], extensions: list[certs.Extension]) -> Computed:
    at = _issued(sample)
    root_key = load_private_key(keys["root_ca"])
    built = certs.build_rpc_cert(
        load_private_key(keys["rpc"]),
        certs.build_root_ca(root_key, at=at),
        root_key,
        sample[_NAMES][0],
        extensions,
        at=at,
    )
    return {name: _with_signature(built, sample)}


def _rpc_unified(keys: Mapping[str, str], sample: dict[str, Any], evidence: bytes) -> Computed:
    return _rpc("rpc_unified_ext", keys, sample, [(certs.OID_ATTESTATION, evidence)])


def _rpc_classic(keys: Mapping[str, str], sample: dict[str, Any], quote: bytes, log: bytes) -> Computed:
    return _rpc("rpc_classic_exts", keys, sample, [(certs.OID_TDX_QUOTE, quote), (certs.OID_EVENT_LOG, log)])


def _client(keys: Mapping[str, str], sample: dict[str, Any], evidence: bytes) -> Computed:
    at = _issued(sample)
    temp_key = load_private_key(keys["tmp_ca"])
    built = certs.build_client_cert(
        load_private_key(keys["ra_client"]),
        certs.build_temp_ca(temp_key, at=at),
        temp_key,
        [(certs.OID_ATTESTATION, evidence)],
        at=at,
    )
    return {"ra_client": _with_signature(built, sample)}


def _app_ca(keys: Mapping[str, str], app_info: list[str], sample: dict[str, Any]) -> Computed:
    return {"app_ca": _with_signature(_build_app_ca(keys, app_info, _issued(sample)), sample)}


def _build_app_ca(keys: Mapping[str, str], app_info: list[str], at: datetime) -> x509.Certificate:
    root_key = load_private_key(keys["root_ca"])
    root = certs.build_root_ca(root_key, at=at)
    return certs.build_app_ca(load_private_key(keys["app_ca"]), root, root_key, AppId(_bytes(app_info[0])), at=at)


def _leaf(
    keys: Mapping[str, str],
    app_info: list[str],
    sample: dict[str, Any],
    wishes: CertificateWishes,
    evidence: bytes | None,
) -> Computed:
    at = _issued(sample)
    built = build_app_leaf(
        load_private_key(keys["leaf"]).public_key(),
        _build_app_ca(keys, app_info, at),
        load_private_key(keys["app_ca"]),
        AppId(_bytes(app_info[0])),
        wishes,
        at=at,
        app_info=serialise_app_info(AppInfo(*map(_bytes, app_info))) if wishes.ext_app_info else None,
        attestation=evidence,
    )
    return {"leaf": _with_signature(built, sample)}


def _chain(leaf: str, app_ca: str, root_ca: str) -> Computed:
    """The chain of an answer: each certificate is signed by the next, the last by itself."""
    loaded = [load_certificate(pem) for pem in (leaf, app_ca, root_ca)]
    for certificate, issuer in zip(loaded, (*loaded[1:], loaded[-1]), strict=True):
        certificate.verify_directly_issued_by(issuer)
    return {"sign_cert_chain": [leaf, app_ca, root_ca]}


def _compressed_log(compressed: str, plain: str) -> Computed:
    """A certificate with a compressed log carries the same evidence as one with a plain log."""
    both = [evidence_from_certificate(load_certificate(pem).public_bytes(Encoding.DER)) for pem in (compressed, plain)]
    if both[0] is None or both[0] != both[1]:
        raise AppraisalError("the two certificates do not carry the same evidence")
    return {"classic_gzip_event_log_ext": (_payload(compressed, certs.OID_EVENT_LOG) or b"").hex()}


def _app_info(values: list[str]) -> Computed:
    names = list(AppInfo.__slots__[: len(values)])
    return {"msgpack_8_fields": serialise_app_info(AppInfo(*map(_bytes, values))).hex(), "fields": names}


def _app_info_read(raw: str) -> Computed:
    info = parse_app_info(_bytes(raw))
    return {"values": [getattr(info, name).hex() for name in AppInfo.__slots__]}


def _issued(sample: dict[str, Any]) -> datetime:
    end: datetime = sample[_END]
    return end - VALIDITY


def _with_signature(built: x509.Certificate, sample: dict[str, Any]) -> str:
    """What was built with the sample's signature in place of ours; it holds only if all that is signed is the same."""
    signature: bytes = sample[_SIGNATURE]
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    der = _der(0x30, built.tbs_certificate_bytes + algorithm + _der(0x03, b"\0" + signature))
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _request(api_version: int, csr: str, signature: str) -> Computed:
    """Whether it is taken; what it wishes, by the members that its API version has."""
    try:
        request = _bound_request(api_version, csr, signature)
    except (InputError, RefusedError):
        return {"valid": False}
    log = {"event_log_json": serialise_event_log(request.evidence.event_log)} if api_version == 1 else {}
    return {
        "valid": True,
        "config": _config(request.wishes, api_version),
        "/pubkey_spki_der": request.spki.hex(),
        **log,
    }


def _bound_request(api_version: int, csr: str, signature: str) -> SigningRequest:
    request = verify_signing_request(api_version, _bytes(csr), _bytes(signature))
    if request.evidence.report_data != ratls_report_data(request.spki):
        raise AppraisalError("signing request: its evidence is not bound to its key")
    return request


def _config(wishes: CertificateWishes, api_version: int) -> dict[str, object]:
    members = asdict(wishes) | {"subject_alt_names": list(wishes.subject_alt_names)}
    newer = ("ext_app_info", "not_before", "not_after") if api_version == 1 else ()
    return {name: value for name, value in members.items() if name not in newer}


KINDS: Mapping[str, Sections] = {
    "kms/certs": {
        WHOLE_FILE: (
            Computation(("keys.root_ca",), _root_ca, optional=(_sample("root_ca"),), needs=("root_ca",)),
            Computation(("keys.tmp_ca",), _temp_ca, optional=(_sample("tmp_ca"),), needs=("tmp_ca",)),
            Computation(
                ("keys",),
                _rpc_unified,
                optional=(_sample("rpc_unified_ext"), _evidence("rpc_unified_ext")),
                needs=("rpc_unified_ext",),
            ),
            Computation(
                ("keys",),
                _rpc_classic,
                optional=(
                    _sample("rpc_classic_exts"),
                    Part("rpc_classic_exts", lambda pem: _payload(pem, certs.OID_TDX_QUOTE)),
                    Part("rpc_classic_exts", lambda pem: _payload(pem, certs.OID_EVENT_LOG)),
                ),
                needs=("rpc_classic_exts",),
            ),
            Computation(
                ("keys",), _client, optional=(_sample("ra_client"), _evidence("ra_client")), needs=("ra_client",)
            ),
            Computation(("keys", "app_info.values"), _app_ca, optional=(_sample("app_ca"),), needs=("app_ca",)),
            Computation(
                ("keys", "app_info.values"),
                _leaf,
                optional=(_sample("leaf"), _wishes("leaf"), _evidence("leaf")),
                needs=("leaf",),
            ),
            Computation(("leaf", "app_ca", "root_ca"), _chain),
            Computation(("rpc_classic_gzip", "rpc_classic_exts"), _compressed_log),
        ),
        "app_info": (
            Computation(("values",), _app_info),
            Computation(("msgpack_8_fields",), _app_info_read),
            Computation(("msgpack_9_fields_head",), _app_info_read),
        ),
    },
    "kms/csr": {"cases": (Computation(("api_version", "csr", "signature"), _request),)},
}
