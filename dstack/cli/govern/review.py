"""`dstack govern review`: a proposal made anew on your own machine, before you sign it or let it be executed."""

from __future__ import annotations

from collections.abc import Sequence

import click

from dstack.chain.action_text import parse_hash
from dstack.chain.action_words import grant_sentence, proposal_sentence
from dstack.chain.client import printable
from dstack.chain.drafting import delay_of, draft_content
from dstack.chain.effects import effects_of_grants
from dstack.chain.look_alikes import content_warnings, known_accounts, name_warnings
from dstack.chain.operator import Content, proposal_id
from dstack.chain.review import Finding, Result, content_of_signing_file, reproduce
from dstack.cli.files import read_input
from dstack.cli.govern.connection import Connection, answer, connect, connection_options, shown_effects
from dstack.cli.govern.image_folder import measure_image
from dstack.cli.govern.signing import read_signing_file, transaction_facts
from dstack.errors import InputError, RefusedError
from dstack.measurement.compose import MAX_APP_COMPOSE, compose_hash, parse_app_compose

_EXAMPLES = """\b
Examples:
  dstack govern review --file proposal.json --compose app-compose.json --image dstack-0.5.9/
  dstack govern review 0x51f0... --compose app-compose.json --json"""


@click.command(name="review", epilog=_EXAMPLES)
@click.argument("wanted", metavar="[ID]", required=False)
@click.option("--file", metavar="FILE", help="The signing file of a proposal that is not made yet.")
@click.option("--compose", multiple=True, metavar="FILE", help="An app-compose.json that it allows. Repeatable.")
@click.option("--image", multiple=True, metavar="FOLDER", help="An OS image's folder, measured here. Repeatable.")
@connection_options
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    wanted: str | None,
    file: str | None,
    compose: tuple[str, ...],
    image: tuple[str, ...],
    deployment: str,
    rpc_url: str,
    as_json: bool,
) -> None:
    """Recompute proposal ID, or the one in a signing file, from its content and from the files you have.

    Says REPRODUCED if every hash is that of a file given here, NOT REPRODUCED (exit code 1) if one differs or no
    compose file was given for it. OS images without a folder are named as not looked at.
    """
    if (wanted is None) == (file is None):
        raise InputError("want a proposal's ID or --file")
    connection = connect(rpc_url, deployment)
    if file is not None:
        content, facts = _of_file(connection, file)
    else:
        content, facts = _of_chain(connection, wanted or "")
    parsed = [parse_app_compose(read_input(path, limit=MAX_APP_COMPOSE)) for path in compose]
    composes = [compose_hash(one.raw) for one in parsed]
    findings = [*_code(connection, content), *reproduce(content, composes, [measure_image(one) for one in image])]
    reproduced = _verdict(findings)
    facts["findings"] = [{"what": one.what, "value": one.value, "result": one.result.value} for one in findings]
    facts["reproduced"] = reproduced
    names = dict.fromkeys(one.name for one in parsed)
    alike = [warning for name in names for warning in name_warnings(name, list(names))]
    facts["warnings"] = [*_look_alikes(connection, content), *dict.fromkeys(alike)]
    lines = _lines(facts, findings, content)
    answer(as_json, facts, [*lines, "REPRODUCED" if reproduced else "NOT REPRODUCED"])
    context.exit(0 if reproduced else 1)


def _of_file(connection: Connection, path: str) -> tuple[Content, dict[str, object]]:
    read = read_signing_file(path)
    transaction, deployment = read.transaction, connection.deployment
    if transaction.chain_id != deployment.chain_id:
        raise RefusedError(f"chain id: {path} is for chain {transaction.chain_id}, want {deployment.chain_id}")
    if transaction.to != deployment.operator:
        raise RefusedError(f"{path}: it calls {transaction.to}, not UpgradeOperator {deployment.operator}")
    governed = connection.governed()
    if transaction.safe != governed.owner:
        raise RefusedError(f"{path}: it is for Safe {transaction.safe}, the owner is {governed.owner}")
    content = content_of_signing_file(read)
    ready_at = governed.at + delay_of(connection.w3, deployment, [*content.actions, *content.rollback])
    effects = effects_of_grants(content.actions, governed.allowed, at=ready_at)
    made = proposal_id(deployment.chain_id, deployment.operator, len(governed.proposals), content)
    facts: dict[str, object] = {
        "expected_id": "0x" + made.hex(),
        **transaction_facts(transaction),
        "sentence": proposal_sentence(content.actions, ready_at=ready_at),
        "effects": shown_effects(effects),
    }
    return content, facts


def _of_chain(connection: Connection, wanted: str) -> tuple[Content, dict[str, object]]:
    governed = connection.governed()
    # Reading a proposal recomputes its id; one whose content has another id is never returned.
    known = governed.find(parse_hash(wanted, what="ID"), connection.deployment)
    effects = effects_of_grants(known.actions, governed.allowed, at=max(governed.at, known.proposal.ready_at))
    facts: dict[str, object] = {
        "id": "0x" + known.id.hex(),
        "state": known.timetable.stage(governed.at).value,
        "by": known.proposal.by,
        "sentence": proposal_sentence(known.actions, ready_at=known.proposal.ready_at),
        "effects": shown_effects(effects),
    }
    return known.proposal.content, facts


def _look_alikes(connection: Connection, content: Content) -> list[str]:
    return content_warnings(content, known_accounts(connection.governed(), connection.deployment))


def _code(connection: Connection, content: Content) -> list[Finding]:
    now = draft_content(connection.w3, connection.deployment, content.actions, content.rollback, content.uri)
    fits = now.code_hashes == content.code_hashes
    named = f"{sum(any(one) for one in content.code_hashes)} code hashes"
    return [Finding("contract code that it names", named, Result.REPRODUCED if fits else Result.DIFFERS)]


def _verdict(findings: Sequence[Finding]) -> bool:
    differs = any(one.result is Result.DIFFERS for one in findings)
    unseen = any(one.result is Result.NOT_LOOKED_AT and one.what == "compose hash" for one in findings)
    return not differs and not unseen


def _lines(facts: dict[str, object], findings: Sequence[Finding], content: Content) -> list[str]:
    shown = [
        f"{name.replace('_', ' '):13} {value}"
        for name, value in facts.items()
        if name not in ("effects", "findings", "reproduced", "warnings")
    ]
    effects, warnings = facts["effects"], facts["warnings"]
    assert isinstance(effects, list)
    assert isinstance(warnings, list)
    rollback = [f"rollback      {grant_sentence(one)}" for one in content.rollback]
    uri = [f"content       {printable(content.uri, 512)}"]
    found = [f"{one.result.value:14} {one.what}: {one.value}" for one in findings]
    return [*shown, *warnings, *rollback, *uri, *effects, *found]
