"""`dstack govern deny`: take a grant back at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from dstack.chain.action_text import parse_action
from dstack.chain.action_words import denial_sentence
from dstack.chain.effects import effects_of_denials
from dstack.chain.operator import Action, deny_call
from dstack.chain.outlook import stopped_by
from dstack.cli.govern.acting import account_of, act, acting_options, role_option
from dstack.cli.govern.connection import Connection, connect, connection_options, shown_effects

_EXAMPLES = """\b
Examples:
  dstack govern deny ComposeHash:0xa9b0...=3f5e... --as guardian --key-file guardian.json
  dstack govern deny OsImage=6fa8... Sunset:0xa9b0...=7,never --out denial.json
\b
Actions: KIND[:TARGET][=VALUE]. Of an app: ComposeHash, Device, AnyDevice, OutdatedTcb, Sunset=NUMBER,TIME (never:
now), ContractUpgrades (owner only, for good). Of KmsAuth: OsImage, KmsAggregatedMr, KmsDevice, App (a freeze)."""


@click.command(name="deny", epilog=_EXAMPLES)
@click.argument("actions", nargs=-1, required=True)
@role_option
@connection_options
@acting_options
def command(*, actions: tuple[str, ...], role: str, deployment: str, rpc_url: str, as_json: bool, **how: Any) -> None:
    """Deny ACTIONS at once, and with them every proposal of the same that was made up to then.

    Keys that were released stay released: whoever is denied keeps what it has until it starts anew.
    """
    connection = connect(rpc_url, deployment)
    wanted = [parse_action(text, connection.deployment) for text in actions]
    deny(connection, wanted, role=role, as_json=as_json, **how)


def deny(connection: Connection, actions: Sequence[Action], *, role: str, as_json: bool, **how: Any) -> None:
    """Show what denying *actions* means, and do it."""
    governed = connection.governed()
    effects = effects_of_denials(actions, governed.allowed, at=governed.at)
    sentence = "at once: " + "; ".join(map(denial_sentence, actions))
    stopped = stopped_by(actions, governed)
    facts = {
        "sentence": sentence,
        "diff": list(effects.diff),
        "cut_off": list(effects.cut_off),
        "stopped": stopped,
    }
    call = deny_call(connection.deployment.operator, actions)
    lines = [sentence, *shown_effects(effects), *stopped]
    act(connection, call, account_of(connection, role), role=role, as_json=as_json, facts=facts, lines=lines, **how)
