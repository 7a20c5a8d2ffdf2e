"""The chain and the contracts that every command of `govern` works on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from web3 import HTTPProvider, Web3
from web3.types import TxReceipt

from dstack.chain.artifacts import load_artifact
from dstack.chain.client import ChainClient
from dstack.chain.deploy import Deployment
from dstack.chain.deployment_file import MAX_FILE, parse_deployment
from dstack.chain.effects import Effects
from dstack.chain.governed import Governed, read_governed
from dstack.chain.operator_reader import OperatorReader
from dstack.chain.tx import translated
from dstack.cli.files import read_input
from dstack.errors import ConfigError

DEFAULT_DEPLOYMENT = "deployment.json"
REQUEST_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Connection:
    """One endpoint, looked at: it is on the deployment's chain, and the contracts are there."""

    w3: Web3
    client: ChainClient
    deployment: Deployment
    operator: OperatorReader
    first_block: int

    def governed(self) -> Governed:
        """Everything that the operator governs, as of the newest block."""
        return read_governed(self.w3, self.deployment, first_block=self.first_block)


def rpc_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option that names the endpoint."""
    return click.option(
        "--rpc-url", metavar="URL", envvar="DSTACK_RPC_URL", required=True, help="The chain's endpoint, JSON-RPC."
    )(function)


def connection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command which asks the chain has."""
    deployment = click.option(
        "--deployment",
        metavar="FILE",
        envvar="DSTACK_DEPLOYMENT",
        default=DEFAULT_DEPLOYMENT,
        show_default=True,
        help="Where the contracts are; `govern deploy` writes it.",
    )
    return deployment(rpc_option(json_option(function)))


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option that every command has."""
    return click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")(function)


def open_web3(rpc_url: str) -> Web3:
    """For writing to the chain behind *rpc_url*.

    Raises:
        ConfigError: The URL is not of its form.
    """
    ChainClient(rpc_url)
    provider = HTTPProvider(rpc_url, request_kwargs={"timeout": REQUEST_SECONDS}, exception_retry_configuration=None)
    return Web3(provider)


def connect(rpc_url: str, deployment_file: str) -> Connection:
    """Read the deployment file and establish that the endpoint has these contracts.

    Raises:
        ConfigError: It is another chain, or there is no contract, or another one, at an address.
        ChainUnavailableError: The endpoint does not answer.
    """
    deployment, first_block = parse_deployment(read_input(deployment_file, limit=MAX_FILE))
    w3 = open_web3(rpc_url)
    client = ChainClient(rpc_url, timeout=REQUEST_SECONDS, block_tag="latest")
    if client.chain_id != deployment.chain_id:
        raise ConfigError(f"chain id: the deployment file says {deployment.chain_id}, the endpoint {client.chain_id}")
    with translated():
        codes = {name: bytes(w3.eth.get_code(getattr(deployment, name))) for name in ("operator", "kms_auth")}
    for name, code in codes.items():
        if not code:
            raise ConfigError(f"{name}: there is no contract at {getattr(deployment, name)} on this chain")
    if not load_artifact("UpgradeOperator").is_code(codes["operator"]):
        raise ConfigError(f"operator: the code at {deployment.operator} is not the UpgradeOperator of this release")
    operator = OperatorReader(client, deployment.operator, first_block=first_block)
    return Connection(w3, client, deployment, operator, first_block)


def progress(sentence: str) -> None:
    """Tell, beside the answer, how far a transaction is."""
    click.echo(f"... {sentence}", err=True)


def mined(receipt: TxReceipt) -> dict[str, object]:
    """Where a transaction stands on the chain."""
    return {"transaction": "0x" + receipt["transactionHash"].hex(), "block": receipt["blockNumber"]}


def answer(as_json: bool, facts: Mapping[str, object], lines: Sequence[str]) -> None:
    """Print *facts* for programs, or *lines* for people."""
    click.echo(json.dumps(facts) if as_json else "\n".join(lines))


def shown_effects(effects: Effects) -> list[str]:
    """What changes and who is cut off, for people."""
    nobody = [] if effects.cut_off else ["cut off: nobody"]
    return [*effects.diff, *(f"cut off: {one}" for one in effects.cut_off), *nobody]
