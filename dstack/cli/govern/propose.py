"""`dstack govern propose`: announce what shall be allowed."""

from __future__ import annotations

import difflib
from datetime import datetime
from typing import Any

import click

from dstack.chain.action_text import parse_action, parse_hash, parse_time
from dstack.chain.action_words import grant_sentence, proposal_sentence
from dstack.chain.allowed import AllowedApp
from dstack.chain.client import checked_address, printable
from dstack.chain.deploy import Deployment
from dstack.chain.drafting import VersionDraft, delay_of, draft_content, draft_rollback, draft_version
from dstack.chain.effects import effects_of_grants
from dstack.chain.governed import Governed
from dstack.chain.kms_info_file import MAX_FILE as MAX_KMS_INFO_FILE
from dstack.chain.kms_info_file import parse_kms_info_file
from dstack.chain.look_alikes import content_warnings, known_accounts, name_warnings, text_warnings
from dstack.chain.operator import Action, Kind, proposal_id, propose_call
from dstack.chain.register_file import MAX_FILE, parse_register_file
from dstack.cli.files import read_input
from dstack.cli.govern.acting import act, acting_options
from dstack.cli.govern.connection import connect, connection_options, shown_effects
from dstack.cli.govern.image_folder import measure_image
from dstack.errors import InputError, RefusedError
from dstack.measurement.compose import MAX_APP_COMPOSE, AppCompose, parse_app_compose
from dstack.values import ComposeHash, OsImageHash

_EXAMPLES = """\b
Examples:
  dstack govern propose --app 0xa9b0... --compose app-compose.json --image-digest 6fa8... --uri ipfs://... \\
      --sunset 2026-12-15T08:00:00Z --previous old-compose.json --out proposal.json
  dstack govern propose OsImage=6fa8... Device:0xa9b0...=de01... --key-file owner.json --uri ipfs://...
  dstack govern propose Guardian=0x9a7d... Delay=policy,259200 --key-file owner.json
\b
Actions: KIND[:TARGET][=VALUE]. Of an app (TARGET needed): ComposeHash, Device, AnyDevice, OutdatedTcb=TIME,
Sunset=NUMBER,TIME, FreezeForGood, ImplementationUpgrade, Genesis=FINGERPRINT,EVIDENCE. Of KmsAuth: OsImage,
KmsAggregatedMr, KmsDevice, GatewayAppId, AppImplementation, App (ends its freeze), FreezeRenewal,
KeyEpoch=NUMBER,SECONDS. Of UpgradeOperator: Owner, Guardian, ForcedGuardian, Delay=CLASS,SECONDS."""


