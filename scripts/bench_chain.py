"""Questions to the chain over several endpoints: while three misbehave, and how soon a denial shows; see bench.py."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from eth_account.signers.local import LocalAccount
from web3 import Web3

from dstack.chain.bindings import encode_call
from dstack.chain.deploy import deploy_contract
from dstack.chain.endpoints import Endpoints
from dstack.chain.kms_auth import KmsAuthReader
from dstack.chain.tx import Call, send
from dstack.devnet.anvil import Anvil
from dstack.devnet.fault_run import ask_among_faults, denial_seconds
from dstack.devnet.faulty_endpoints import faulty_endpoints
from dstack.policy import BootInfo
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, InstanceId, OsImageHash

QUESTIONS = int(os.environ.get("BENCH_QUESTIONS", "10000"))
ENDPOINTS = 7
MACHINES = 50
_IMAGE, _DEVICE = OsImageHash(b"\x05" * 32), DeviceId(b"\xde" * 32)
_ALLOWED, _OTHER = ComposeHash(b"\xc0" * 32), ComposeHash(b"\xc1" * 32)
_APP_INITIALIZE = "initialize(address,bool,bool,bool,bytes32,bytes32)"


@dataclass(frozen=True)
class Contracts:
    """A KmsAuth and an app of it that one account owns, so that it can allow and deny at once."""

    w3: Web3
    owner: LocalAccount
    kms_auth: str
    app_auth: str

    @classmethod
    def deploy(cls, chain: Anvil) -> Contracts:
        """Deploy them; the app may run in one version."""
        w3, owner = chain.web3, chain.funded_account()
        implementation = deploy_contract(w3, owner, "AppAuth")
        kms_auth = _proxy(w3, owner, "KmsAuth", "initialize", owner.address, implementation)
        app_auth = _proxy(w3, owner, "AppAuth", _APP_INITIALIZE, owner.address, False, True, False, _DEVICE, _ALLOWED)
        made = cls(w3, owner, kms_auth, app_auth)
        made.call(kms_auth, encode_call("KmsAuth", "addOsImageHash", _IMAGE))
        made.call(kms_auth, encode_call("KmsAuth", "registerApp", app_auth))
        return made

    def call(self, contract: str, data: bytes) -> None:
        """A transaction of the owner."""
        send(self.w3, self.owner, Call(Web3.to_checksum_address(contract), data))

    def boots(self) -> list[BootInfo]:
        """Machines that are allowed, and as many that are not."""
        return [
            BootInfo(
                app_id=AppId(Web3.to_bytes(hexstr=Web3.to_checksum_address(self.app_auth))),
                compose_hash=compose,
                instance_id=InstanceId(bytes([number + 1]) * 20),
                device_id=_DEVICE,
                mr_aggregated=Digest32(bytes(32)),
                mr_system=Digest32(bytes(32)),
                os_image_hash=_IMAGE,
                tcb_status="UpToDate",
            )
            for number in range(MACHINES)
            for compose in (_ALLOWED, _OTHER)
        ]


def measure() -> dict[str, Any]:
    """Ask `QUESTIONS` times among faults, then deny; every answer is compared with the contract's state."""
    logging.getLogger("dstack.chain").setLevel(logging.CRITICAL)
    with Anvil.start() as chain:
        contracts = Contracts.deploy(chain)
        return {**_among_faults(chain, contracts), "denial_shows_after_seconds": round(_denial(chain, contracts), 2)}


def _among_faults(chain: Anvil, contracts: Contracts) -> dict[str, Any]:
    with faulty_endpoints(chain.rpc_url, ENDPOINTS) as endpoints:
        urls = [endpoint.url for endpoint in endpoints]
        # Blocks are kept for less than a second and mined all the time, so that little is answered from memory.
        with closing(Endpoints(urls, block_tag="latest", chain_id=31337, head_seconds=0.2)) as reader:
            began = time.monotonic()
            tally = ask_among_faults(
                KmsAuthReader(reader, contracts.kms_auth),
                endpoints,
                contracts.boots(),
                lambda boot, _: boot.compose_hash == _ALLOWED,
                count=QUESTIONS,
                change=chain.mine,
                change_seconds=0.5,
            )
            elapsed = time.monotonic() - began
    return {
        "endpoints": f"{ENDPOINTS}: one lies, one hangs, one is killed and started again, {ENDPOINTS - 3} are honest",
        "questions": QUESTIONS,
        **tally.document(),
        "questions_per_second": round(QUESTIONS / elapsed, 1),
    }


def _denial(chain: Anvil, contracts: Contracts) -> float:
    deny: Callable[[], None] = lambda: contracts.call(  # noqa: E731
        contracts.app_auth, encode_call("AppAuth", "removeComposeHash", _ALLOWED)
    )
    with faulty_endpoints(chain.rpc_url, 3) as endpoints:
        urls = [endpoint.url for endpoint in endpoints]
        with closing(Endpoints(urls, block_tag="latest", chain_id=31337)) as reader:
            return denial_seconds(KmsAuthReader(reader, contracts.kms_auth), contracts.boots()[0], deny)


def _proxy(w3: Web3, owner: LocalAccount, name: str, function: str, *arguments: Any) -> str:
    implementation = deploy_contract(w3, owner, name)
    return deploy_contract(w3, owner, "ERC1967Proxy", implementation, encode_call(name, function, *arguments))
