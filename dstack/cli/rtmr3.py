"""`dstack rtmr3`: predict the register that holds what an app was started with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import click

from dstack.cli.app_facts import AppFacts, app_options, boot_inputs, sized
from dstack.cli.files import read_input
from dstack.errors import InputError
from dstack.measurement.compose import MAX_APP_COMPOSE, parse_app_compose
from dstack.measurement.event_log import RuntimeEvent
from dstack.measurement.prediction import runtime
from dstack.measurement.rtmr3 import (
    BOOT_MR_DONE,
    OUR_SEQUENCE,
    SEQUENCES,
    boot_events,
    predict_legacy_rtmr3,
    predict_rtmr3,
    split_at_boot_mr_done,
)
from dstack.values import Digest32, Register

LEGACY = "legacy"
_EXAMPLES = """\b
Examples:
  dstack rtmr3 app-compose.json --key-provider-id 3059... --os-image-hash 6fa8... --instance-id 1691...
  dstack rtmr3 app-compose.json --sequence 0.5.7 --expect f28a... --json
  dstack rtmr3 docker-compose.yaml --sequence legacy --rootfs-hash bf06... --ca-cert-hash 663a..."""


@click.command(name="rtmr3", epilog=_EXAMPLES)
@click.argument("file")
@click.option("--sequence", type=click.Choice([LEGACY, *SEQUENCES]), default=OUR_SEQUENCE, show_default=True)
@app_options
@click.option("--expect", metavar="HEX", help="Compare with this RTMR3; exit 1 if it differs.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def command(
    context: click.Context, /, *, file: str, sequence: str, expect: str | None, as_json: bool, **typed: Any
) -> None:
    """Predict RTMR3 of the app-compose.json FILE (- for standard input) when the system is ready.

    Events that the app itself emits later are not in it. --json adds the register while the guest asks for its keys,
    and what each event depends on. For the sequence `legacy`, FILE is a docker-compose file.
    """
    raw = read_input(file, limit=MAX_APP_COMPOSE)
    facts = AppFacts(**typed)
    expected = sized(expect, Register, "--expect")
    if sequence == LEGACY:
        events: tuple[RuntimeEvent, ...] = ()
        register = _legacy(raw, facts)
    else:
        app = parse_app_compose(raw)
        events = boot_events(sequence, boot_inputs(app, facts), version=app.event_log_version)
        register = predict_rtmr3(events)
    _print(events, register, expected, as_json=as_json)
    if expected not in (None, register):
        context.exit(1)


def _legacy(docker_compose: bytes, facts: AppFacts) -> Register:
    rootfs = sized(facts.rootfs_hash, Digest32, "--rootfs-hash")
    ca_cert = sized(facts.ca_cert_hash, Digest32, "--ca-cert-hash")
    if rootfs is None or ca_cert is None:
        raise InputError("the sequence legacy needs --rootfs-hash and --ca-cert-hash")
    return predict_legacy_rtmr3(rootfs, Digest32(sha256(docker_compose).digest()), ca_cert)


def _event_facts(event: RuntimeEvent) -> dict[str, object]:
    predicted = runtime(event)
    return {
        "event": event.name,
        "payload": event.payload.hex(),
        "digest": predicted.event.extended.hex(),
        "depends_on": [each.value for each in predicted.depends_on],
    }


def _print(events: Sequence[RuntimeEvent], register: Register, expected: Register | None, *, as_json: bool) -> None:
    if as_json:
        answer: dict[str, object] = {"rtmr3": register.hex(), "events": [_event_facts(event) for event in events]}
        if any(event.name == BOOT_MR_DONE for event in events):
            answer["rtmr3_at_boot_mr_done"] = predict_rtmr3(split_at_boot_mr_done(events)[0]).hex()
        click.echo(json.dumps(answer if expected is None else {**answer, "equal": expected == register}))
        return
    for event in events:
        click.echo(f"{event.name:17} {event.payload.hex() or '-'}")
    click.echo(f"{'RTMR3':17} {register.hex()}")
    if expected is not None:
        click.echo("equal to --expect" if expected == register else f"DIFFERENT {'':7} {expected.hex()} was expected")
