"""The options that say what an app was started with: everything RTMR3 is made of (guest.md 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

import click

from dstack.cli.files import read_input
from dstack.errors import InputError, MeasurementInputMissingError
from dstack.measurement.compose import AppCompose, default_app_id
from dstack.measurement.rtmr3 import STORAGE_FILE_SYSTEMS, BootInputs
from dstack.values import AppId, Digest32, InstanceId, OsImageHash, SizedBytes, bytes_from_hex

_SizedT = TypeVar("_SizedT", bound=SizedBytes)
_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])

_MAX_CERTIFICATE = 64 * 1024
_OPTIONS = (
    click.option("--app-id", metavar="HEX", help="Default: the first 20 bytes of the compose hash."),
    click.option("--instance-id", metavar="HEX", help="Required unless the app has no_instance_id."),
    click.option("--key-provider-id", metavar="HEX", help="SubjectPublicKeyInfo of the KMS root CA; local: MRENCLAVE."),
    click.option("--kms-ca", metavar="FILE", help="Certificate of the KMS root CA, PEM: instead of --key-provider-id."),
    click.option("--os-image-hash", metavar="HEX", help="As the KMS answers it."),
    click.option("--storage-fs", type=click.Choice(STORAGE_FILE_SYSTEMS), help="Default: what the app says, else zfs."),
    click.option("--mr-kms", metavar="HEX", help="mrAggregated of the KMS, 0.5.0 to 0.5.7."),
    click.option("--rootfs-hash", metavar="HEX", help="The dm-verity root, up to dev-0.4.0."),
    click.option("--ca-cert-hash", metavar="HEX", help="SHA-256 of the KMS's CA file, up to 0.3.6."),
    click.option("--gpu-attestation", metavar="HEX", help="Payload of that event, on machines with GPUs."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppFacts:
    """What was typed, still in hexadecimal; None where nothing was."""

    app_id: str | None
    instance_id: str | None
    key_provider_id: str | None
    kms_ca: str | None
    os_image_hash: str | None
    storage_fs: str | None
    mr_kms: str | None
    rootfs_hash: str | None
    ca_cert_hash: str | None
    gpu_attestation: str | None

    @classmethod
    def take(cls, typed: dict[str, Any]) -> AppFacts:
        """Take these options out of all that a command got."""
        return cls(**{name: typed.pop(name) for name in cls.__slots__})


def app_options(command: _CommandT) -> _CommandT:
    """Give a command these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def boot_inputs(app: AppCompose, facts: AppFacts, *, os_image_hash: OsImageHash | None = None) -> BootInputs:
    """Put together what goes into RTMR3.

    Args:
        app: The app-compose.json.
        facts: What was typed.
        os_image_hash: Taken where none was typed.

    Raises:
        MeasurementInputMissingError: The instance id is measured and was not given.
        InputError: Something typed is malformed or contradicts *app*.
    """
    if app.storage_fs is not None and facts.storage_fs not in (None, app.storage_fs):
        raise InputError(f"--storage-fs: the app-compose file says {app.storage_fs}, got {facts.storage_fs}")
    attestation = facts.gpu_attestation
    return BootInputs(
        app_id=sized(facts.app_id, AppId, "--app-id") or default_app_id(app.compose_hash),
        compose_hash=app.compose_hash,
        instance_id=_instance_id(app, facts),
        key_provider=app.key_provider,
        key_provider_id=_key_provider_id(app, facts),
        os_image_hash=sized(facts.os_image_hash, OsImageHash, "--os-image-hash") or os_image_hash,
        mr_kms=sized(facts.mr_kms, Digest32, "--mr-kms"),
        storage_fs=app.storage_fs or facts.storage_fs or "zfs",
        init_script_hashes=tuple(Digest32(sha256(script.encode()).digest()) for script in app.init_scripts),
        gpu_policy_hash=app.gpu_policy_hash,
        gpu_attestation=None if attestation is None else bytes_from_hex(attestation, what="--gpu-attestation"),
        rootfs_hash=sized(facts.rootfs_hash, Digest32, "--rootfs-hash"),
        ca_cert_hash=sized(facts.ca_cert_hash, Digest32, "--ca-cert-hash"),
    )


def sized(text: str | None, kind: type[_SizedT], option: str) -> _SizedT | None:
    """Read hexadecimal of the length of *kind*; the error names the option.

    Raises:
        InputError: It is not of that form or length.
    """
    if text is None:
        return None
    try:
        return kind.from_hex(text)
    except InputError as exc:
        raise InputError(f"{option}: {exc}") from exc


def _key_provider_id(app: AppCompose, facts: AppFacts) -> bytes:
    if facts.key_provider_id is not None and facts.kms_ca is not None:
        raise InputError("--kms-ca: want it or --key-provider-id, got both")
    if facts.kms_ca is not None:
        option, provider_id = "--kms-ca", _public_key(facts.kms_ca)
    elif facts.key_provider_id is not None:
        option, provider_id = "--key-provider-id", bytes_from_hex(facts.key_provider_id, what="--key-provider-id")
    else:
        return app.key_provider_id
    if app.key_provider_id not in (b"", provider_id):
        raise InputError(f"{option}: the app-compose file accepts another one only")
    return provider_id


def _public_key(path: str) -> bytes:
    """The DER SubjectPublicKeyInfo in a certificate: what names a KMS as provider of keys."""
    # Only here: it is slow to load.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        certificate = x509.load_pem_x509_certificate(read_input(path, limit=_MAX_CERTIFICATE))
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError as exc:
        raise InputError(f"--kms-ca: {path}: want a certificate in PEM") from exc


def _instance_id(app: AppCompose, facts: AppFacts) -> InstanceId | None:
    instance_id = sized(facts.instance_id, InstanceId, "--instance-id")
    if app.no_instance_id and instance_id is not None:
        raise InputError("--instance-id: the app-compose file says no_instance_id")
    if not app.no_instance_id and instance_id is None:
        raise MeasurementInputMissingError(
            "--instance-id: it is measured, and the app-compose file does not say no_instance_id"
        )
    return instance_id
