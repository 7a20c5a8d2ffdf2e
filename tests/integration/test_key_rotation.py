"""Keys are rotated by the owners through UpgradeOperator, under a KMS that goes on running."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from dstack.chain.action_data import EpochChange
from dstack.chain.operator import Action, Kind, execute_call
from dstack.devnet.http import call, wait_for
from dstack.devnet.programs import Programs
from dstack.errors import RefusedError
from dstack.guest.app_keys import PreviousKeys
from dstack.guest.boot import APP_KEYS
from dstack.guest.host_shared import InstanceInfo
from dstack.keys import derive_app_keys, derive_env_key, env_public_key
from dstack.keys.derivation import AppKeys, RootKeys
from dstack.keys.pem import load_private_key, p256_scalar
from dstack.measurement.identities import device_id
from tests.integration.test_kms_program import APP, SECONDS, Around, around, start

assert around

SERVED_ON = timedelta(days=2)


@pytest.fixture
def governed(around: Around) -> Iterator[Around]:
    """A KMS that serves under the contracts which UpgradeOperator owns; what it needs was proposed and executed."""
    chain, device = around.chain, device_id(around.site.pki.platform.ppid)
    settings = around.config.read_text().replace(chain.own_kms_auth.address, chain.kms_auth.address)
    around.config.write_text(settings)
    with Programs(around.folder) as programs:
        program = start(programs, around)
        wait_for(f"{around.onboard}/health", program, seconds=SECONDS)
        info = call(f"{around.onboard}/prpc/Onboard.GetAttestationInfo?json", {}).body
        chain.grant(
            chain.on_kms(Kind.OS_IMAGE, around.site.image.os_image_hash),
            chain.on_kms(Kind.KMS_DEVICE, device),
            chain.on_kms(Kind.KMS_AGGREGATED_MR, bytes.fromhex(info["mr_aggregated"])),
            chain.on_app(Kind.DEVICE, device),
            chain.on_app(Kind.COMPOSE_HASH, around.site.shared(APP, InstanceInfo()).app_compose.compose_hash),
        )
        assert call(f"{around.onboard}/prpc/Onboard.Bootstrap?json", {"domain": "localhost"}).ok
        assert call(f"{around.onboard}/finish").text == "OK"
        wait_for(f"{around.url}/health", program, seconds=SECONDS, verify=False)
        yield around


def test_owners_rotate_and_a_running_kms_follows(governed: Around) -> None:
    """Nothing changes for the 7 days of an upgrade; then both epochs are served in the window, then only the new."""
    chain = governed.chain
    rotation = Action(Kind.KEY_EPOCH, chain.kms_auth.address, EpochChange(1, int(SERVED_ON.total_seconds())).encode())

    before = _keys(governed, "before")
    proposal = chain.propose(rotation)
    proposed_at = datetime.fromtimestamp(chain.w3.eth.get_block("latest")["timestamp"], UTC)
    with pytest.raises(RefusedError, match="want it Ready, it is Waiting"):
        chain.call(execute_call(proposal))
    waiting = _keys(governed, "waiting")
    chain.warp_to(int(proposal.ready_at.timestamp()))
    executed = chain.w3.eth.get_block(chain.call(execute_call(proposal), chain.stranger)["blockNumber"])["timestamp"]
    inside = _keys(governed, "inside")
    told = {epoch: _env_key(governed, epoch) for epoch in (None, 0, 1, 2)}
    chain.warp_to(executed + int(SERVED_ON.total_seconds()))
    after = _keys(governed, "after")
    told_after = {epoch: _env_key(governed, epoch) for epoch in (None, 0, 1)}

    roots, instance = _roots(governed.folder / "certs"), governed.guest("again", app_id=chain.app_id).instance_id
    first, second = (derive_app_keys(roots, chain.app_id, instance, epoch) for epoch in (0, 1))
    env = {epoch: env_public_key(derive_env_key(roots, chain.app_id, epoch)).hex() for epoch in (0, 1)}
    assert proposal.ready_at - proposed_at == timedelta(days=7)
    assert (before, waiting) == ((first, 0, None),) * 2
    served_until = datetime.fromtimestamp(executed, UTC) + SERVED_ON
    assert inside == (second, 1, PreviousKeys(first, 0, served_until))
    assert after == (second, 1, None)
    assert told == {
        None: (env[1], 1),
        0: (env[0], 0),
        1: (env[1], 1),
        2: "key epoch: want 1, or 0 in its window, got 2",
    }
    assert told_after == {None: (env[1], 1), 0: "key epoch: want 1, or 0 in its window, got 0", 1: (env[1], 1)}


def _roots(folder: Path) -> RootKeys:
    """As they lie in the files of the KMS."""
    ca = load_private_key((folder / "root-ca.key").read_text())
    return RootKeys(ca=p256_scalar(ca), k256=(folder / "root-k256.key").read_bytes())


def _keys(around: Around, name: str) -> tuple[AppKeys, int, PreviousKeys | None]:
    """What a guest that boots now is given; it is also what it leaves for its app."""
    provided = around.guest(name, app_id=around.chain.app_id).provided
    left = json.loads((around.folder / name / APP_KEYS).read_text())
    previous = provided.previous
    assert left.get("key_epoch", 0) == provided.epoch
    assert left["k256_key"] == provided.keys.k256_key.hex()
    assert left.get("previous", {}).get("k256_key") == (previous.keys.k256_key.hex() if previous else None)
    return provided.keys, provided.epoch, previous


def _env_key(around: Around, epoch: int | None) -> tuple[str, int] | str:
    """What GetAppEnvEncryptPubKey answers about an epoch: the key and its epoch, or the error."""
    asked = {"app_id": around.chain.app_id.hex()} | ({} if epoch is None else {"key_epoch": epoch})
    answer = httpx.post(f"{around.url}/prpc/GetAppEnvEncryptPubKey?json", json=asked, verify=False).json()
    return answer["error"] if "error" in answer else (answer["public_key"], answer.get("key_epoch", 0))
