"""`dstack govern`, as owners use it: a 2-of-3 Safe from deploy to execution and cancellation, a key, nested Safes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from web3 import Web3

from dstack.chain.bindings import contract_at, encode_call
from dstack.chain.deploy import deploy_contract
from dstack.chain.tx import Call, send
from dstack.devnet.anvil import Anvil
from dstack.measurement.event_log import replay_event_log
from dstack.simulator.os_image import make_image
from tests.govern_world import DEVICE, IMAGE, OTHER_IMAGE, GovernWorld


@pytest.fixture
def world(tmp_path: Path, project_root: Path) -> Iterator[GovernWorld]:
    """A fresh chain."""
    with Anvil.start() as chain:
        yield GovernWorld(chain, tmp_path, project_root)


def test_a_safe_goes_from_deploy_to_an_executed_and_a_cancelled_proposal(world: GovernWorld) -> None:
    """A 2-of-3 Safe proposes, reviews, signs offline, submits, executes and cancels, with nothing but the CLI."""
    safe = world.safe("alice", "bob", "carol")
    deployed = world.deploy(safe)
    app = world.app()
    compose = world.compose("app-compose.json")

    proposed = world.govern(
        *("propose", "--app", app, "--compose", compose, "--image-digest", IMAGE, "--allow-image"),
        *("--uri", "ipfs://one", "--out", world.path("one.json")),
    ).facts
    assert proposed["safe"] == safe
    assert proposed["cut_off"] == []

    reviewed = world.govern("review", "--file", world.path("one.json"), "--compose", compose).facts
    assert reviewed["reproduced"] is True
    assert (reviewed["digest"], reviewed["expected_id"]) == (proposed["digest"], proposed["expected_id"])

    submitted = world.submit("one.json", "carol", "alice").facts
    assert submitted["id"] == proposed["expected_id"]
    twice = world.govern("submit", world.path("one.json"), *world.key("payer"))
    assert "transaction 0 was made or replaced already; its next is 1" in twice.refusal

    assert world.govern("review", submitted["id"], "--compose", compose).facts["state"] == "Waiting"
    early = world.govern("execute", submitted["id"], *world.key("stranger"))
    assert (early.code, "want it Ready, it is Waiting" in early.refusal) == (1, True)

    world.warp(hours=48)
    executed = world.govern("execute", submitted["id"], *world.key("stranger")).facts
    assert executed["block"] == world.w3.eth.block_number
    status = world.govern("status").facts
    assert status["os_images"] == [IMAGE]
    assert [version["number"] for version in status["apps"][app]["versions"]] == [1]

    second = world.compose("second.json", image="nginx:2")
    sunset = datetime.fromtimestamp(world.w3.eth.get_block("latest")["timestamp"], UTC) + timedelta(days=20)
    again = world.govern(
        *("propose", "--app", app, "--compose", second, "--image-digest", IMAGE, "--sunset", sunset.isoformat()),
        *("--previous", compose, "--out", world.path("two.json")),
    ).facts
    assert "version 1" in again["cut_off"][0]
    assert any(line.startswith("+") and "nginx:2" in line for line in again["compose_diff"])
    waiting = world.submit("two.json", "bob", "carol").facts

    world.govern("cancel", waiting["id"], "--out", world.path("cancel.json"))
    assert world.submit("cancel.json", "alice", "bob").code == 0
    world.warp(hours=48)
    late = world.govern("execute", waiting["id"], *world.key("stranger"))
    assert (late.code, "it is Cancelled" in late.refusal) == (1, True)
    kms_auth = contract_at(world.w3, "KmsAuth", deployed["kms_auth"])
    assert kms_auth.functions.allowedOsImages(bytes.fromhex(IMAGE)).call()


def test_a_single_key_proposes_denies_and_freezes(world: GovernWorld) -> None:
    """An owner with one key needs no signing file; the guardian denies and freezes, and nothing else."""
    world.deploy(world.account("owner"))
    app = world.app()
    made = world.govern("propose", f"OsImage={IMAGE}", f"Device:{app}={'ab' * 32}", *world.key("owner")).facts
    world.warp(hours=48)
    world.govern("execute", made["id"], *world.key("stranger"))

    denied = world.govern("deny", f"OsImage={IMAGE}", "--as", "guardian", *world.key("guardian")).facts
    frozen = world.govern("freeze", app, "--as", "guardian", *world.key("guardian")).facts
    again = world.govern("freeze", app, "--as", "guardian", *world.key("guardian"))
    refused = world.govern("propose", f"OsImage={IMAGE}", *world.key("guardian"))

    status = world.govern("status").facts
    assert "every KMS and every app" in denied["cut_off"][0]
    assert "7 days" in frozen["sentence"]
    assert again.code == 1
    assert "the key is of" in refused.refusal
    assert status["os_images"] == []
    assert status["apps"][app]["devices"] == sorted([DEVICE, "ab" * 32])
    assert status["apps"][app]["frozen_until"] is not None


def test_a_safe_owned_by_a_safe_agrees_on_the_chain(world: GovernWorld) -> None:
    """The outer Safe's owners sign its approval of the inner one's transaction; it then counts as a signature."""
    parent = world.safe("dora", "emil", threshold=2)
    child = world.safe("alice", parent, threshold=2)
    world.deploy(child)
    world.govern("propose", f"OsImage={IMAGE}", "--out", world.path("child.json"))
    world.govern("sign", world.path("child.json"), "--yes", *world.key("alice"))
    too_few = world.govern("submit", world.path("child.json"), *world.key("payer"))

    approval = world.govern(
        *("approve", world.path("child.json"), "--safe", parent, "--out", world.path("parent.json"))
    ).facts
    shown = world.run("govern", "sign", world.path("parent.json"), "--inner", world.path("child.json"), "--show")
    assert world.submit("parent.json", "emil", "dora").code == 0
    submitted = world.govern("submit", world.path("child.json"), *world.key("payer")).facts

    assert "want 2 signatures of its 2 owners, got 1" in too_few.refusal
    assert approval["safe"] == parent
    assert IMAGE in shown.out
    assert submitted["id"].startswith("0x")
    keys = world.govern("powers").facts["keys"]["owner"]
    assert [line.split()[0] for line in keys] == ["Safe", "key", "Safe", "key", "key"]


def test_the_calendar_tells_what_becomes_possible_and_what_ends(world: GovernWorld) -> None:
    """Each moment is announced before it comes: execution, expiry, the end of a superseded version."""
    world.deploy(world.account("owner"))
    app = world.app()
    first, second = world.compose("1.json"), world.compose("2.json", image="other")
    one = world.govern("propose", "--app", app, "--compose", first, "--image-digest", IMAGE, *world.key("owner")).facts
    world.warp(hours=48)
    world.govern("execute", one["id"], *world.key("stranger"))
    now = datetime.fromtimestamp(world.w3.eth.get_block("latest")["timestamp"], UTC)
    sunset = now + timedelta(days=10)
    two = world.govern(
        *("propose", "--app", app, "--compose", second, "--image-digest", OTHER_IMAGE),
        *("--sunset", sunset.isoformat(), *world.key("owner")),
    ).facts

    entries = world.govern("calendar").facts["entries"]
    then = world.govern("calendar", "--at", (now + timedelta(days=3)).isoformat()).facts

    assert [entry["at"] for entry in entries] == [two["ready_at"], sunset.isoformat(), two["expires_at"]]
    assert "version 1 of app" in entries[1]["sentence"]
    assert len(then["entries"]) == 1
    assert [line.split(":")[0] for line in then["allowed"]] == [
        f"app {app}",
        f"if somebody executes {two['id'][:10]}...",
    ]


def test_owner_and_guardian_roll_back_together(world: GovernWorld) -> None:
    """A rollback that was announced with its upgrade runs without waiting once both agreed."""
    world.deploy(world.account("owner"))
    made = world.govern(
        "propose", f"OsImage={IMAGE}", "--rollback", f"OsImage={OTHER_IMAGE}", *world.key("owner")
    ).facts
    world.warp(hours=48)
    world.govern("execute", made["id"], *world.key("stranger"))

    agreed = world.govern("rollback", made["id"], *world.key("owner")).facts
    ran = world.govern("rollback", made["id"], "--as", "guardian", *world.key("guardian")).facts

    assert (agreed["runs"], ran["runs"]) == (False, True)
    assert world.govern("status").facts["os_images"] == sorted([IMAGE, OTHER_IMAGE])
    names = [event["event"] for event in world.govern("history").facts["events"]]
    assert names[-4:] == ["RollbackAgreed", "ProposalRolledBack", "OsImageHashAdded", "PolicyChanged"]


def test_ownership_is_handed_on_in_two_steps(world: GovernWorld) -> None:
    """A new guardian is proposed, waits, and must accept; until then the old one stays."""
    world.deploy(world.account("owner"))
    successor = world.account("successor")
    made = world.govern("propose", f"Guardian={successor}", *world.key("owner")).facts
    world.warp(hours=48)
    world.govern("execute", made["id"], *world.key("stranger"))

    before = world.govern("status").facts
    stranger = world.govern("accept", "--as", "guardian", *world.key("stranger"))
    world.govern("accept", "--as", "guardian", *world.key("successor"))

    assert (before["guardian"], before["nominations"]) == (
        world.account("guardian"),
        [{"role": "Guardian", "account": successor}],
    )
    assert stranger.code == 1
    assert world.govern("status").facts["guardian"] == successor


def test_an_image_folder_and_registers_are_proposed_and_reproduced(world: GovernWorld) -> None:
    """A reviewer with the same files gets the same hashes; content that was allowed once is a rollback."""
    world.deploy(world.account("owner"))
    app, compose = world.app(), world.compose("1.json")
    image = make_image()
    (world.folder / "image").mkdir()
    for name, content in image.files.items():
        world.write(f"image/{name}", content)
    replayed = replay_event_log(image.boot_log(image.vm_config()))
    values = [image.mr_td(image.vm_config()), replayed[0], replayed[1], replayed[2]]
    names = ("mrtd", "rtmr0", "rtmr1", "rtmr2")
    exact = dict(zip(names, [value.hex() for value in values], strict=True))
    version = ("propose", "--app", app, "--compose", compose, "--image", world.path("image"))
    registers = ("--registers", world.write("registers.json", json.dumps([exact])))

    first = world.govern(*version, *registers, *world.key("owner")).facts
    review = ("review", first["id"], "--compose", compose)
    reviewed = world.govern(*review, "--image", world.path("image")).facts
    unseen = world.govern(*review).facts
    world.warp(hours=48)
    assert world.govern("execute", first["id"], *world.key("stranger")).code == 0
    again = world.govern(*version, *registers, "--supersedes", "0", *world.key("owner")).facts
    world.warp(hours=48)
    assert world.govern("execute", again["id"], *world.key("stranger")).code == 0

    assert {finding["result"] for finding in reviewed["findings"]} == {"reproduced"}
    assert [one["what"] for one in unseen["findings"] if one["result"] == "not looked at"] == [
        "OS image hash",
        "registers",
    ]
    versions = world.govern("status").facts["apps"][app]["versions"]
    assert [(one["number"], one["is_rollback"]) for one in versions] == [(2, True)]


def test_a_contract_as_owner_gets_the_call_to_make(world: GovernWorld) -> None:
    """For a Governor or a timelock the tool simulates, and prints target and data."""
    world.account("payer")
    payer = world.keys["payer"]
    other = deploy_contract(world.w3, payer, "AppAuth")
    operator = world.deploy(other)["operator"]

    refused = world.govern("propose", f"OsImage={IMAGE}", *world.key("owner"))
    printed = world.govern("propose", f"OsImage={IMAGE}", "--print-call").facts

    assert "is a contract and no Safe; want --print-call" in refused.refusal
    assert (printed["from"], printed["to"]) == (other, operator)
    assert printed["data"].startswith("0x")


def test_an_offered_contract_is_adopted(world: GovernWorld) -> None:
    """A KmsAuth of somebody else's becomes governed once it was offered and the owner accepts it."""
    operator = world.deploy(world.account("owner"))["operator"]
    payer = world.keys["payer"]
    implementation = deploy_contract(world.w3, payer, "KmsAuth")
    set_up = encode_call("KmsAuth", "initialize", payer.address, "0x" + "00" * 20)
    kms_auth = deploy_contract(world.w3, payer, "ERC1967Proxy", implementation, set_up)

    early = world.govern("adopt", kms_auth, *world.key("owner"))
    send(world.w3, payer, Call(kms_auth, encode_call("KmsAuth", "transferOwnership", operator)))
    world.govern("adopt", kms_auth, *world.key("owner"))

    assert early.code == 1
    assert contract_at(world.w3, "KmsAuth", kms_auth).functions.owner().call() == operator