@click.command(name="propose", epilog=_EXAMPLES)
@click.argument("actions", nargs=-1)
@click.option("--app", metavar="ADDRESS", help="The app of which --compose is a new version.")
@click.option("--compose", metavar="FILE", help="Its app-compose.json, byte for byte as machines will run it.")
@click.option("--image-digest", multiple=True, metavar="HEX", help="OS image hash that it may run on. Repeatable.")
@click.option("--image", multiple=True, metavar="FOLDER", help="An OS image's folder, measured here. Repeatable.")
@click.option("--registers", metavar="FILE", help="The exact registers, JSON: [{mrtd, rtmr0, rtmr1, rtmr2, rtmr3}].")
@click.option("--allow-image", is_flag=True, help="Also allow these images, for every app and KMS.")
@click.option("--number", type=click.IntRange(1), help="Of the version. Default: the next.")
@click.option("--supersedes", type=click.IntRange(0), help="Version that it replaces; 0: none. Default: the newest.")
@click.option(
    "--sunset",
    metavar="TIME",
    help="When the replaced version ends, such as 2027-01-15T08:00:00Z. Needed where one is replaced.",
)
@click.option("--previous", metavar="FILE", help="The app-compose.json that is allowed now: show what changes.")
@click.option("--rollback", multiple=True, metavar="ACTION", help="Stage an action to undo it with. Repeatable.")
@click.option("--stage-rollback", is_flag=True, help="Stage the replaced version's content as a rollback.")
@click.option("--kms-info", metavar="FILE", help="What KmsAuth shall publish of the KMS, JSON: keys, quote, event log.")
@click.option("--uri", default="", help="Where everybody finds what the hashes stand for.")
@connection_options
@acting_options
def command(
    *,
    actions: tuple[str, ...],
    app: str | None,
    compose: str | None,
    image_digest: tuple[str, ...],
    image: tuple[str, ...],
    registers: str | None,
    allow_image: bool,
    number: int | None,
    supersedes: int | None,
    sunset: str | None,
    previous: str | None,
    rollback: tuple[str, ...],
    stage_rollback: bool,
    kms_info: str | None,
    uri: str,
    deployment: str,
    rpc_url: str,
    as_json: bool,
    **how: Any,
) -> None:
    """Announce ACTIONS, or a new version of an app from a compose file and an OS image; in force 48 hours later.

    Computes the hashes itself, and shows the proposal as a sentence, what changes, and who would be cut off, before
    anything is sent. An owner with a key proposes at once; for a Safe, --out writes the file that its owners sign.
    """
    connection = connect(rpc_url, deployment)
    governed = connection.governed()
    wanted = [parse_action(text, connection.deployment) for text in actions]
    undo = [parse_action(text, connection.deployment) for text in rollback]
    if kms_info is not None:
        wanted.append(_kms_info(kms_info, connection.deployment))
    compose_diff: list[str] = []
    warnings: list[str] = []
    if app is not None and compose is not None:
        known = _app(governed, app, connection.deployment)
        parsed = parse_app_compose(read_input(compose, limit=MAX_APP_COMPOSE))
        images = _images(image_digest, image)
        end = None if sunset is None else parse_time(sunset, what="--sunset")
        exact = () if registers is None else parse_register_file(read_input(registers, limit=MAX_FILE))
        draft = VersionDraft(parsed.compose_hash, images, exact, number, supersedes, end)
        if allow_image:
            kms_auth = connection.deployment.kms_auth
            wanted += [Action(Kind.OS_IMAGE, kms_auth, bytes(one)) for one in images]
        wanted.append(draft_version(draft, known, at=governed.at))
        if stage_rollback:
            ends_at = governed.at + delay_of(connection.w3, connection.deployment, wanted)
            undo.append(draft_rollback(wanted[-1], known, at=ends_at))
        warnings += text_warnings("name", parsed.name)
        compose_diff = [] if previous is None else _compose_diff(previous, parsed, known, governed.at)
    elif app is not None or compose is not None:
        raise InputError("want --app and --compose together")
    if not wanted:
        raise InputError("want actions, or --app and --compose, or --kms-info")
    content = draft_content(connection.w3, connection.deployment, wanted, undo, uri)
    ready_at = governed.at + delay_of(connection.w3, connection.deployment, wanted + undo)
    effects = effects_of_grants(wanted, governed.allowed, at=ready_at)
    made = proposal_id(connection.deployment.chain_id, connection.deployment.operator, len(governed.proposals), content)
    warnings += content_warnings(content, known_accounts(governed, connection.deployment))
    facts = {
        "expected_id": "0x" + made.hex(),
        "sentence": proposal_sentence(wanted, ready_at=ready_at),
        "warnings": warnings,
        "diff": list(effects.diff),
        "cut_off": list(effects.cut_off),
        "rollback": [grant_sentence(one) for one in undo],
        "compose_diff": compose_diff,
    }
    staged = [f"rollback, if owner and guardian agree: {grant_sentence(one)}" for one in undo]
    lines = [f"{facts['sentence']}", *warnings, *shown_effects(effects), *staged, *compose_diff]
    lines.append(f"expected id 0x{made.hex()}")
    call = propose_call(connection.deployment.operator, content)
    act(connection, call, governed.owner, role="owner", as_json=as_json, facts=facts, lines=lines, **how)


def _kms_info(path: str, deployment: Deployment) -> Action:
    info = parse_kms_info_file(read_input(path, limit=MAX_KMS_INFO_FILE))
    return Action(Kind.KMS_INFO, deployment.kms_auth, info.encode())


def _app(governed: Governed, text: str, deployment: Deployment) -> AllowedApp:
    address = checked_address(text, what="--app")
    known = governed.allowed.apps.get(address)
    if known is not None:
        return known
    if address in governed.apps:
        raise RefusedError(f"app {address}: it is not owned by UpgradeOperator {deployment.operator}")
    raise RefusedError(f"app {address}: KmsAuth {deployment.kms_auth} has no such app")


def _images(digests: tuple[str, ...], folders: tuple[str, ...]) -> tuple[OsImageHash, ...]:
    typed = [OsImageHash(parse_hash(digest, what="--image-digest")) for digest in digests]
    measured = [measure_image(folder).os_image_hash for folder in folders]
    images = tuple(dict.fromkeys(typed + measured))
    if not images:
        raise InputError("want --image-digest or --image: a version names the OS images that it may run on")
    return images


def _compose_diff(path: str, new: AppCompose, app: AllowedApp, at: datetime) -> list[str]:
    old = parse_app_compose(read_input(path, limit=MAX_APP_COMPOSE))
    if not app.is_allowed(ComposeHash(old.compose_hash), at):
        raise RefusedError(f"{path}: its compose hash {old.compose_hash.hex()} is not allowed for app {app.address}")
    before, after = ((one.docker_compose_file or one.raw.decode()).splitlines() for one in (old, new))
    lines = [
        printable(line, 1000) for line in difflib.unified_diff(before, after, "allowed now", "proposed", lineterm="")
    ]
    settings = [name for name in AppCompose.__dataclass_fields__ if name not in ("raw", "docker_compose_file")]
    changed = [name for name in settings if getattr(old, name) != getattr(new, name)]
    lines += name_warnings(new.name, [old.name])
    return lines + [f"! {name}: {getattr(old, name)!r} -> {getattr(new, name)!r}" for name in changed]
