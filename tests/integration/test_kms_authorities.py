"""The KMS program and who decides for it: an auth server in upstream's form, and a chain that stops answering."""

from __future__ import annotations

import re
import signal
import time
from contextlib import closing

import httpx
import pytest

from dstack.chain.client import ChainClient
from dstack.chain.kms_auth import KmsAuthReader
from dstack.devnet.http import wait_for
from dstack.devnet.programs import Programs
from dstack.errors import KeyReleaseDeniedError, PeerUnavailableError
from dstack.guest.host_shared import InstanceInfo
from dstack.transport.listener import Listener
from kms.auth_eth import EthereumDecider
from kms.auth_server import auth_app
from kms.decision_log.store import open_store
from tests.integration.test_kms_program import APP, SECONDS, Around, around, bootstrap, start

assert around


def test_an_auth_server_decides(around: Around) -> None:
    """With a webhook the KMS starts, is denied, gets allowed and releases keys by the server's word alone."""
    reader = KmsAuthReader(
        ChainClient(around.chain.chain.rpc_url, block_tag="latest"), around.chain.own_kms_auth.address
    )
    with Programs(around.folder) as programs:
        with Listener(auth_app(EthereumDecider(reader, "http://rpc"))).running() as server:
            settings = around.config.read_text().partition("[core.auth_api.chain]")[0]
            webhook = f'[core.auth_api]\ntype = "webhook"\nwebhook.url = "http://127.0.0.1:{server.port}"\n'
            around.config.write_text(settings + webhook)
            first = start(programs, around)
            wait_for(f"{around.onboard}/health", first, seconds=SECONDS)
            info = httpx.get(f"{around.onboard}/prpc/Onboard.GetAttestationInfo").json()
            first.stop()
            bootstrap(around, programs)
            with pytest.raises(KeyReleaseDeniedError, match="App not allowed: Boot denied: Compose hash not allowed"):
                around.guest("early")
            around.allow_app("addComposeHash", around.site.shared(APP, InstanceInfo()).app_compose.compose_hash)
            booted = around.guest("late")
            meta = httpx.post(f"{around.url}/prpc/GetMeta?json", verify=False).json()
        with pytest.raises(
            PeerUnavailableError, match=r"could not ask: auth server http://127\.0\.0\.1:\d+: cannot be reached"
        ):
            around.guest("too late")
        with closing(open_store(f"sqlite:///{around.folder}/certs/decisions.sqlite3", read_only=True)) as store:
            blocks = {entry.members().get("block") for entry in store.entries()}

    assert booted.provided.keys.k256_signature != b""
    assert (meta["chain_id"], meta["kms_contract_address"]) == (31337, around.chain.own_kms_auth.address)
    assert blocks == {None}
    assert (info["kms_contract_address"], info["eth_rpc_url"]) == (meta["kms_contract_address"], "http://rpc")


def test_meta_and_temporary_authority_do_not_wait_for_the_chain(around: Around) -> None:
    """With every endpoint silent both are told within less than an endpoint's deadline; what needs the chain is not."""
    with Programs(around.folder) as programs:
        bootstrap(around, programs)
        with httpx.Client(verify=False, timeout=1.5) as client:

            def ask(method: str, body: str = "{}") -> httpx.Response:
                return client.post(f"{around.url}/prpc/{method}?json", content=body)

            ends = time.monotonic() + SECONDS
            # What is told without waiting was asked once before.
            while (before := ask("GetMeta").json())["chain_id"] is None or ask("GetTempCaCert").status_code != 200:
                assert time.monotonic() < ends
                time.sleep(0.05)
            around.chain.chain.process.send_signal(signal.SIGSTOP)
            try:
                answers = [ask(method) for method in ("GetMeta", "GetTempCaCert") for _ in range(3)]
                key = client.post(
                    f"{around.url}/prpc/GetAppEnvEncryptPubKey?json", json={"app_id": "00" * 20}, timeout=30
                )
            finally:
                around.chain.chain.process.send_signal(signal.SIGCONT)

    assert [answer.status_code for answer in answers] == [200] * 6
    assert answers[0].json() == before
    assert (key.status_code, key.json()["kind"]) == (400, "unavailable")
    assert re.search("could not ask: .*no answer within 2 s", key.json()["error"])