def test_a_denial_stops_what_was_proposed_of_it(world: GovernWorld) -> None:
    """The denial names the proposals that it stops, and they are stopped."""
    world.deploy(world.account("owner"))
    made = world.govern("propose", f"OsImage={IMAGE}", *world.key("owner")).facts

    denied = world.govern("deny", f"OsImage={IMAGE}", "--as", "guardian", *world.key("guardian")).facts
    world.warp(hours=48)
    late = world.govern("execute", made["id"], *world.key("stranger"))

    assert denied["stopped"] == [f"proposal {made['id']} can no longer be executed"]
    assert "denied at" in late.refusal


def test_a_look_alike_is_named_when_it_is_proposed_and_when_it_is_reviewed(world: GovernWorld) -> None:
    """An account with both ends of a known one, and a name that reads like the one before, are warned of."""
    owner, safe = world.account("owner"), world.safe("alice", "bob", "carol")
    world.deploy(safe)
    twin = Web3.to_checksum_address(safe[:6] + "5" * 32 + safe[-4:])
    compose = world.compose("app-compose.json")
    cyrillic = world.write("other.json", Path(compose).read_bytes().replace(b'"web"', '"w\u0435b"'.encode()))

    made = world.govern("propose", f"Guardian={twin}", "--uri", "ipfs://x", "--out", world.path("twin.json")).facts
    reviewed = world.govern("review", "--file", world.path("twin.json"), "--compose", compose, "--compose", cyrillic)
    honest = world.govern("propose", f"Guardian={owner}", "--out", world.path("honest.json")).facts

    warning = f"! LOOK-ALIKE: GUARDIAN names {twin}, which is not the owner {safe}"
    assert made["warnings"] == [warning]
    assert honest["warnings"] == []
    said = json.loads(reviewed.out)["warnings"]
    assert said[0] == warning
    assert "! LOOK-ALIKE: name 'web' is not 'w\u0435b'" in said


