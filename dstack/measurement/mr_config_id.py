"""MRCONFIGID: what a host binds a machine to before its first instruction (guest.md 1.4, measurement.md 6)."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import rfc8785

from dstack.errors import MeasurementMalformedError
from dstack.measurement.identities import KEY_PROVIDER_NAMES
from dstack.measurement.rtmr3 import MAX_INIT_SCRIPTS
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import AppId, ComposeHash, Digest32, InstanceId, Register

MAX_DOCUMENT = 32 * 1024
NO_MR_CONFIG_ID = Register(bytes(Register.SIZE))

_V1, _V2, _V3 = b"\x01", b"\x02", b"\x03"
_V3_PREFIX = b"dstack-mr-config-v3:\0"
_KIND_BYTE = {"none": 0, "local": 1, "kms": 2, "tpm": 3}
_MEMBERS = frozenset(
    {
        *("version", "app_id", "compose_hash", "gpu_policy_hash", "key_provider", "key_provider_id", "instance_id"),
        "init_script_hashes",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDocument:
    """What version 3 digests; None where a machine is not bound to it.

    Attributes:
        compose_hash: Of its app-compose.json.
        key_provider: `none`, `local`, `kms` or `tpm`.
        key_provider_id: The only provider it accepts; empty for one that has no id.
        instance_id: Empty for an app with `no_instance_id`.
        init_script_hashes: SHA-256 of each init script, at most five; none of them binds it to having no init script.
    """

    compose_hash: ComposeHash
    key_provider: str
    key_provider_id: bytes | None = None
    app_id: AppId | None = None
    instance_id: bytes | None = None
    gpu_policy_hash: Digest32 | None = None
    init_script_hashes: tuple[Digest32, ...] | None = None

    def __post_init__(self) -> None:
        _kind_byte(self.key_provider)
        if self.instance_id:
            InstanceId(self.instance_id)
        scripts = self.init_script_hashes or ()
        if len(scripts) > MAX_INIT_SCRIPTS:
            raise _malformed(f"want at most {MAX_INIT_SCRIPTS} init scripts, got {len(scripts)}")


def mr_config_id_v1(compose_hash: ComposeHash) -> Register:
    """Bind a machine to one compose hash."""
    return _padded(_V1 + compose_hash)


def mr_config_id_v2(compose_hash: ComposeHash, app_id: AppId, key_provider: str, key_provider_id: bytes) -> Register:
    """Bind a machine to a compose hash, an app and the provider of its keys.

    Args:
        compose_hash: Of its app-compose.json.
        app_id: The app.
        key_provider: `none`, `local`, `kms` or `tpm`.
        key_provider_id: See `key_provider_payload`; may be empty.

    Raises:
        MeasurementMalformedError: Another provider.
    """
    # Only here: it is slow to load.
    from Crypto.Hash import keccak

    preimage = compose_hash + app_id + _kind_byte(key_provider) + key_provider_id
    return _padded(_V2 + keccak.new(digest_bits=256, data=preimage).digest())


def mr_config_id_v3(document: bytes) -> Register:
    """Bind a machine to a document, by its bytes; see `parse_config_document`."""
    return _padded(_V3 + sha256(_V3_PREFIX + document).digest())


def parse_config_document(raw: bytes) -> ConfigDocument:
    """Read the document of version 3.

    Args:
        raw: RFC 8785 JSON, at most 32 KiB.

    Raises:
        MeasurementMalformedError: Another form, an unknown member, or not the canonical spelling.
    """
    value = parse_json(raw, what="mr_config", limit=MAX_DOCUMENT, error=MeasurementMalformedError)
    members = Members.of(value, what="mr_config", error=MeasurementMalformedError)
    members.refuse_others(_MEMBERS)
    if members.integer("version", maximum=2**32 - 1) != 3:
        raise _malformed("want version 3")
    document = ConfigDocument(
        compose_hash=members.sized("compose_hash", ComposeHash),
        key_provider=members.text("key_provider"),
        key_provider_id=members.hexadecimal("key_provider_id") if members.has("key_provider_id") else None,
        app_id=members.sized("app_id", AppId) if members.has("app_id") else None,
        instance_id=members.hexadecimal("instance_id") if members.has("instance_id") else None,
        gpu_policy_hash=members.sized("gpu_policy_hash", Digest32) if members.has("gpu_policy_hash") else None,
        init_script_hashes=_hashes(members) if members.has("init_script_hashes") else None,
    )
    if rfc8785.dumps(members.values) != raw:  # type: ignore[arg-type]  # came from JSON
        raise _malformed("want the spelling of RFC 8785")
    return document


def serialise_config_document(document: ConfigDocument) -> bytes:
    """Write the document of version 3; what a machine is not bound to is left out."""
    members: dict[str, str | int | list[str]] = {
        "version": 3,
        "compose_hash": document.compose_hash.hex(),
        "key_provider": document.key_provider,
    }
    for name in ("key_provider_id", "app_id", "instance_id", "gpu_policy_hash"):
        raw: bytes | None = getattr(document, name)
        if raw is not None:
            members[name] = raw.hex()
    if document.init_script_hashes is not None:
        members["init_script_hashes"] = [digest.hex() for digest in document.init_script_hashes]
    return rfc8785.dumps(members)


def _hashes(members: Members) -> tuple[Digest32, ...]:
    return tuple(Digest32.from_hex(each) for each in members.texts("init_script_hashes"))


def _padded(raw: bytes) -> Register:
    return Register(raw.ljust(Register.SIZE, b"\0"))


def _kind_byte(key_provider: str) -> bytes:
    if key_provider not in _KIND_BYTE:
        raise _malformed(f"key provider: want one of {', '.join(KEY_PROVIDER_NAMES)}, got {key_provider[:80]!r}")
    return bytes([_KIND_BYTE[key_provider]])


def _malformed(message: str) -> MeasurementMalformedError:
    return MeasurementMalformedError(f"mr_config: {message}")
