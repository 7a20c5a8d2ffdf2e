"""The kinds of the folder `kms`: derived keys, signatures, report data, encrypted environments, prpc messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dstack.attestation.report_data import bootstrap_message, bootstrap_report_data, report_data
from dstack.errors import MessageMalformedError
from dstack.keys import derivation, environment, sealing, signature_chain
from dstack.keys.data_signatures import Algorithm, parse_algorithm, public_key_of, sign_data
from dstack.keys.pem import spki_der
from dstack.keys.scalars import k256_public_key, p256_from_scalar
from dstack.transport.server import failure
from dstack.values import AppId, InstanceId
from dstack.wire import kms, prpc
from dstack.wire.fields import specs
from dstack.wire.message import from_json, from_protobuf, from_query, to_json, to_protobuf
from vectors.cases import WHOLE_FILE
from vectors.compare import Computation, Computed, Part, Sections

_bytes = bytes.fromhex

_SERVICES = ("KMS.", "Onboard.", "Admin.")


@dataclass(frozen=True, slots=True)
class _Empty:
    """Of methods without an argument, whose body is ignored, and of those without an answer (kms.md 1.1)."""


_REQUESTS: Mapping[str, type[Any]] = {
    "GetAppKey": kms.GetAppKeyRequest,
    "GetKmsKey": kms.GetKmsKeyRequest,
    "GetAppEnvEncryptPubKey": kms.AppIdRequest,
    "SignCert": kms.SignCertRequest,
    "Bootstrap": kms.BootstrapRequest,
    "Onboard": kms.OnboardRequest,
    # Up to 0.5.11 it was a method of the KMS service, with another message.
    "KMS.ClearImageCache": kms.LegacyClearImageCacheRequest,
    "ClearImageCache": kms.ClearImageCacheRequest,
    **dict.fromkeys(("GetMeta", "GetTempCaCert", "GetAttestationInfo", "Finish"), _Empty),
}
_RESPONSES: Mapping[str, type[Any]] = {
    "GetAppKey": kms.AppKeyResponse,
    "GetKmsKey": kms.KmsKeyResponse,
    "GetAppEnvEncryptPubKey": kms.PublicKeyResponse,
    "GetMeta": kms.GetMetaResponse,
    "GetTempCaCert": kms.GetTempCaCertResponse,
    "SignCert": kms.SignCertResponse,
    "Bootstrap": kms.BootstrapResponse,
    "Onboard": kms.OnboardResponse,
    "GetAttestationInfo": kms.AttestationInfoResponse,
    **dict.fromkeys(("ClearImageCache", "Finish"), _Empty),
}


def _kdf_ca(scalar: str) -> Computed:
    return {
        "root_ca_pkcs8_der": derivation.p256_pkcs8(_bytes(scalar)).hex(),
        "root_ca_spki_der": spki_der(p256_from_scalar(_bytes(scalar))).hex(),
        "hkdf_prk_root_ca": derivation.kdf_extract(_bytes(scalar)).hex(),
    }


def _kdf_k256(scalar: str) -> Computed:
    return {
        "root_k256_pubkey_compressed": k256_public_key(_bytes(scalar)).hex(),
        "hkdf_prk_root_k256": derivation.kdf_extract(_bytes(scalar)).hex(),
    }


def _disk(root_ca: str, app_id: str, instance_id: str) -> Computed:
    context = derivation.disk_context(AppId(_bytes(app_id)), _instance(instance_id))
    return _dh_secret("disk", root_ca, context, "disk_crypt_key")


def _env(root_ca: str, app_id: str) -> Computed:
    secret = derivation.derive_dh_secret(_bytes(root_ca), derivation.env_context(AppId(_bytes(app_id))))
    return {
        **_dh_secret("env", root_ca, derivation.env_context(AppId(_bytes(app_id))), "env_crypt_key"),
        "env.x25519_public": derivation.env_public_key(secret).hex(),
    }


def _dh_secret(name: str, root_ca: str, context: derivation.Context, secret_name: str) -> Computed:
    child = derivation.derive_p256(_bytes(root_ca), context)
    return {
        f"{name}.hkdf_info": b"".join(context).hex(),
        f"{name}.hkdf_okm": child.hex(),
        f"{name}.pkcs8_der": derivation.p256_pkcs8(child).hex(),
        f"{name}.{secret_name}": derivation.derive_dh_secret(_bytes(root_ca), context).hex(),
    }


def _app_ca(root_ca: str, app_id: str) -> Computed:
    context = derivation.app_ca_context(AppId(_bytes(app_id)))
    scalar = derivation.derive_p256(_bytes(root_ca), context)
    return {
        "app_ca.hkdf_info": b"".join(context).hex(),
        "app_ca.private_scalar": scalar.hex(),
        "app_ca.spki_der": spki_der(p256_from_scalar(scalar)).hex(),
    }


def _app_key(root_k256: str, app_id: str) -> Computed:
    context = derivation.app_key_context(AppId(_bytes(app_id)))
    key = derivation.kdf(_bytes(root_k256), context)
    message = signature_chain.app_key_message(AppId(_bytes(app_id)), k256_public_key(key))
    signature = signature_chain.sign_app_key(_bytes(root_k256), AppId(_bytes(app_id)), k256_public_key(key))
    return {
        "k256.hkdf_info": b"".join(context).hex(),
        "k256.k256_key": key.hex(),
        "k256.k256_pubkey_compressed": k256_public_key(key).hex(),
        "k256.signed_message": message.hex(),
        "k256.digest_keccak256": signature_chain.keccak256(message).hex(),
        "k256.k256_signature": signature.hex(),
    }


def _released(root_ca: str, root_k256: str, app_id: str, instance_id: str) -> Computed:
    """The same keys once more, as a KMS releases them."""
    roots = derivation.RootKeys(_bytes(root_ca), _bytes(root_k256))
    keys = derivation.derive_app_keys(roots, AppId(_bytes(app_id)), _instance(instance_id))
    return {
        "disk.disk_crypt_key": keys.disk_crypt_key.hex(),
        "env.env_crypt_key": keys.env_crypt_key.hex(),
        "app_ca.private_scalar": derivation.derive_app_ca(roots, AppId(_bytes(app_id))).hex(),
        "k256.k256_key": keys.k256_key.hex(),
        "k256.k256_signature": keys.k256_signature.hex(),
    }


def _instance(instance_id: str) -> InstanceId | None:
    return InstanceId(_bytes(instance_id)) if instance_id else None


def _env_pubkey(root_k256: str, app_id: str, public_key: str, timestamp: int) -> Computed:
    root, app, key = _bytes(root_k256), AppId(_bytes(app_id)), _bytes(public_key)
    legacy = signature_chain.sign_env_public_key(root, app, key, None)
    stamped = signature_chain.sign_env_public_key(root, app, key, timestamp)
    response = kms.PublicKeyResponse(key, legacy, timestamp, stamped)
    return {
        "message_legacy": signature_chain.env_public_key_message(app, key, None).hex(),
        "message_v1": signature_chain.env_public_key_message(app, key, timestamp).hex(),
        "signature": legacy.hex(),
        "signature_v1": stamped.hex(),
        "response_json": json.loads(to_json(response)),
    }


def _env_signer_legacy(app_id: str, public_key: str, signature: str) -> Computed:
    message = signature_chain.env_public_key_message(AppId(_bytes(app_id)), _bytes(public_key), None)
    return {"signer": "0x" + signature_chain.recover(message, _bytes(signature)).hex()}


def _env_signer(app_id: str, public_key: str, timestamp: int, signature: str) -> Computed:
    message = signature_chain.env_public_key_message(AppId(_bytes(app_id)), _bytes(public_key), timestamp)
    return {"signer": "0x" + signature_chain.recover(message, _bytes(signature)).hex()}


def _chain_root(root_k256: str, app_id: str) -> Computed:
    key = derivation.kdf(_bytes(root_k256), derivation.app_key_context(AppId(_bytes(app_id))))
    return {
        "root_pubkey": k256_public_key(_bytes(root_k256)).hex(),
        "app_k256_key": key.hex(),
        "sig_app": signature_chain.sign_app_key(_bytes(root_k256), AppId(_bytes(app_id)), k256_public_key(key)).hex(),
    }


def _purpose_key(app_key: str, algorithm: str, path: str, purpose: str) -> Computed:
    key = derivation.derive_purpose_key(_bytes(app_key), path)
    public_key = public_key_of(parse_algorithm(algorithm), key)
    return {
        "derived_key": key.hex(),
        "derived_pubkey": public_key.hex(),
        "purpose_message": signature_chain.purpose_message(purpose, public_key).decode(),
        "sig_purpose": signature_chain.sign_purpose_key(_bytes(app_key), purpose, public_key).hex(),
        "app_pubkey_recovered": k256_public_key(_bytes(app_key)).hex(),
    }


def _verified_chain(root: str, app_id: str, purpose: str, key: str, sig_purpose: str, sig_app: str) -> Computed:
    chain = (_bytes(sig_purpose), _bytes(sig_app))
    app_key = signature_chain.verify_signature_chain(
        _bytes(root), AppId(_bytes(app_id)), purpose=purpose, public_key=_bytes(key), chain=chain
    )
    return {"app_pubkey_recovered": app_key.hex()}


def _data_signature(algorithm: str, key: str, data: str) -> Computed:
    return {"data_signature": sign_data(parse_algorithm(algorithm), _bytes(key), _bytes(data)).hex()}


def _prehashed(key: str, digest: str) -> Computed:
    return {"prehashed.signature": sign_data(Algorithm.SECP256K1_PREHASHED, _bytes(key), _bytes(digest)).hex()}


def _tagged_report_data(tag: str, content: str) -> Computed:
    return {"report_data": report_data(tag, _bytes(content)).hex()}


def _abc_report_data(hash_name: str) -> Computed:
    return {"value": report_data("app-data", b"abc", hash_name).hex()}


def _bootstrap_report_data(ca_pubkey: str, k256_pubkey: str) -> Computed:
    bound = bootstrap_report_data(_bytes(ca_pubkey), _bytes(k256_pubkey))
    message = bootstrap_message(_bytes(ca_pubkey), _bytes(k256_pubkey))
    return {"message": message.decode(), "keccak256": bound[:32].hex(), "report_data": bound.hex()}


def _environment(style: str, env: list[Mapping[str, str]]) -> Computed:
    """Only the compact form is written by us; the other is read."""
    variables = [environment.Variable(each["key"], each["value"]) for each in env]
    return {"plaintext_hex": environment.serialise_environment(variables).hex()} if style == "compact_utf8" else {}


def _encrypted(public_key: str, ephemeral: str, iv: str, plaintext: str) -> Computed:
    random = {sealing.KEY_SIZE: _bytes(ephemeral), sealing.IV_SIZE: _bytes(iv)}
    blob = sealing.encrypt_env(_bytes(public_key), _bytes(plaintext), random=random.__getitem__)
    return {"encrypted_env_hex": blob.hex()}


def _decrypted(env_key: str, blob: str) -> Computed:
    plaintext = sealing.decrypt_env(_bytes(env_key), _bytes(blob))
    env = [{"key": each.key, "value": each.value} for each in environment.parse_environment(plaintext)]
    return {"plaintext_hex": plaintext.hex(), "env": env}


def _recipient(env_key: str) -> Computed:
    return {"recipient_public": derivation.env_public_key(_bytes(env_key)).hex()}


def _request(method: str) -> type[Any]:
    return _REQUESTS[method] if method in _REQUESTS else _REQUESTS[_bare(method)]


def _response(method: str) -> type[Any]:
    return _RESPONSES[_bare(method)]


def _bare(method: str) -> str:
    for service in _SERVICES:
        method = prpc.trim_method(method, service)
    return method


def _request_from_json(method: str, given: dict[str, object] | None) -> Computed:
    if _request(method) is _Empty:
        return {"request_json": given, "request_protobuf": to_protobuf(_Empty()).hex()}
    request = from_json(_request(method), json.dumps(given))
    read_back = json.loads(to_json(request))
    return {
        "request_json": {name: read_back[name] for name in given or ()},
        "request_protobuf": to_protobuf(request).hex(),
    }


def _request_from_other_json(method: str, given: dict[str, object]) -> Computed:
    return {"request_protobuf": to_protobuf(from_json(_request(method), json.dumps(given))).hex()}


def _request_from_query(method: str, query: str) -> Computed:
    return {"request_protobuf": to_protobuf(from_query(_request(method), query)).hex()}


def _request_from_protobuf(method: str, raw: str) -> Computed:
    return {"request_protobuf": to_protobuf(from_protobuf(_request(method), _bytes(raw))).hex()}


def _request_from_prefix(method: str, raw: str) -> Computed:
    return {"request_protobuf_prefix": to_protobuf(from_protobuf(_request(method), _bytes(raw))).hex()}


def _response_from_json(method: str, given: dict[str, object] | None) -> Computed:
    if given is None and _response(method) is _Empty:
        return _written(_Empty(), None)
    return _written(from_json(_response(method), json.dumps(given)), list(given or ()))


def _response_from_protobuf(method: str, raw: str, names: list[str] | None) -> Computed:
    return _written(from_protobuf(_response(method), _bytes(raw)), names)


def _written(response: object, names: list[str] | None) -> Computed:
    """In both forms. A field with a former name is written under both, and told under the one that is among *names*."""
    if isinstance(response, _Empty):
        return {"response_json": None, "response_protobuf": to_protobuf(response).hex()}
    written = json.loads(to_json(response))
    for each in specs(type(response)):
        both = {each.name, each.alias} - {None}
        if names is not None and not both.isdisjoint(names):
            written = {name: value for name, value in written.items() if name not in both or name in names}
    return {"response_json": written, "response_protobuf": to_protobuf(response).hex()}


def _error(text: str) -> Computed:
    return {
        "error_json_body": prpc.error_json(text),
        "error_protobuf": prpc.error_protobuf(text).hex(),
        "status": failure(MessageMalformedError(text)).status_code,
    }


def _error_from_json(body: str) -> Computed:
    return {"error_text": prpc.read_error_json(body.encode())}


def _error_from_protobuf(raw: str) -> Computed:
    return {"error_text": prpc.read_error_protobuf(_bytes(raw))}


# Which of a field's two names an answer has is its version's choice.
_NAMES = Part("response_json", lambda answer: None if answer is None else list(answer))

KINDS: Mapping[str, Sections] = {
    "kms/kdf": {
        WHOLE_FILE: (Computation(("root_ca_scalar",), _kdf_ca), Computation(("root_k256",), _kdf_k256)),
        "cases": (
            Computation(("/root_ca_scalar", "app_id", "instance_id"), _disk),
            Computation(("/root_ca_scalar", "app_id"), _env),
            Computation(("/root_ca_scalar", "app_id"), _app_ca),
            Computation(("/root_k256", "app_id"), _app_key),
            Computation(("/root_ca_scalar", "/root_k256", "app_id", "instance_id"), _released),
        ),
    },
    "kms/env_pubkey": {
        "cases": (
            Computation(("/root_k256", "app_id", "public_key", "timestamp"), _env_pubkey),
            Computation(("app_id", "public_key", "signature"), _env_signer_legacy),
            Computation(("app_id", "public_key", "timestamp", "signature_v1"), _env_signer),
        ),
    },
    "kms/signature_chain": {
        "cases": (
            Computation(("/root_k256", "app_id"), _chain_root),
            Computation(("app_k256_key", "algorithm", "path", "purpose"), _purpose_key),
            Computation(
                ("root_pubkey", "app_id", "purpose", "derived_pubkey", "sig_purpose", "sig_app"), _verified_chain
            ),
            Computation(("algorithm", "derived_key", "data"), _data_signature),
            Computation(("derived_key", "prehashed.digest"), _prehashed),
        ),
    },
    "kms/report_data": {
        "ra_tls": (Computation(("tag", "content"), _tagged_report_data),),
        "other_hashes_of_app_data_abc/*": (Computation(("name",), _abc_report_data),),
        "bootstrap": (Computation(("ca_pubkey", "k256_pubkey"), _bootstrap_report_data),),
    },
    "kms/env_encrypt": {
        "cases": (
            Computation(("env_crypt_key",), _recipient),
            Computation(("style", "env"), _environment),
            Computation(("recipient_public", "ephemeral_private", "iv", "plaintext_hex"), _encrypted),
            Computation(("env_crypt_key", "encrypted_env_hex"), _decrypted),
        ),
        "negative": (Computation(("env_crypt_key", "encrypted_env_hex"), _decrypted, refuses=True),),
    },
    "kms/prpc": {
        "cases": (
            Computation(("method", "request_json"), _request_from_json),
            Computation(("method", "request_json_alt"), _request_from_other_json),
            Computation(("method", "request_query"), _request_from_query),
            Computation(("method", "request_protobuf"), _request_from_protobuf),
            Computation(("method", "request_protobuf_prefix"), _request_from_prefix),
            Computation(("method", "response_json"), _response_from_json),
            Computation(("method", "response_protobuf"), _response_from_protobuf, optional=(_NAMES,)),
            Computation(("error_text",), _error),
            Computation(("error_json_body",), _error_from_json),
            Computation(("error_protobuf",), _error_from_protobuf),
        ),
    },
}