def test_a_genesis_is_proposed_once_and_an_anchor_is_put_on_record(world: GovernWorld) -> None:
    """Shown as nothing, as pending and as recorded; a second one is refused before anything is sent."""
    world.deploy(world.account("owner"))
    app = world.app()
    first = ("--fingerprint", "f1" * 32, "--evidence", "e1" * 32)
    nothing = world.govern("genesis", app).facts
    made = world.govern("genesis", app, *first, *world.key("owner")).facts
    pending = world.govern("genesis", app).facts
    world.warp(hours=48)
    world.govern("execute", made["id"], *world.key("stranger"))
    recorded = world.govern("genesis", app).facts
    again = world.govern("genesis", app, *first, *world.key("owner"))
    anchored = world.govern("anchor", "7e" * 32, "--app", app, *world.key("stranger")).facts
    events = world.govern("history", "--event", "ReceiptAnchored").facts["events"]

    genesis = {"fingerprint": "f1" * 32, "evidence": "e1" * 32}
    assert (nothing["recorded"], nothing["pending"]) == (None, [])
    assert pending["pending"] == [{"id": made["id"], **genesis}]
    assert (recorded["recorded"], recorded["pending"]) == (genesis, [])
    assert (again.code, "is never replaced" in again.refusal) == (1, True)
    assert anchored["by"] == world.account("stranger")
    assert [event["arguments"]["digest"] for event in events] == ["0x" + "7e" * 32]


