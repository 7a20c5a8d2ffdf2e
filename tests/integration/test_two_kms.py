"""Two KMS processes behind one address: the same keys, the same answers, one log of decisions in PostgreSQL."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dstack.devnet.http import call, wait_for
from dstack.devnet.programs import Program, Programs, free_port
from dstack.errors import KeyReleaseDeniedError
from dstack.guest.host_shared import InstanceInfo
from kms.decision_log.store import open_store
from kms.decision_log.verification import verify_log
from tests.balancer import balanced
from tests.integration.test_kms_program import APP, SECONDS, Around, around, bootstrap
from tests.postgres import postgres

assert around


def onboard_second(first: Around, programs: Programs) -> tuple[Around, Program]:
    """Another KMS on the same machine, which fetches the root keys of the first."""
    onboard, rpc = free_port(), free_port()
    text = first.config.read_text()
    for old, new in (
        (f"{first.folder}/certs", f"{first.folder}/certs-2"),
        (f"rpc.port = {first.url.rpartition(':')[2]}", f"rpc.port = {rpc}"),
        (f"onboard.port = {first.onboard.rpartition(':')[2]}", f"onboard.port = {onboard}"),
    ):
        assert old in text
        text = text.replace(old, new)
    config = first.folder / "kms-2.toml"
    config.write_text(text)
    second = replace(first, config=config, onboard=f"http://127.0.0.1:{onboard}", url=f"https://localhost:{rpc}")
    program = programs.start("kms-2", "kms", "-c", str(config))
    wait_for(f"{second.onboard}/health", program, seconds=SECONDS)
    answer = call(f"{second.onboard}/prpc/Onboard.Onboard?json", {"source_url": first.url, "domain": "localhost"})
    assert answer.ok, answer.text
    assert call(f"{second.onboard}/finish").text == "OK"
    wait_for(f"{second.url}/health", program, seconds=SECONDS, verify=False)
    return second, program


def port_of(url: str) -> int:
    """The port at the end of a URL."""
    return int(url.rpartition(":")[2])


def test_two_kms_behind_one_address_answer_alike(around: Around) -> None:
    """Guests that meet either, or one after the other, get the same keys or the same refusal; the log is one."""
    with postgres() as database, Programs(around.folder) as programs:
        text = around.config.read_text().replace("[core]", f'[core]\ndecisions.database_url = "{database}"')
        around.config.write_text(text)
        bootstrap(around, programs)
        second, _ = onboard_second(around, programs)
        with balanced([port_of(around.url), port_of(second.url)]) as balancer:
            shared = replace(around, url=f"https://localhost:{balancer.port}")
            for number in range(2):
                with pytest.raises(
                    KeyReleaseDeniedError, match="App not allowed: Boot denied: Compose hash not allowed"
                ):
                    shared.guest(f"early-{number}")
            around.allow_app("addComposeHash", around.site.shared(APP, InstanceInfo()).app_compose.compose_hash)
            booted = [kms.guest(f"{name}-{n}") for name, kms in _several(around, second, shared) for n in range(2)]
        metas = [call(f"{kms.url}/prpc/GetMeta?json", {}, verify=False).body for kms in (around, second)]
        with closing(open_store(database, read_only=True)) as store:
            log = verify_log(
                store.entries(), store.vouchers(), store.head(), root=bytes.fromhex(metas[0]["k256_pubkey"])
            )
            decided = [entry.members() for entry in store.entries()]
        texts = [path.read_text() for path in around.folder.glob("*.log")]

    keys = {(guest.provided.keys.k256_key, guest.provided.keys.env_crypt_key) for guest in booted}
    assert len(keys) == 1
    assert set(balancer.taken) == {port_of(around.url), port_of(second.url)}
    assert metas[0]["k256_pubkey"] == metas[1]["k256_pubkey"]
    apps = [members["decision"] for members in decided if members["subject"] == "app"]
    assert (apps, log.missing) == (["denied"] * 2 + ["granted"] * 6, 0)
    assert {"kms", "source"} <= {members["subject"] for members in decided}
    _assert_no_secret(around.folder, [json.dumps(decided), *texts])


def _several(*kms: Around) -> list[tuple[str, Around]]:
    return list(zip(("first", "second", "both"), kms, strict=True))


def _assert_no_secret(folder: Path, texts: list[str]) -> None:
    """No root key stands in any log, in hexadecimal or as it lies on the disk."""
    secrets = [(folder / "certs" / "root-k256.key").read_bytes().hex()]
    secrets += [(folder / "certs" / "root-ca.key").read_text().splitlines()[1]]
    assert [secret in text for secret in secrets for text in texts] == [False] * (len(secrets) * len(texts))
