"""P15: zero hashes, wildcards and wrong lengths (31, 33, 47, 49 bytes) are refused; nothing is padded."""

from __future__ import annotations

import pytest
from eth_abi.abi import encode
from web3.exceptions import ContractCustomError

from tests.governed_world import (
    DAY,
    KMS_INFO,
    KMS_INFO_TYPE,
    OWN,
    DelayClass,
    GovernedWorld,
    Kind,
    Refusal,
    decoded_error,
    registers,
    version_data,
    word,
    words,
)

LONGER = (Kind.VERSION, Kind.SUNSET, Kind.DELAY, Kind.KMS_INFO, Kind.KEY_EPOCH, Kind.GENESIS)
ONE_WORD = [kind for kind in Kind if kind not in (*LONGER, Kind.CONTRACT_UPGRADES)]
DENIABLE = [kind for kind in ONE_WORD if kind <= Kind.KMS_DEVICE] + [Kind.CONTRACT_UPGRADES, Kind.APP]
TOO_WIDE = (1 << 160).to_bytes(32, "big")
TWO = (2).to_bytes(32, "big")


def proposal_refused(world: GovernedWorld, kind: Kind, data: bytes) -> Refusal:
    """Why the owner cannot propose it."""
    action = world.on_self(kind, data) if kind in OWN else world.on_app(kind, data)
    content = ([action], [], [bytes(32)] * 2, "")
    return world.refused(world.owner, world.operator, "propose", content)


def denial_refused(world: GovernedWorld, kind: Kind, data: bytes) -> Refusal:
    """Why the guardian cannot deny it."""
    return world.refused(world.owner, world.operator, "deny", [world.on_app(kind, data)])


@pytest.mark.parametrize("kind", ONE_WORD, ids=lambda kind: kind.name)
def test_p15_one_word_is_32_bytes_and_not_zero(governed: GovernedWorld, kind: Kind) -> None:
    """Nothing, zero, 20, 31, 33 and 64 bytes are no hash, id, address or switch."""
    for data in (b"", bytes(32), b"\x01" * 20, b"\x01" * 31, word(1) + b"\0", b"\0" + word(1), word(1) * 2):
        assert proposal_refused(governed, kind, data) == ("DataMalformed", kind, data)


@pytest.mark.parametrize("kind", DENIABLE, ids=lambda kind: kind.name)
def test_p15_denials_have_the_same_form(governed: GovernedWorld, kind: Kind) -> None:
    """Neither path takes what the other refuses."""
    for data in (b"", bytes(32), b"\x01" * 31, word(1) + b"\0"):
        assert denial_refused(governed, kind, data) == ("DataMalformed", kind, data)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Kind.ANY_DEVICE, TWO),
        (Kind.FREEZE_FOR_GOOD, TWO),
        (Kind.OUTDATED_TCB, word(1 << 64)),
        *((kind, TOO_WIDE + b"") for kind in (Kind.GATEWAY_APP_ID, Kind.GUARDIAN, Kind.OWNER)),
        *((kind, TOO_WIDE) for kind in (Kind.APP, Kind.FREEZE_RENEWAL, Kind.APP_IMPLEMENTATION)),
        (Kind.IMPLEMENTATION_UPGRADE, TOO_WIDE),
        (Kind.SUNSET, words(0, 5)),
        (Kind.SUNSET, words(1 << 64, 5)),
        (Kind.SUNSET, words(1, 1 << 64)),
        (Kind.SUNSET, word(1)),
        (Kind.SUNSET, words(1, 5) + b"\0"),
        (Kind.DELAY, words(3, 172800)),
        (Kind.DELAY, words(DelayClass.POLICY, 1 << 64)),
        (Kind.DELAY, word(0)),
        (Kind.DELAY, words(0, 172800, 0)),
        (Kind.FORCED_GUARDIAN, TOO_WIDE),
        (Kind.KEY_EPOCH, words(0, DAY)),
        (Kind.KEY_EPOCH, words(1 << 64, DAY)),
        (Kind.KEY_EPOCH, words(1, DAY - 1)),
        (Kind.KEY_EPOCH, words(1, 90 * DAY + 1)),
        (Kind.KEY_EPOCH, word(1)),
        (Kind.KEY_EPOCH, words(1, DAY, 0)),
        (Kind.GENESIS, word(1)),
        (Kind.GENESIS, words(1, 0)),
        (Kind.GENESIS, words(0, 1)),
        (Kind.GENESIS, words(1, 1) + b"\0"),
    ],
)
def test_p15_wider_than_meant_is_refused(governed: GovernedWorld, kind: Kind, data: bytes) -> None:
    """A switch that is not 1, an address of 21 bytes, a number beyond 64 bits, a class that is none."""
    assert proposal_refused(governed, kind, data) == ("DataMalformed", kind, data)


@pytest.mark.parametrize("size", [0, 47, 49, 96])
@pytest.mark.parametrize("place", range(4))
def test_p15_registers_are_48_bytes(governed: GovernedWorld, place: int, size: int) -> None:
    """MRTD and RTMR0 to RTMR2 always; the refusal says what was got."""
    wrong = list(registers(1))
    wrong[place] = b"\x01" * size
    data = version_data(1, register_sets=[tuple(wrong)])

    assert proposal_refused(governed, Kind.VERSION, data) == ("RegisterLength", size)


