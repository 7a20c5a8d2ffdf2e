"""The kinds of the folder `guest` about single formats: CCEL, MRCONFIGID, launch tokens, SDK hashes, environments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dstack.errors import MessageMalformedError
from dstack.keys.derivation import env_public_key
from dstack.keys.environment import allowed_variables, parse_environment, serialise_env_file
from dstack.keys.sealing import decrypt_env
from dstack.measurement.ccel import parse_ccel
from dstack.measurement.event_log import replay_event_log
from dstack.measurement.identities import launch_token_hash
from dstack.measurement.mr_config_id import (
    mr_config_id_v1,
    mr_config_id_v2,
    mr_config_id_v3,
    parse_config_document,
    serialise_config_document,
)
from dstack.measurement.sdk_form import sdk_compose_hash
from dstack.values import AppId, ComposeHash
from dstack.wire import guest as messages
from dstack.wire.json_form import from_json, to_json
from dstack.wire.prpc import wants_json
from vectors.cases import EVERY_LIST, WHOLE_FILE
from vectors.compare import Computation, Computed, Sections, UnsupportedError

_bytes = bytes.fromhex

_REQUESTS: Mapping[str, type[Any]] = {
    "/GetTlsKey": messages.GetTlsKeyRequest,
    "/GetKey": messages.GetKeyRequest,
    "/GetQuote": messages.GetQuoteRequest,
    "/Attest": messages.GetQuoteRequest,
    "/EmitEvent": messages.EmitEventRequest,
    "/Sign": messages.SignRequest,
    "/Verify": messages.VerifyRequest,
    "/prpc/Tappd.DeriveKey": messages.DeriveKeyRequest,
    "/prpc/Tappd.DeriveK256Key": messages.DeriveK256KeyRequest,
    "/prpc/Tappd.TdxQuote": messages.TdxQuoteRequest,
    "/prpc/Tappd.RawQuote": messages.GetQuoteRequest,
}
_WITHOUT_MEMBERS = ("/Info", "/Version", "/prpc/Tappd.Info", "/prpc/Tappd.Version")


def _ccel(raw: bytes) -> Computed:
    log = parse_ccel(raw)
    events = [
        {
            "imr": event.imr,
            "event_type": event.event_type,
            "digest": event.digest.hex(),
            "event": event.name,
            "event_payload": event.payload.hex(),
        }
        for event in log.events
    ]
    return {
        "bytes_consumed": log.size,
        "spec_id_event": {
            "tcg_pcr_index": log.header_imr,
            "event_type": log.header_type,
            "size": log.header_size,
        },
        "events": events,
        "replayed_rtmr": {str(imr): register.hex() for imr, register in replay_event_log(log.events).items()},
    }


def _bound(version: int, *facts: Any) -> Computed:
    compose_hash, app_id, provider, provider_id, document = facts
    if version == 3:
        raw = document.encode()
        if serialise_config_document(parse_config_document(raw)) != raw:
            raise ValueError("the document is written another way than it was read")
        register = mr_config_id_v3(raw)
        return {"mr_config_id": register.hex(), "snp_host_data": register[1:33].hex()}
    compose = ComposeHash(_bytes(compose_hash))
    if version == 1:
        return {"mr_config_id": mr_config_id_v1(compose).hex()}
    app = AppId(_bytes(app_id))
    return {"mr_config_id": mr_config_id_v2(compose, app, provider, _bytes(provider_id)).hex()}


def _launch_token(token: str) -> Computed:
    return {"launch_token_hash": launch_token_hash(token).hex()}


def _sdk_hashes(app_compose: dict[str, object]) -> Computed:
    return {
        "hash": sdk_compose_hash(app_compose).hex(),
        "hash_normalized": sdk_compose_hash(app_compose, normalize=True).hex(),
    }


def _environment(key: str, ciphertext: str) -> Computed:
    return {
        "plaintext": decrypt_env(_bytes(key), _bytes(ciphertext)).decode(),
        "env_encrypt_pubkey": env_public_key(_bytes(key)).hex(),
    }


def _allowed(key: str, ciphertext: str, names: list[str]) -> Computed:
    environment = allowed_variables(parse_environment(decrypt_env(_bytes(key), _bytes(ciphertext))), names)
    return {"decrypted_env_file": serialise_env_file(environment), "decrypted_env_json": environment}


def _request(path: str, body: dict[str, Any], method: str | None, content_type: str | None) -> Computed:
    """What a client sent, read and written again: each member it named is as it was."""
    if method is not None and not wants_json(method, "", content_type):
        raise MessageMalformedError(f"{path}: its body would be read as protobuf")
    if path in _WITHOUT_MEMBERS:
        return {"body": {}}
    if path not in _REQUESTS:
        raise UnsupportedError(f"{path}: no such method here")
    read = json.loads(to_json(from_json(_REQUESTS[path], json.dumps(body))))
    return {"body": {name: read[name] for name in body}}


# A file about one case is that case; one about more has them in a list.
_CCEL = (Computation(("@file",), _ccel),)
_ENVIRONMENT = (
    Computation(("env_crypt_key", "ciphertext"), _environment),
    Computation(("env_crypt_key", "ciphertext", "allowed_envs"), _allowed),
)
_REQUEST = (Computation(("path", "body"), _request, optional=("method", "content_type")),)

KINDS: Mapping[str, Sections] = {
    "guest/ccel": {WHOLE_FILE: _CCEL, "cases": _CCEL},
    "guest/mr_config_id": {
        "cases": (
            Computation(
                ("version",),
                _bound,
                optional=("compose_hash", "app_id", "key_provider", "key_provider_id", "document"),
            ),
        ),
    },
    "guest/launch_token": {"cases": (Computation(("token",), _launch_token),)},
    "guest/sdk_compose_hash": {"cases": (Computation(("app_compose",), _sdk_hashes),)},
    "guest/encrypted_env": {WHOLE_FILE: _ENVIRONMENT, "cases": _ENVIRONMENT},
    "guest/sdk_requests": {EVERY_LIST: _REQUEST},
}
