"""The KMS program and who decides for it: an auth server in upstream's form, and a chain that stops answering."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

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


@contextmanager
def silent_chain(around: Around) -> Iterator[None]:
    """For the length of a `with` block the chain takes questions and answers none."""
    around.chain.chain.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        around.chain.chain.process.send_signal(signal.SIGCONT)


def health(around: Around) -> tuple[int, str]:
    """What the KMS says of itself to whoever watches."""
    answer = httpx.get(f"{around.url}/health", verify=False)
    return answer.status_code, answer.text


def doctors_word(around: Around) -> tuple[str, str]:
    """What `dstack kms doctor` finds about the running KMS."""
    command = [sys.executable, "-m", "dstack.cli", "kms", "doctor", "-c", str(around.config), "--json"]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)
    (found,) = (finding for finding in said["findings"] if finding["name"] == "service")
    return found["level"], found["said"]


def test_a_kms_starts_while_the_chain_is_silent(around: Around) -> None:
    """It says that it waits, releases nothing, and goes on by itself when the chain answers."""
    here = f"https://127.0.0.1:{around.url.rpartition(':')[2]}"
    with Programs(around.folder) as programs:
        bootstrap(around, programs).stop()
        around.allow_app("addComposeHash", around.site.shared(APP, InstanceInfo()).app_compose.compose_hash)
        with silent_chain(around):
            program = start(programs, around)
            wait_for(f"{around.url}/health", program, seconds=SECONDS, verify=False)
            waiting = health(around), doctors_word(around)
            with pytest.raises(PeerUnavailableError, match="could not ask: no answer since the start: chain: "):
                around.guest("early")
            meta = httpx.post(f"{around.url}/prpc/GetMeta?json", verify=False).json()
        ends = time.monotonic() + SECONDS
        while health(around) != (200, "OK"):
            assert time.monotonic() < ends
            time.sleep(0.1)
        booted, after = around.guest("late"), doctors_word(around)
        log = program.log.read_text()

    assert waiting == ((503, "waiting for the chain"), ("unknown", f"{here}: waiting for the chain"))
    assert (meta["chain_id"], meta["kms_contract_address"]) == (None, None)
    assert booted.provided.keys.k256_signature != b""
    assert after == ("ok", f"answers at {here}")
    assert "the chain cannot be asked: chain: " in log
    assert "the chain answers as the settings want it" in log


def test_a_kms_without_keys_starts_while_the_chain_is_silent(around: Around) -> None:
    """Its page is there; keys are made when the chain has answered and permits it, and not before."""
    with Programs(around.folder) as programs:
        with silent_chain(around):
            program = start(programs, around)
            wait_for(f"{around.onboard}/health", program, seconds=SECONDS)
            waiting = httpx.get(f"{around.onboard}/health")
            permission = httpx.get(f"{around.onboard}/permission").json()
            ask = {"url": f"{around.onboard}/prpc/Onboard.Bootstrap?json", "json": {"domain": "localhost"}}
            early = httpx.post(**ask).json()
        ends = time.monotonic() + SECONDS
        while httpx.get(f"{around.onboard}/health").text != "OK":
            assert time.monotonic() < ends
            time.sleep(0.1)
        denied = httpx.post(**ask).json()
        info = httpx.get(f"{around.onboard}/prpc/Onboard.GetAttestationInfo").json()
        around.allow("addKmsAggregatedMr", bytes.fromhex(info["mr_aggregated"]))
        made = httpx.post(**ask)

    assert (waiting.status_code, waiting.text) == (503, "waiting for the chain")
    assert (permission["state"], early["kind"]) == ("waiting", "unavailable")
    assert early["error"].startswith("could not ask: no answer since the start: chain: ")
    assert (denied["rule"], made.status_code) == ("AGGREGATED_MR", 200)


def test_a_chain_that_turns_out_to_be_another_ends_the_kms(around: Around) -> None:
    """Silent at the start and wrong when it answers: the KMS ends as it would have at the start, and served nothing."""
    text = around.config.read_text()
    outcomes = []
    with Programs(around.folder) as programs:
        bootstrap(around, programs).stop()
        around.allow_app("addComposeHash", around.site.shared(APP, InstanceInfo()).app_compose.compose_hash)
        for old, new in (
            (around.chain.own_kms_auth.address, around.chain.own_app_auth.address),
            (around.chain.own_kms_auth.address, "0x" + "11" * 20),
            ("chain_id = 31337", "chain_id = 1337"),
        ):
            around.config.write_text(text.replace(old, new))
            with silent_chain(around):
                program = start(programs, around)
                wait_for(f"{around.url}/health", program, seconds=SECONDS, verify=False)
            with pytest.raises(PeerUnavailableError, match=r"could not ask: |no answer: "):
                around.guest(f"during {len(outcomes)}")
            code = program.process.wait(SECONDS)
            outcomes.append((code, program.log.read_text().splitlines()[-1]))

    assert [code for code, _ in outcomes] == [2, 2, 3]
    wanted = "does not answer as one", "no contract at 0x11", "is on chain 31337, want 1337"
    assert [part in line for part, (_, line) in zip(wanted, outcomes, strict=True)] == [True] * 3
