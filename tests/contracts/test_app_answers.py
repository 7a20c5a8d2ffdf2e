"""An answer in form passes through KmsAuth unchanged, however short it is."""

from __future__ import annotations

import pytest
from eth_abi.abi import encode
from web3 import Web3

from dstack.chain.bindings import encode_call
from tests.chain_world import OS_IMAGE, ChainWorld


def question_about(world: ChainWorld, answer: bytes) -> bytes:
    """What KmsAuth returns about a registered app whose contract returns *answer* to everything."""
    # PUSH2 size, DUP1, PUSH1 offset 10, PUSH0, CODECOPY, PUSH0, RETURN
    app = world.place_code(b"\x61" + len(answer).to_bytes(2, "big") + bytes.fromhex("80600a5f395ff3") + answer)
    world.send(world.stranger, world.own_kms_auth, "registerApp", app)
    world.send(world.owner, world.own_kms_auth, "addOsImageHash", OS_IMAGE)
    question = encode_call("KmsAuth", "isAppAllowed", world.boot(app_id=bytes.fromhex(app[2:])).abi_tuple())
    return bytes(world.w3.eth.call({"to": world.own_kms_auth.address, "data": Web3.to_hex(question)}))


@pytest.mark.parametrize("said", [(True, ""), (False, ""), (True, "though"), (False, "no")])
def test_an_answer_passes_unchanged(world: ChainWorld, said: tuple[bool, str]) -> None:
    """A bare no stays a no, a bare yes a yes, and reasons are kept."""
    answer = encode(["bool", "string"], said)

    assert question_about(world, answer) == answer


@pytest.mark.parametrize("words", [(1,), (1, 0), (1, 64)])
def test_a_yes_without_its_text_is_none(world: ChainWorld, words: tuple[int, ...]) -> None:
    """One or two words are not the encoding of a truth value and a text, whatever they are."""
    answer = encode(["uint256"] * len(words), words)

    assert question_about(world, answer) == encode(["bool", "string"], [False, "App contract did not answer"])
