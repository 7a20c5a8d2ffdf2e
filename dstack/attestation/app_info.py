"""App info: what a certificate says of the machine it was given to (extension .9 of kms.md 4.1).

A MessagePack array of eight byte strings. Newer writers add a ninth element, which is read and dropped; readers up to
0.5.8 refuse it, so it is never written.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import msgpack

from dstack.errors import EvidenceMalformedError

_FIELDS = 8
_WITH_INIT_SCRIPTS = 9
_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class AppInfo:
    """Who a machine is, in the order of the wire; empty where it has none."""

    app_id: bytes
    compose_hash: bytes
    instance_id: bytes
    device_id: bytes
    mr_system: bytes
    mr_aggregated: bytes
    os_image_hash: bytes
    key_provider_info: bytes


def serialise_app_info(info: AppInfo) -> bytes:
    """Write the extension's payload."""
    packed: bytes = msgpack.packb([bytes(value) for value in astuple(info)])
    return packed


def parse_app_info(raw: bytes) -> AppInfo:
    """Read the extension's payload, to its last byte. It is as true as the certificate is.

    Raises:
        EvidenceMalformedError: Another form.
    """
    if len(raw) > _LIMIT:
        raise EvidenceMalformedError(f"app info: want at most {_LIMIT} bytes, got {len(raw)}")
    try:
        values = msgpack.unpackb(raw, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as exc:
        raise EvidenceMalformedError("app info: want one MessagePack value") from exc
    if not isinstance(values, list) or len(values) not in (_FIELDS, _WITH_INIT_SCRIPTS):
        raise EvidenceMalformedError("app info: want an array of 8 or 9 elements")
    if not all(isinstance(value, bytes) for value in values[:_FIELDS]):
        raise EvidenceMalformedError("app info: want byte strings")
    return AppInfo(*values[:_FIELDS])
