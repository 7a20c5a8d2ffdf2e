"""`ape run verify_deployment`: whether a chain has our contracts, as they are committed here, joined as they must be.

    ape run verify_deployment --network ethereum:local:foundry --operator 0x.. --kms-auth 0x..

Prints one line for each thing looked at; exit code 1 when one of them is not as it must be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from ape.cli import ConnectedProviderCommand
from eth_typing import ChecksumAddress
from web3 import Web3

from dstack.chain.artifacts import load_artifact
from dstack.chain.bindings import encode_call
from dstack.chain.client import parse_address

IMPLEMENTATION_SLOT = 0x360894A13BA1A3210667C828492DB98DCA3E2076CC3735A920A3CA505D382BBC
MIN_DELAY_SECONDS = 48 * 3600
Check = tuple[str, bool, str]


@click.command(cls=ConnectedProviderCommand)
@click.option("--operator", required=True, help="UpgradeOperator.")
@click.option("--kms-auth", required=True, help="The proxy of KmsAuth.")
def cli(provider: Any, operator: str, kms_auth: str) -> None:
    """Compare code, owners and delays on the chain with what this checkout says."""
    found = list(
        checks(provider, parse_address(operator, what="--operator"), parse_address(kms_auth, what="--kms-auth"))
    )
    for what, good, got in found:
        click.echo(f"{'ok  ' if good else 'FAIL'} {what}: {got}")
    if not all(good for _, good, _ in found):
        raise SystemExit(1)


def checks(provider: Any, operator: ChecksumAddress, kms_auth: ChecksumAddress) -> Iterator[Check]:
    """What must be so: name, whether it is, and what was found."""
    yield _code(provider, "UpgradeOperator", operator, "UpgradeOperator")
    yield _code(provider, "KmsAuth's proxy", kms_auth, "ERC1967Proxy")
    implementation = _address(bytes(provider.get_storage(kms_auth, IMPLEMENTATION_SLOT)))
    yield _code(provider, "code behind KmsAuth's proxy", implementation, "KmsAuth")
    app_implementation = _address(_asked(provider, kms_auth, "KmsAuth", "appImplementation"))
    yield _code(provider, "code of new apps", app_implementation, "AppAuth")
    owner = _address(_asked(provider, kms_auth, "KmsAuth", "owner"))
    yield "owner of KmsAuth is UpgradeOperator", owner == operator, owner
    for role in ("owner", "guardian"):
        account = _address(_asked(provider, operator, "UpgradeOperator", role))
        yield f"{role} is somebody", int(account, 16) != 0, account
    delays = _asked(provider, operator, "UpgradeOperator", "delays")
    seconds = [int.from_bytes(delays[start : start + 32], "big") for start in range(0, len(delays), 32)]
    policy, roles, upgrades = (*seconds, 0, 0, 0)[:3]
    good = min(policy, roles) >= MIN_DELAY_SECONDS and upgrades >= max(policy, roles)
    yield "delays of 48 hours or more, of upgrades longest", good, f"{policy}, {roles} and {upgrades} seconds"


def _code(provider: Any, what: str, address: ChecksumAddress, artifact: str) -> Check:
    code = bytes(provider.get_code(address))
    return f"{what} at {address}", load_artifact(artifact).is_code(code), f"{len(code)} bytes of code"


def _asked(provider: Any, address: ChecksumAddress, artifact: str, function: str) -> bytes:
    """The answer of a function without arguments; nothing where there is none."""
    question = {"to": address, "data": "0x" + encode_call(artifact, function).hex()}
    answer = provider.make_request("eth_call", [question, "latest"])
    return bytes.fromhex(str(answer).removeprefix("0x"))


def _address(word: bytes) -> ChecksumAddress:
    return Web3.to_checksum_address(word[-20:].rjust(20, b"\0"))