def test_key_epochs_and_kms_info_are_proposed(world: GovernWorld) -> None:
    """Both are in the status once executed; the calendar tells when the epoch before ends."""
    world.deploy(world.account("owner"))
    info = {"k256_pubkey": "02" * 33, "ca_pubkey": "04" * 65, "quote": "0a", "eventlog": ""}
    path = world.write("kms-info.json", json.dumps(info))
    made = world.govern("propose", "KeyEpoch=1,86400", "--kms-info", path, *world.key("owner")).facts
    world.warp(days=7)
    world.govern("execute", made["id"], *world.key("stranger"))

    status, calendar = world.govern("status").facts, world.govern("calendar").facts["entries"]

    assert status["key_epoch"] == 1
    assert [entry["sentence"] for entry in calendar] == ["keys of epoch 0 are no longer given, only those of epoch 1"]
    assert calendar[0]["at"] == status["previous_epoch_until"]


def test_history_is_followed_until_it_is_interrupted(world: GovernWorld) -> None:
    """A proposal that is made later is shown as it is mined; Ctrl-C ends it without a traceback."""
    world.deploy(world.account("owner"))
    command = [sys.executable, "-m", "dstack.cli", "govern", "history", "--follow", "--event", "ProposalQueued"]
    settings = {"DSTACK_RPC_URL": world.chain.rpc_url, "DSTACK_DEPLOYMENT": world.path("deployment.json")}
    with subprocess.Popen(
        command,
        cwd=world.project_root,
        env=os.environ | settings | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As at a terminal: who starts the tests in the background has their children ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "\n"  # nothing has happened; it follows from here on
        made = world.govern("propose", f"OsImage={IMAGE}", *world.key("owner")).facts
        line = program.stdout.readline()
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=60)

    assert f"ProposalQueued 0x{made['id'][2:]}" in line or made["id"] in line
    assert IMAGE in line
    assert (program.returncode, "Traceback" in said) == (130, False)
