"""`dstack rtmr3`: predict the register that holds what an app was started with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

import click

from dstack.cli.files import read_input
from dstack.errors import InputError
from dstack.measurement.compose import MAX_APP_COMPOSE, AppCompose, default_app_id, parse_app_compose
from dstack.measurement.event_log import RuntimeEvent
from dstack.measurement.rtmr3 import (
    OUR_SEQUENCE,
    SEQUENCES,
    STORAGE_FILE_SYSTEMS,
    BootInputs,
    boot_events,
    predict_legacy_rtmr3,
    predict_rtmr3,
)
from dstack.values import AppId, Digest32, InstanceId, OsImageHash, Register, SizedBytes, bytes_from_hex

LEGACY = "legacy"
_SizedT = TypeVar("_SizedT", bound=SizedBytes)
_EXAMPLES = """\b
Examples:
  dstack rtmr3 app-compose.json --key-provider-id 3059... --os-image-hash 6fa8... --instance-id 1691...
  dstack rtmr3 app-compose.json --sequence 0.5.7 --expect f28a... --json
  dstack rtmr3 docker-compose.yaml --sequence legacy --rootfs-hash bf06... --ca-cert-hash 663a..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What was typed, still in hexadecimal; None where nothing was."""

    app_id: str | None
    instance_id: str | None
    key_provider_id: str | None
    os_image_hash: str | None
    storage_fs: str | None
    mr_kms: str | None
    rootfs_hash: str | None
    ca_cert_hash: str | None


@click.command(name="rtmr3", epilog=_EXAMPLES)
@click.argument("file")
@click.option("--sequence", type=click.Choice([LEGACY, *SEQUENCES]), default=OUR_SEQUENCE, show_default=True)
@click.option("--app-id", metavar="HEX", help="Default: the first 20 bytes of the compose hash.")
@click.option("--instance-id", metavar="HEX", help="Required unless the app has no_instance_id.")
@click.option("--key-provider-id", metavar="HEX", help="SubjectPublicKeyInfo of the KMS root CA; local: MRENCLAVE.")
@click.option("--os-image-hash", metavar="HEX", help="As the KMS answers it.")
@click.option("--storage-fs", type=click.Choice(STORAGE_FILE_SYSTEMS), help="Default: what FILE says, else zfs.")
@click.option("--mr-kms", metavar="HEX", help="mrAggregated of the KMS, 0.5.0 to 0.5.7.")
@click.option("--rootfs-hash", metavar="HEX", help="The dm-verity root, up to dev-0.4.0.")
@click.option("--ca-cert-hash", metavar="HEX", help="SHA-256 of the KMS's CA file, up to 0.3.6.")
@click.option("--expect", metavar="HEX", help="Compare with this RTMR3; exit 1 if it differs.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def command(
    context: click.Context, /, *, file: str, sequence: str, expect: str | None, as_json: bool, **typed: Any
) -> None:
    """Predict RTMR3 of the app-compose.json FILE (- for standard input) when the system is ready.

    Events that the app itself emits later are not in it. For the sequence `legacy`, FILE is a docker-compose file.
    """
    raw = read_input(file, limit=MAX_APP_COMPOSE)
    options = _Options(**typed)
    expected = _sized(expect, Register, "--expect")
    if sequence == LEGACY:
        events: tuple[RuntimeEvent, ...] = ()
        register = _legacy(raw, options)
    else:
        app = parse_app_compose(raw)
        events = boot_events(sequence, _inputs(app, options), version=app.event_log_version)
        register = predict_rtmr3(events)
    _print(events, register, expected, as_json=as_json)
    if expected not in (None, register):
        context.exit(1)


def _legacy(docker_compose: bytes, options: _Options) -> Register:
    rootfs = _sized(options.rootfs_hash, Digest32, "--rootfs-hash")
    ca_cert = _sized(options.ca_cert_hash, Digest32, "--ca-cert-hash")
    if rootfs is None or ca_cert is None:
        raise InputError("the sequence legacy needs --rootfs-hash and --ca-cert-hash")
    return predict_legacy_rtmr3(rootfs, Digest32(sha256(docker_compose).digest()), ca_cert)


def _inputs(app: AppCompose, options: _Options) -> BootInputs:
    if app.storage_fs is not None and options.storage_fs not in (None, app.storage_fs):
        raise InputError(f"--storage-fs: the app-compose file says {app.storage_fs}, got {options.storage_fs}")
    provider_id = app.key_provider_id
    if options.key_provider_id is not None:
        provider_id = bytes_from_hex(options.key_provider_id, what="--key-provider-id")
        if app.key_provider_id not in (b"", provider_id):
            raise InputError("--key-provider-id: the app-compose file accepts another one only")
    return BootInputs(
        app_id=_sized(options.app_id, AppId, "--app-id") or default_app_id(app.compose_hash),
        compose_hash=app.compose_hash,
        instance_id=_instance_id(app, options),
        key_provider=app.key_provider,
        key_provider_id=provider_id,
        os_image_hash=_sized(options.os_image_hash, OsImageHash, "--os-image-hash"),
        mr_kms=_sized(options.mr_kms, Digest32, "--mr-kms"),
        storage_fs=app.storage_fs or options.storage_fs or "zfs",
        init_script_hashes=tuple(Digest32(sha256(script.encode()).digest()) for script in app.init_scripts),
        gpu_policy_hash=app.gpu_policy_hash,
        rootfs_hash=_sized(options.rootfs_hash, Digest32, "--rootfs-hash"),
        ca_cert_hash=_sized(options.ca_cert_hash, Digest32, "--ca-cert-hash"),
    )


def _instance_id(app: AppCompose, options: _Options) -> InstanceId | None:
    instance_id = _sized(options.instance_id, InstanceId, "--instance-id")
    if app.no_instance_id and instance_id is not None:
        raise InputError("--instance-id: the app-compose file says no_instance_id")
    if not app.no_instance_id and instance_id is None:
        raise InputError("--instance-id: it is measured, and the app-compose file does not say no_instance_id")
    return instance_id


def _sized(text: str | None, kind: type[_SizedT], option: str) -> _SizedT | None:
    if text is None:
        return None
    try:
        return kind.from_hex(text)
    except InputError as exc:
        raise InputError(f"{option}: {exc}") from exc


def _print(events: Sequence[RuntimeEvent], register: Register, expected: Register | None, *, as_json: bool) -> None:
    if as_json:
        answer: dict[str, object] = {
            "rtmr3": register.hex(),
            "events": [{"event": event.name, "payload": event.payload.hex()} for event in events],
        }
        click.echo(json.dumps(answer if expected is None else {**answer, "equal": expected == register}))
        return
    for event in events:
        click.echo(f"{event.name:17} {event.payload.hex() or '-'}")
    click.echo(f"{'RTMR3':17} {register.hex()}")
    if expected is not None:
        click.echo("equal to --expect" if expected == register else f"DIFFERENT {'':7} {expected.hex()} was expected")