@pytest.mark.parametrize("size", [1, 32, 47, 49])
def test_p15_rtmr3_is_48_bytes_or_absent(governed: GovernedWorld, size: int) -> None:
    """Any other length is refused."""
    data = version_data(1, register_sets=[registers(1, b"\x01" * size)])

    assert proposal_refused(governed, Kind.VERSION, data) == ("RegisterLength", size)


def test_p15_a_version_has_no_zeros_and_no_wildcards(governed: GovernedWorld) -> None:
    """No zero hash, no empty list of OS images that could stand for all, no more than eight of either."""
    keccak = governed.w3.keccak
    image, compose, sets = (bytes(keccak(text=name)) for name in ("os-image", "compose-hash", "registers"))
    many = [bytes([number]) * 32 for number in range(1, 10)]

    assert [
        proposal_refused(governed, Kind.VERSION, version_data(1, compose_hash=bytes(32))),
        proposal_refused(governed, Kind.VERSION, version_data(1, images=[b"\x01" * 32, bytes(32)])),
        proposal_refused(governed, Kind.VERSION, version_data(1, images=[])),
        proposal_refused(governed, Kind.VERSION, version_data(1, images=many)),
        proposal_refused(governed, Kind.VERSION, version_data(1, register_sets=[registers(n) for n in range(9)])),
    ] == [
        ("ZeroRefused", compose),
        ("ZeroRefused", image),
        ("CountOutOfRange", image, 0, 1, 8),
        ("CountOutOfRange", image, 9, 1, 8),
        ("CountOutOfRange", sets, 9, 0, 8),
    ]


def test_p15_a_version_has_one_encoding(governed: GovernedWorld) -> None:
    """Bytes behind it, and another order of its parts, are refused although they would decode."""
    data = version_data(1)
    swollen = data + bytes(32)
    gap = data[:96] + word(int.from_bytes(data[96:128], "big") + 32) + data[128:]
    shifted = gap[: 32 + 7 * 32] + bytes(32) + gap[32 + 7 * 32 :]

    assert proposal_refused(governed, Kind.VERSION, swollen) == ("DataMalformed", Kind.VERSION, swollen)
    assert proposal_refused(governed, Kind.VERSION, shifted) == ("DataMalformed", Kind.VERSION, shifted)


@pytest.mark.parametrize("size", [*range(0, 352, 31), 351])
def test_p15_a_shortened_version_is_malformed(governed: GovernedWorld, size: int) -> None:
    """Nothing is filled up with zeros, and what cannot be decoded is refused in words."""
    data = version_data(1)[:size]

    assert len(version_data(1)) == 352
    assert proposal_refused(governed, Kind.VERSION, data) == ("DataMalformed", Kind.VERSION, data)


@pytest.mark.parametrize("place", range(11))
def test_p15_a_version_with_a_word_beyond_all_bounds_is_malformed(governed: GovernedWorld, place: int) -> None:
    """Numbers, offsets and lengths that lead nowhere are refused in words, never with a bare panic."""
    data = version_data(1)
    wild = data[: 32 * place] + b"\xff" * 32 + data[32 * (place + 1) :]

    refusal = proposal_refused(governed, Kind.VERSION, wild)

    hashes = (2, 9)  # the compose hash and the OS image: any word is one
    if place in hashes:
        assert refusal[0] == "CodeChanged"
    else:
        assert refusal == ("DataMalformed", Kind.VERSION, wild)


def test_p15_kms_info_has_one_encoding(governed: GovernedWorld) -> None:
    """Cut, swollen or with an offset that leads nowhere it is refused in words."""
    data = encode([KMS_INFO_TYPE], [KMS_INFO])
    for wrong in (b"", bytes(32), data[:-32], data + bytes(32), data[:31], b"\xff" * 32 + data[32:]):
        assert proposal_refused(governed, Kind.KMS_INFO, wrong) == ("DataMalformed", Kind.KMS_INFO, wrong)


@pytest.mark.parametrize("kind", [Kind.VERSION, Kind.DELAY, Kind.COMPOSE_HASH], ids=lambda kind: kind.name)
def test_p15_questions_about_malformed_actions_are_refused(governed: GovernedWorld, kind: Kind) -> None:
    """How long it would wait is not answered about an action that cannot be proposed."""
    action = governed.on_app(kind, b"\x01" * 31)

    with pytest.raises(ContractCustomError) as caught:
        governed.operator.functions.delayOf(action).call()

    assert decoded_error(caught.value) == ("DataMalformed", kind, b"\x01" * 31)


@pytest.mark.parametrize(
    "function", ["addComposeHash", "addDevice", "addOsImageHash", "addKmsAggregatedMr", "addKmsDevice"]
)
def test_p15_the_gates_themselves_refuse_zero(governed: GovernedWorld, function: str) -> None:
    """Whoever owns them, and also calls with 31 bytes, which are not filled up."""
    kms = governed.proxy("KmsAuth", "initialize", governed.owner, governed.app_implementation)
    contract = governed.own_app(governed.owner) if function in ("addComposeHash", "addDevice") else kms

    refusal = governed.refused(governed.owner, contract, function, bytes(32))
    short = bytes.fromhex(contract.encode_abi(function, args=[b"\x01" * 32])[2:])[:-1]
    receipt = governed.transact(governed.owner, contract.address, short)

    assert refusal[0] == "ZeroRefused"
    assert receipt["status"] == 0
