"""One act of owner or guardian: sent with their key, or written down for the owners of their Safe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from eth_typing import ChecksumAddress

from dstack.chain.safe_account import read_safe
from dstack.chain.tx import Call, send, simulate, translated
from dstack.cli.govern.connection import Connection, answer, progress
from dstack.cli.govern.keys import key_options, load_key
from dstack.cli.govern.outcome import outcome
from dstack.cli.govern.signing import file_facts, file_lines, make_signing_file, nonce_option, out_option
from dstack.errors import InputError, RefusedError


def acting_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command by which an owner or guardian acts."""
    call = click.option("--print-call", is_flag=True, help="Only print target and data, for a Governor or timelock.")
    return key_options(out_option(nonce_option(call(function))))


def role_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """In which role the caller acts, where both owner and guardian may."""
    return click.option(
        "--as",
        "role",
        type=click.Choice(["owner", "guardian"]),
        default="owner",
        show_default=True,
        help="In which role.",
    )(function)


def account_of(connection: Connection, role: str) -> ChecksumAddress:
    """Who has the role *role* now."""
    return connection.operator.owner() if role == "owner" else connection.operator.guardian()


def act(
    connection: Connection,
    call: Call,
    account: ChecksumAddress,
    *,
    role: str,
    as_json: bool,
    facts: Mapping[str, object],
    lines: list[str],
    out: str | None,
    nonce: int | None,
    print_call: bool,
    **key: Any,
) -> None:
    """Have *account* make *call*: with its key, by a signing file if it is a Safe, or by whoever reads the print.

    Raises:
        RefusedError: A contract would refuse, or the key is not of *account*.
        InputError: There is no way given to act for an account of this sort.
        ChainUnavailableError: The endpoint does not answer.
    """
    assert call.to is not None
    if print_call:
        simulate(connection.w3, account, call)
        shown = {"from": account, "to": call.to, "data": "0x" + call.data.hex()}
        answer(as_json, dict(facts) | shown, lines + [f"{name:5} {value}" for name, value in shown.items()])
        return
    safe = read_safe(connection.w3, account)
    if safe is not None:
        if out is None:
            raise InputError(f"{role}: {account} is a Safe; want --out, the file that its owners sign")
        file = make_signing_file(connection.w3, safe, call, out=out, nonce=nonce)
        written = [*file_lines(file), f"written to {out}; {safe.threshold} of {len(safe.owners)} owners must sign it"]
        answer(as_json, dict(facts) | file_facts(file) | {"file": out}, lines + written)
        return
    if out is not None:
        raise InputError(f"{role}: {account} is not a Safe; --out is for Safes")
    with translated():
        is_contract = bool(connection.w3.eth.get_code(account))
    if is_contract:
        raise InputError(f"{role}: {account} is a contract and no Safe; want --print-call")
    simulate(connection.w3, account, call)
    if not as_json:
        click.echo("\n".join(lines))
    signer = load_key(**key)
    if signer.address != account:
        raise RefusedError(f"{role}: it is {account}, the key is of {signer.address}")
    receipt = send(connection.w3, signer, call, say=progress)
    came = outcome(receipt, chain_id=connection.deployment.chain_id, operator=connection.deployment.operator)
    answer(as_json, dict(facts) | came.facts, came.lines)
