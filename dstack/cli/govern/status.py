"""`dstack govern status`: who governs, what is allowed, and what waits."""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from dstack.chain.action_words import proposal_sentence, show_duration, show_time
from dstack.chain.allowed import AllowedApp
from dstack.chain.governed import Governed, KnownProposal
from dstack.chain.safe_account import read_safe
from dstack.cli.govern.connection import Connection, answer, connect, connection_options

_EXAMPLES = """\b
Examples:
  dstack govern status --deployment deployment.json --rpc-url https://...
  dstack govern status --json"""


@click.command(name="status", epilog=_EXAMPLES)
@connection_options
def command(*, deployment: str, rpc_url: str, as_json: bool) -> None:
    """Show who governs, what is allowed now, and which proposals wait.

    Rebuilt from events, and compared with the contracts' own answers.
    """
    connection = connect(rpc_url, deployment)
    governed = connection.governed()
    facts = {
        "block": governed.block,
        "time": governed.at.isoformat(),
        "chain_id": connection.deployment.chain_id,
        "operator": connection.deployment.operator,
        "kms_auth": connection.deployment.kms_auth,
        "owner": governed.owner,
        "owner_is": sort_of_account(connection, governed.owner),
        "guardian": governed.guardian,
        "guardian_is": sort_of_account(connection, governed.guardian),
        "delays_seconds": dict(governed.delays),
        "nominations": [{"role": one.role, "account": one.account} for one in governed.nominations],
        "os_images": sorted(image.hex() for image in governed.allowed.os_images),
        "kms_measurements": sorted(one.hex() for one in governed.allowed.kms_measurements),
        "kms_devices": sorted(one.hex() for one in governed.allowed.kms_devices),
        "gateway_app_id": governed.allowed.gateway_app_id,
        "app_implementation": governed.allowed.app_implementation,
        "key_epoch": governed.allowed.key_epoch,
        "previous_epoch_until": iso(governed.allowed.previous_epoch_until),
        "genesis": {app: one.fingerprint.hex() for app, one in governed.genesis.items()},
        "apps": {address: app_facts(app, governed.at) for address, app in governed.allowed.apps.items()},
        "apps_not_governed": [app for app in governed.apps if app not in governed.allowed.apps],
        "pending": [proposal_facts(known, governed.at) for known in governed.pending()],
    }
    answer(as_json, facts, _lines(facts, governed))


def sort_of_account(connection: Connection, account: str) -> str:
    """What kind of account it is, in words."""
    address = connection.w3.to_checksum_address(account)
    safe = read_safe(connection.w3, address)
    if safe is not None:
        return f"a Safe {safe.version}, {safe.threshold} of {len(safe.owners)}"
    return "a contract" if connection.w3.eth.get_code(address) else "a single key"


def app_facts(app: AllowedApp, at: datetime) -> dict[str, object]:
    """What one app allows at *at*, if nobody acts until then."""
    frozen = app.frozen_until is not None and at < app.frozen_until
    return {
        "compose_hashes": sorted(one.hex() for one in app.compose_hashes),
        "versions": [
            {
                "number": known.version.number,
                "compose_hash": known.version.compose_hash.hex(),
                "os_image_hashes": [image.hex() for image in known.version.os_image_hashes],
                "ends_at": iso(known.ends_at),
                "is_rollback": known.version.is_rollback,
            }
            for known in app.live_versions(at)
        ],
        "devices": "any" if app.any_device else sorted(device.hex() for device in app.devices),
        "require_tcb_up_to_date": app.require_tcb_up_to_date,
        "frozen_until": iso(app.frozen_until) if frozen else None,
        "frozen_for_good": app.frozen_for_good,
        "upgrades_disabled": app.upgrades_disabled,
    }


def proposal_facts(known: KnownProposal, at: datetime) -> dict[str, object]:
    """One proposal as it stands at *at*."""
    return {
        "id": "0x" + known.id.hex(),
        "nonce": known.proposal.nonce,
        "by": known.proposal.by,
        "state": known.timetable.stage(at).value,
        "ready_at": known.proposal.ready_at.isoformat(),
        "expires_at": known.proposal.expires_at.isoformat(),
        "sentence": proposal_sentence(known.actions, ready_at=known.proposal.ready_at),
        "uri": known.proposal.content.uri,
    }


def _lines(facts: dict[str, object], governed: Governed) -> list[str]:
    delays = ", ".join(f"{name} {show_duration(timedelta(seconds=wait))}" for name, wait in governed.delays.items())
    lines = [
        f"block          {governed.block}, {show_time(governed.at)}",
        f"operator       {facts['operator']} on chain {facts['chain_id']}",
        f"KmsAuth        {facts['kms_auth']}",
        f"owner          {governed.owner}, {facts['owner_is']}",
        f"guardian       {governed.guardian}, {facts['guardian_is']}",
        f"delays         {delays}",
    ]
    lines += [
        f"named {one.role.lower():8} {one.account}, until {show_time(one.expires_at)}" for one in governed.nominations
    ]
    lines += [f"OS image       {image.hex()}" for image in sorted(governed.allowed.os_images)]
    lines += [f"KMS            measurement {one.hex()}" for one in sorted(governed.allowed.kms_measurements)]
    lines += [f"KMS            device {one.hex()}" for one in sorted(governed.allowed.kms_devices)]
    lines.append(f"key epoch      {_epoch(governed)}")
    for app in governed.allowed.apps.values():
        lines += _app_lines(app, governed.at)
        genesis = governed.genesis.get(app.address)
        lines += [] if genesis is None else [f"  secure file  begins with fingerprint {genesis.fingerprint.hex()}"]
    for known in governed.pending():
        stage = known.timetable.stage(governed.at).value
        sentence = proposal_sentence(known.actions, ready_at=known.proposal.ready_at)
        lines.append(f"{stage:14} 0x{known.id.hex()}: {sentence}")
    return lines


def iso(at: datetime | None) -> str | None:
    """A time for programs; None where there is none."""
    return None if at is None else at.isoformat()


def _epoch(governed: Governed) -> str:
    epoch, until = governed.allowed.key_epoch, governed.allowed.previous_epoch_until
    both = until is not None and governed.at < until
    return f"{epoch}, and {epoch - 1} until {show_time(until)}" if both and until is not None else str(epoch)


def _app_lines(app: AllowedApp, at: datetime) -> list[str]:
    lines = [f"app            {app.address}"]
    for known in app.live_versions(at):
        ends = "no end" if known.ends_at is None else f"ends {show_time(known.ends_at)}"
        lines.append(f"  version {known.version.number}    compose hash {known.version.compose_hash.hex()}, {ends}")
    lines += [f"  any image    compose hash {one.hex()}" for one in sorted(app.compose_hashes)]
    lines.append(f"  devices      {'any' if app.any_device else len(app.devices)}")
    if app.frozen_until is not None and at < app.frozen_until:
        lines.append(f"  FROZEN       until {show_time(app.frozen_until)}")
    if app.frozen_for_good:
        lines.append("  frozen for good: nothing can be granted any more")
    return lines
