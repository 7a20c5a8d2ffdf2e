"""Identities: who an instance, a machine and a system are, as digests (guest.md 1.1, 1.3, 1.4, 3.5)."""

from __future__ import annotations

import json
from hashlib import sha256

from dstack.errors import MeasurementMalformedError
from dstack.values import AppId, DeviceId, Digest32, InstanceId, Register

INSTANCE_ID_SEED_SIZE = 20
MIN_LAUNCH_TOKEN = 32
NO_KEY_PROVIDER = Digest32(bytes(32))
# The name that is measured for each kind an app-compose.json can ask for (guest.md 1.3).
KEY_PROVIDER_NAMES = {"none": "none", "local": "local-sgx", "kms": "kms", "tpm": "tpm"}


def derive_instance_id(seed: bytes, app_id: AppId, platform_binding: Digest32 | None = None) -> InstanceId:
    """Derive the id of one running copy of an app.

    Args:
        seed: 20 random bytes that stay with its disk.
        app_id: The app.
        platform_binding: On clouds with a vTPM, the SHA-256 of its key; plain TDX has none.

    Raises:
        MeasurementMalformedError: *seed* has another length.
    """
    if len(seed) != INSTANCE_ID_SEED_SIZE:
        raise MeasurementMalformedError(f"instance id seed: want {INSTANCE_ID_SEED_SIZE} bytes, got {len(seed)}")
    return InstanceId(sha256(seed + app_id + (platform_binding or b"")).digest()[: InstanceId.SIZE])


def device_id(ppid: bytes) -> DeviceId:
    """Name a machine by the 16-byte PPID in its PCK certificate; only a verified quote knows it.

    Raises:
        MeasurementMalformedError: *ppid* has another length, as in evidence that nobody verified.
    """
    if len(ppid) != 16:
        raise MeasurementMalformedError(f"PPID: want 16 bytes, got {len(ppid)}")
    return DeviceId(sha256(ppid).digest())


def key_provider_payload(kind: str, id: bytes) -> bytes:
    """Give the exact bytes of the `key-provider` event.

    Args:
        kind: `none`, `local`, `kms` or `tpm`.
        id: Of the provider: the DER SubjectPublicKeyInfo of the KMS root CA, the MRENCLAVE of the local provider.

    Raises:
        MeasurementMalformedError: Another kind, or an id where the kind has none.
    """
    if kind not in KEY_PROVIDER_NAMES:
        raise MeasurementMalformedError(f"key provider: want one of {', '.join(KEY_PROVIDER_NAMES)}, got {kind[:80]!r}")
    if kind in ("none", "tpm") and id:
        raise MeasurementMalformedError(f"key provider {kind}: want no id, got {len(id)} bytes")
    return json.dumps({"name": KEY_PROVIDER_NAMES[kind], "id": id.hex()}, separators=(",", ":")).encode()


def mr_key_provider(payload: bytes | None) -> Digest32:
    """Digest the `key-provider` payload; None is a machine that has no keys yet."""
    return NO_KEY_PROVIDER if payload is None else Digest32(sha256(payload).digest())


def mr_system(mrtd: Register, rtmr0: Register, rtmr1: Register, rtmr2: Register, key_provider: Digest32) -> Digest32:
    """Digest firmware, virtual hardware, kernel and key provider, but not the app: `mrSystem` of the contracts."""
    return Digest32(sha256(mrtd + rtmr0 + rtmr1 + rtmr2 + key_provider).digest())


def mr_aggregated(
    mrtd: Register,
    rtmr0: Register,
    rtmr1: Register,
    rtmr2: Register,
    rtmr3: Register,
    *,
    mr_config_id: Register,
    mr_owner: Register,
    mr_owner_config: Register,
) -> Digest32:
    """Digest everything that is measured: `mrAggregated` of the contracts.

    The last three registers count only if one of them is not zero; *rtmr3* is the replayed value.
    """
    configuration = mr_config_id + mr_owner + mr_owner_config
    tail = configuration if any(configuration) else b""
    return Digest32(sha256(mrtd + rtmr0 + rtmr1 + rtmr2 + rtmr3 + tail).digest())


def launch_token_hash(token: str) -> Digest32:
    """Digest a launch token, as `requirements.launch_token_hash` of an app-compose.json names it (guest.md 1.2).

    Raises:
        MeasurementMalformedError: *token* has fewer than 32 bytes; the error does not repeat it.
    """
    raw = token.encode()
    if len(raw) < MIN_LAUNCH_TOKEN:
        raise MeasurementMalformedError(f"launch token: want at least {MIN_LAUNCH_TOKEN} bytes, got {len(raw)}")
    return Digest32(sha256(b"dstack-launch-token/v1:" + raw).digest())
