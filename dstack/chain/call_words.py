"""Calls of the governance contracts in sentences: what the data in a signing file does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eth_typing import ChecksumAddress
from web3 import Web3
from web3.exceptions import Web3Exception

from dstack.chain.action_words import denial_sentence, grant_sentence
from dstack.chain.bindings import contract_at
from dstack.chain.client import printable
from dstack.chain.operator import Action, Kind
from dstack.chain.safe_account import approved_digest
from dstack.errors import InputError

NOT_UNDERSTOOD = "NOT UNDERSTOOD"
_OFFLINE = Web3()


def describe_call(to: ChecksumAddress, data: bytes) -> list[str]:
    """Say what a call of UpgradeOperator (or of a Safe's `approveHash`) does; nothing is asked of a chain.

    Whether *to* is that contract is for whoever has a chain. Data of anything else is named as not understood.
    """
    digest = approved_digest(data)
    if digest is not None:
        return [f"agree to the transaction of Safe {to} with digest 0x{digest.hex()}"]
    try:
        function, arguments = contract_at(_OFFLINE, "UpgradeOperator", to).decode_function_input(data)
        return _described(function.fn_name, arguments)
    except (Web3Exception, InputError, ValueError) as exc:
        return [f"{NOT_UNDERSTOOD}: data 0x{data[:4].hex()}..., {len(data)} bytes ({type(exc).__name__})"]


def _described(name: str, arguments: dict[str, Any]) -> list[str]:
    if name == "propose":
        content = arguments["content"]
        staged = [f"  rollback, if owner and guardian agree: {one}" for one in _sentences(content["rollback"])]
        grants = [f"  {one}" for one in _sentences(content["actions"])]
        return ["propose, to be in force after the delay:", *grants, *staged, f"  content: {printable(content['uri'])}"]
    if name == "deny":
        return ["deny, in force at once:", *(f"  {denial_sentence(one)}" for one in _actions(arguments["actions"]))]
    if name in ("cancel", "execute", "agreeToRollback", "rollBack"):
        words = {"agreeToRollback": "agree to the rollback of", "rollBack": "roll back"}.get(name, name)
        return [f"{words} proposal 0x{arguments['id'].hex()}"]
    if name == "adopt":
        return [f"accept the ownership of contract {arguments['target']}"]
    if name in ("acceptOwnership", "acceptGuardian"):
        return ["become owner" if name == "acceptOwnership" else "become guardian"]
    return [f"{NOT_UNDERSTOOD}: {name}"]


def _sentences(actions: Sequence[Any]) -> list[str]:
    return [grant_sentence(action) for action in _actions(actions)]


def _actions(actions: Sequence[Any]) -> list[Action]:
    return [Action(Kind(one["kind"]), Web3.to_checksum_address(one["target"]), bytes(one["data"])) for one in actions]
