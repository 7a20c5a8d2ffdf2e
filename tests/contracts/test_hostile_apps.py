"""An app's contract is somebody else's code: whatever it does, KmsAuth answers, and never a yes by accident."""

from __future__ import annotations

import pytest
from eth_abi.abi import encode
from web3 import Web3

from dstack.chain.bindings import encode_call
from dstack.policy import Decision, Denied, Granted, Rule
from tests.chain_world import OS_IMAGE, ChainWorld

# What asking may cost at most, whatever the app's contract does; far below what nodes let a question use.
GAS_OF_A_QUESTION = 2_500_000


def word(number: int) -> bytes:
    """One ABI word."""
    return number.to_bytes(32, "big")


def answering(answer: bytes) -> bytes:
    """Code that returns *answer* to whatever it is asked."""
    # PUSH2 size, DUP1, PUSH1 offset 11, PUSH0, CODECOPY, PUSH0, RETURN
    return b"\x61" + len(answer).to_bytes(2, "big") + bytes.fromhex("80600a5f395ff3") + answer


def ask(world: ChainWorld, code: bytes) -> Decision:
    """KmsAuth's answer about a registered app whose contract has this code."""
    app = world.place_code(code)
    world.send(world.stranger, world.own_kms_auth, "registerApp", app)
    world.send(world.owner, world.own_kms_auth, "addOsImageHash", OS_IMAGE)
    boot = world.boot(app_id=bytes.fromhex(app[2:]))
    question = encode_call("KmsAuth", "isAppAllowed", boot.abi_tuple())
    world.w3.eth.call({"to": world.own_kms_auth.address, "data": Web3.to_hex(question), "gas": GAS_OF_A_QUESTION})
    return world.reader(world.own_kms_auth).authorize_app(boot)


HOSTILE = {
    "reverts": bytes.fromhex("5f5ffd"),
    "reverts with a megabyte": bytes.fromhex("620f42405ffd"),
    "reverts with a yes in form": answering(encode(["bool", "string"], [True, ""])).replace(
        b"\x5f\xf3", b"\x5f\xfd", 1
    ),
    "burns all gas": bytes.fromhex("5b5f56"),
    "runs an invalid instruction": bytes.fromhex("fe"),
    "answers nothing": bytes.fromhex("00"),
    "answers half a megabyte of zeros": bytes.fromhex("620900005ff3"),
    "answers in form with half a megabyte of text": bytes.fromhex("60406020526208ffa0604052620900005ff3"),
    "answers in form, one byte too long": answering(encode(["bool", "string"], [True, ""]).ljust(1025, b"\0")),
    "writes": bytes.fromhex("60015f55") + answering(encode(["bool", "string"], [True, ""])),
    "destroys itself": bytes.fromhex("5fff"),
    "answers one bare word": answering(word(1)),
    "answers two words": answering(word(1) + word(64)),
    "answers a boolean of two": answering(word(2) + word(64) + word(0)),
    "answers a boolean beyond a byte": answering(word(1 << 255) + word(64) + word(0)),
    "points its text at itself": answering(word(1) + word(0) + word(0)),
    "points its text far away": answering(word(1) + word(1 << 200) + word(0)),
    "claims a longer text than it gives": answering(word(1) + word(64) + word(1)),
    "claims an endless text": answering(word(1) + word(64) + word((1 << 256) - 1)),
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_answer_is_a_no(world: ChainWorld, code: bytes) -> None:
    """KmsAuth neither reverts nor runs out of gas nor grants; it says that the app's contract did not answer."""
    answer = ask(world, code)

    assert isinstance(answer, Denied)
    assert (answer.rule, answer.reason) == (Rule.APP_CONTRACT, "App contract did not answer")


def test_text_that_is_not_utf8_is_a_no(world: ChainWorld) -> None:
    """Foreign text reaches us as text, without control characters, and cannot break the reader."""
    answer = ask(world, answering(encode(["bool", "bytes"], [False, b"\xff\x00\x1b[31m no\n"])))

    assert isinstance(answer, Denied)
    assert (answer.rule, answer.reason) == (Rule.OTHER, "�??[31m no?")


def test_a_long_text_is_cut(world: ChainWorld) -> None:
    """What goes into logs is bounded, however much an app's contract says."""
    answer = ask(world, answering(encode(["bool", "string"], [False, "x" * 928])))

    assert isinstance(answer, Denied)
    assert answer.reason == "x" * 200


def test_a_yes_with_a_reason_against_is_a_no(world: ChainWorld) -> None:
    """A contradiction denies."""
    answer = ask(world, answering(encode(["bool", "string"], [True, "but not today"])))

    assert isinstance(answer, Denied)
    assert (answer.rule, answer.reason) == (Rule.OTHER, "but not today")


@pytest.mark.parametrize(("allowed", "reason"), [(True, ""), (False, "not on Sundays")])
def test_an_app_with_rules_of_its_own_is_heard(world: ChainWorld, allowed: bool, reason: str) -> None:
    """A foreign contract that answers in form decides for its own app."""
    answer = ask(world, answering(encode(["bool", "string"], [allowed, reason])))

    if allowed:
        assert isinstance(answer, Granted)
    else:
        assert isinstance(answer, Denied)
        assert (answer.rule, answer.reason) == (Rule.OTHER, reason)


def test_an_apps_yes_does_not_open_the_other_gates(world: ChainWorld) -> None:
    """A contract that says yes to everything still runs only allowed OS images."""
    app = world.place_code(answering(encode(["bool", "string"], [True, ""])))
    world.send(world.stranger, world.own_kms_auth, "registerApp", app)

    answer = world.reader(world.own_kms_auth).authorize_app(world.boot(app_id=Web3.to_bytes(hexstr=app)))

    assert isinstance(answer, Denied)
    assert answer.rule is Rule.OS_IMAGE
