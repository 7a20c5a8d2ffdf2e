"""Which gateway an app is told of: the one that the same answer names by which it gets its keys."""

from __future__ import annotations

import json
from contextlib import closing

import httpx

from dstack.chain.endpoints import Endpoints
from dstack.chain.kms_auth import KmsAuthReader
from dstack.transport.listener import Listener
from dstack.transport.tls import client_context, server_context
from kms.app import kms_app
from kms.authorities import Authority
from kms.authorization import SelfAuthorization
from kms.generation import generate_keys
from kms.release import KeyRelease
from kms.service import KmsService
from kms.webhook import WebhookAuthority
from tests.http_answers import answering
from tests.rpc_nodes import TARGET, Node, running
from tests.unit.chain.test_kms_auth import kms_auth
from tests.unit.kms.conftest import APP_ID, AT, World, app_machine, client_identity

ABOUT = {
    "status": "ok",
    "kmsContractAddr": TARGET,
    "gatewayAppId": "the common gateway",
    "chainId": 1,
    "appImplementation": TARGET,
}


def told(world: World, authority: Authority, *, times: int = 1, between: Node | None = None) -> list[tuple[str, str]]:
    """The gateway in each of so many answers of GetAppKey, under both names; *between* them it goes a block further."""
    keys = generate_keys("localhost", world.machine, at=AT)
    release = KeyRelease(
        keys.roots, SelfAuthorization(world.machine, world.verifier, authority), world.verifier, authority
    )
    service = KmsService(keys, release, authority, None, simulated=True)
    tls = server_context(keys.rpc, client_ca_pem=keys.temp_ca.certificate_pem)
    asking = client_context(ca_pem=keys.root_ca_pem, identity=client_identity(app_machine(), keys.temp_ca))
    gateways = []
    with Listener(kms_app(service), tls=tls).running() as listener:
        for _ in range(times):
            answer = httpx.post(f"https://localhost:{listener.port}/prpc/GetAppKey?json", content="{}", verify=asking)
            gateways.append((answer.json()["gateway_app_id"], answer.json()["tproxy_app_id"]))
            if between is not None:
                between.head += 1
    return gateways


def test_the_chain_names_it_in_the_block_of_the_decision(world: World) -> None:
    """However long ago anybody asked before: what the contract says now is what the app is told."""
    node = Node(say=kms_auth())
    with (
        running(node),
        closing(Endpoints([node.url], head_seconds=0)) as endpoints,
        closing(KmsAuthReader(endpoints, TARGET)) as authority,
    ):
        authority.check()
        gateways = told(world, authority, times=3, between=node)

    assert gateways == [("gateway 100",) * 2, ("gateway 101",) * 2, ("gateway 102",) * 2]


def test_an_auth_server_may_name_one_for_each_app(world: World) -> None:
    """Upstream's KMS passes on what the answer about the app says; what the server says of itself is for GetMeta."""

    def say(method: str, _path: str, body: bytes) -> tuple[int, bytes]:
        if method == "GET":
            return 200, json.dumps(ABOUT).encode()
        gateway = "the app's gateway" if json.loads(body)["appId"] == APP_ID.hex() else ""
        return 200, json.dumps({"isAllowed": True, "reason": "", "gatewayAppId": gateway}).encode()

    with answering(say) as server, closing(WebhookAuthority(server.url)) as authority:
        authority.check()
        gateways = told(world, authority)

    assert gateways == [("the app's gateway",) * 2]
