"""`python -m kms.auth_eth`: an auth server that asks the contracts; upstream's auth-eth, for KMS that want a webhook.

Environment variables (upstream's):
  HOST, PORT            where to answer; 127.0.0.1 and 8000
  ETH_RPC_URL           chain endpoints, one or several with commas between; more than half must agree
  KMS_CONTRACT_ADDR     address of KmsAuth
  ETH_CHAIN_ID          the chain; endpoints on another are not believed
  ETH_FINALITY_CONFIRMATIONS
                        taken up to 64 and without effect: finalized blocks have more
Ours:
  ETH_BLOCK_TAG         finalized; on development chains (ETH_CHAIN_ID 1337 or 31337) also safe or latest

Unlike upstream's, which asks at the newest block, this asks at the finalized one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from pydantic import ValidationError

from dstack.chain.kms_auth import KmsAuthReader
from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy import BootInfo, Granted
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, InstanceId, OsImageHash
from kms.auth_server import ZERO_ADDRESS, Answer, BootRequest, Kind, padded, serve
from kms.authorities import chain_endpoints
from kms.chain_settings import Chain

DEFAULT_PORT = 8000
MOST_CONFIRMATIONS = 64


class EthereumDecider:
    """Asks KmsAuth."""

    def __init__(self, reader: KmsAuthReader, shown_rpc_url: str) -> None:
        """Take the reader, and what may be shown of its endpoints."""
        self._reader = reader
        self._shown_rpc_url = shown_rpc_url

    def decide(self, kind: Kind, request: BootRequest) -> Answer:
        """As `Decider`: the contract's answer, with the gateway it names."""
        boot = boot_info_of(request)
        ask = self._reader.authorize_app if kind == "app" else self._reader.authorize_kms
        decision, gateway = ask(boot), self._reader.gateway_app_id()
        if isinstance(decision, Granted):
            return Answer(True, "", gateway)
        return Answer(False, decision.reason, gateway)

    def about(self) -> Mapping[str, object]:
        """As `Decider`."""
        self._reader.gateway_app_id()
        facts = self._reader.recent_facts()
        if facts is None:
            raise ChainUnavailableError("KmsAuth: nothing was read yet")
        return {
            "kmsContractAddr": facts.kms_contract,
            "ethRpcUrl": self._shown_rpc_url,
            "gatewayAppId": facts.gateway_app_id,
            "chainId": facts.chain_id,
            "appAuthImplementation": facts.app_implementation,
            "appImplementation": facts.app_implementation,
        }


def boot_info_of(request: BootRequest) -> BootInfo:
    """What the contracts are asked about. It is a claim here: the KMS that asks has verified it.

    Raises:
        InputError: A value is not hexadecimal, or too long.
    """
    return BootInfo(
        app_id=AppId(padded(request.app_id, AppId.SIZE, "appId")),
        compose_hash=ComposeHash(padded(request.compose_hash, 32, "composeHash")),
        instance_id=InstanceId(padded(request.instance_id, InstanceId.SIZE, "instanceId")),
        device_id=DeviceId(padded(request.device_id, 32, "deviceId")),
        mr_aggregated=Digest32(padded(request.mr_aggregated, 32, "mrAggregated")),
        mr_system=Digest32(padded(request.mr_system, 32, "mrSystem")),
        os_image_hash=OsImageHash(padded(request.os_image_hash, 32, "osImageHash")),
        tcb_status=request.tcb_status,
        advisory_ids=tuple(request.advisory_ids),
    )


@contextmanager
def opened_decider(environment: Mapping[str, str]) -> Iterator[EthereumDecider]:
    """The decider that the environment describes; the chain is not asked yet. Its connections are closed at the end.

    Raises:
        ConfigError: A variable is missing or not of its form.
    """
    _require_confirmations(environment.get("ETH_FINALITY_CONFIRMATIONS") or "0")
    settings: dict[str, Any] = {
        "rpc_urls": (environment.get("ETH_RPC_URL") or "http://localhost:8545").split(","),
        "kms_contract": environment.get("KMS_CONTRACT_ADDR") or ZERO_ADDRESS,
        "block_tag": environment.get("ETH_BLOCK_TAG") or "finalized",
    }
    if chain_id := environment.get("ETH_CHAIN_ID"):
        settings["chain_id"] = int(chain_id) if chain_id.isascii() and chain_id.isdigit() else chain_id
    try:
        chain = Chain.model_validate(settings)
    except ValidationError as exc:
        problems = (f"{_variable(one['loc'])}: {one['msg'].removeprefix('Value error, ')}" for one in exc.errors())
        raise ConfigError("; ".join(problems)) from None
    with (
        closing(chain_endpoints(chain)) as endpoints,
        closing(KmsAuthReader(endpoints, chain.kms_contract)) as reader,
    ):
        yield EthereumDecider(reader, chain.shown_rpc_url)


def _require_confirmations(text: str) -> None:
    if not text.isascii() or not text.isdigit() or int(text) > MOST_CONFIRMATIONS:
        raise ConfigError(f"ETH_FINALITY_CONFIRMATIONS: want 0 to {MOST_CONFIRMATIONS}, got {text[:20]!r}")


def _variable(place: tuple[int | str, ...]) -> str:
    names = {
        "rpc_urls": "ETH_RPC_URL",
        "kms_contract": "KMS_CONTRACT_ADDR",
        "chain_id": "ETH_CHAIN_ID",
        "block_tag": "ETH_BLOCK_TAG",
    }
    return names.get(str(place[0]), "environment") if place else "ETH_BLOCK_TAG"


if __name__ == "__main__":
    sys.exit(serve(__doc__ or "", DEFAULT_PORT, opened_decider))
