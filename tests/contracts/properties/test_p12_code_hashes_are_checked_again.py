"""P12: execution re-checks the code hash of every contract address that the content names."""

from __future__ import annotations

import pytest

from tests.governed_world import ZERO_ADDRESS, Action, GovernedWorld, Kind, word

CODE = bytes.fromhex("5f5ff3")
NOTHING = bytes(32)


def code_hash(world: GovernedWorld, address: str) -> bytes:
    """keccak256 of the code there; zero where there is none."""
    code = bytes(world.w3.eth.get_code(address))
    return bytes(world.w3.keccak(code)) if code else NOTHING


def naming(world: GovernedWorld) -> dict[str, Action]:
    """Actions that name an account besides their target; those accounts have code."""
    code = world.deploy(bytes.fromhex("600380600a5f395ff3") + b"\0" + CODE)
    impl = world.app_implementation
    return {
        "gateway": world.on_kms(Kind.GATEWAY_APP_ID, word(code)),
        "implementation of new apps": world.on_kms(Kind.APP_IMPLEMENTATION, word(impl)),
        "implementation": world.on_app(Kind.IMPLEMENTATION_UPGRADE, word(impl)),
        "owner": world.on_self(Kind.OWNER, word(code)),
        "guardian": world.on_self(Kind.GUARDIAN, word(code)),
        "frozen app": world.on_kms(Kind.FREEZE_RENEWAL, word(world.app.address)),
    }


NAMING = [
    "gateway",
    "implementation of new apps",
    "implementation",
    "owner",
    "guardian",
    "frozen app",
]


def test_p12_the_content_names_two_hashes_for_each_action(governed: GovernedWorld) -> None:
    """That of the target and that of the account in the data, rollback included; an account without code has zero."""
    actions = [governed.compose(), governed.on_self(Kind.OWNER, word(governed.stranger))]
    back = [governed.on_app(Kind.IMPLEMENTATION_UPGRADE, word(governed.app_implementation))]

    content = governed.content(actions, back)

    app, operator = governed.app.address, governed.operator.address
    named = [app, ZERO_ADDRESS, operator, governed.stranger, app, governed.app_implementation]
    assert content.code_hashes == [code_hash(governed, address) for address in named]


@pytest.mark.parametrize("position", range(4))
def test_p12_a_wrong_hash_cannot_be_proposed(governed: GovernedWorld, position: int) -> None:
    """Each is compared with the chain when it is announced."""
    good = governed.content([governed.compose()], [governed.on_self(Kind.OWNER, word(governed.stranger))])
    hashes = list(good.code_hashes)
    want, hashes[position] = hashes[position], b"\x77" * 32

    refusal = governed.refused(governed.owner, governed.operator, "propose", good._replace(code_hashes=hashes))

    account = [governed.app.address, ZERO_ADDRESS, governed.operator.address, governed.stranger][position]
    assert refusal == ("CodeChanged", account, want, b"\x77" * 32)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_p12_there_are_exactly_two_for_each(governed: GovernedWorld, count: int) -> None:
    """Too few or too many are refused."""
    good = governed.content([governed.compose()])
    other = good._replace(code_hashes=(good.code_hashes * 2)[:count])

    assert governed.refused(governed.owner, governed.operator, "propose", other) == ("CodeHashCount", count, 2)


@pytest.mark.parametrize("name", NAMING)
@pytest.mark.parametrize("part", ["actions", "rollback"])
def test_p12_changed_code_stops_the_execution(governed: GovernedWorld, name: str, part: str) -> None:
    """Also where only the rollback names it; and it runs again once the old code is back."""
    action = naming(governed)[name]
    actions, back = ([action], []) if part == "actions" else ([governed.compose()], [action])
    proposal = governed.propose(*actions, rollback=back)
    account = governed.w3.to_checksum_address(action.data[12:])
    old, want = bytes(governed.w3.eth.get_code(account)), code_hash(governed, account)
    governed.rpc("anvil_setCode", account, "0x" + (old + b"\0").hex())

    refusal = governed.execution_refused(proposal, at=proposal.ready_at)

    assert refusal == ("CodeChanged", account, code_hash(governed, account), want)
    governed.rpc("anvil_setCode", account, "0x" + old.hex())
    governed.execute(proposal)


def test_p12_a_target_with_other_code_stops_it_too(governed: GovernedWorld) -> None:
    """The proxy that an action is about is still that proxy."""
    proposal = governed.propose(governed.compose())
    want = code_hash(governed, governed.app.address)
    code = governed.w3.eth.get_code(governed.app.address)
    governed.rpc("anvil_setCode", governed.app.address, "0x" + code.hex() + "00")

    refusal = governed.execution_refused(proposal, at=proposal.ready_at)

    assert refusal == ("CodeChanged", governed.app.address, code_hash(governed, governed.app.address), want)


def test_p12_an_account_that_gets_code_stops_it_too(governed: GovernedWorld) -> None:
    """A successor that was a plain key when everybody looked, and is a contract now, is another successor."""
    heir = governed.chain.funded_account().address
    proposal = governed.propose(governed.on_self(Kind.OWNER, word(heir)))
    governed.rpc("anvil_setCode", heir, "0x" + CODE.hex())

    refusal = governed.execution_refused(proposal, at=proposal.ready_at)

    assert refusal == ("CodeChanged", heir, code_hash(governed, heir), NOTHING)


@pytest.mark.parametrize("kind", [Kind.APP_IMPLEMENTATION, Kind.IMPLEMENTATION_UPGRADE])
def test_p12_an_implementation_has_code_when_proposed(governed: GovernedWorld, kind: Kind) -> None:
    """Code that can be put at the address afterwards is not proposed."""
    data = word(governed.stranger)
    target = governed.kms if kind is Kind.APP_IMPLEMENTATION else governed.app

    content = governed.content([Action(kind, target.address, data)])

    refusal = governed.refused(governed.owner, governed.operator, "propose", content)
    assert refusal == ("DataMalformed", kind, data)
