"""Actions as bytes, as typed text and as sentences."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.chain.action_data import (
    AppVersion,
    DelayChange,
    DelayClass,
    EpochChange,
    Genesis,
    KmsInfo,
    Meaning,
    RegisterSet,
    SunsetChange,
    Switch,
    parse_action_data,
)
from dstack.chain.action_text import parse_action
from dstack.chain.action_words import grant_sentence
from dstack.chain.client import checked_address
from dstack.chain.deploy import Deployment
from dstack.chain.operator import Action, Kind
from dstack.errors import ConfigError, InputError
from dstack.values import ComposeHash, Digest32, OsImageHash, Register

APP = checked_address("0x" + "a1" * 20, what="app")
OPERATOR, KMS, CODE = (checked_address("0x" + digit * 40, what="address") for digit in "123")
DEPLOYMENT = Deployment(31337, OPERATOR, KMS, CODE)
NOON = datetime(2026, 12, 15, 12, tzinfo=UTC)

_registers = st.binary(min_size=48, max_size=48).map(Register)
_sets = st.builds(RegisterSet, _registers, _registers, _registers, _registers, st.none() | _registers)
_hashes = st.binary(min_size=32, max_size=32)
_versions = st.builds(
    AppVersion,
    number=st.integers(0, 2**64 - 1),
    compose_hash=_hashes.map(ComposeHash),
    os_image_hashes=st.lists(_hashes.map(OsImageHash), max_size=8).map(tuple),
    registers=st.lists(_sets, max_size=3).map(tuple),
    supersedes=st.integers(0, 2**64 - 1),
    sunset=st.none() | st.integers(1, 2**33).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    is_rollback=st.booleans(),
)


@given(_versions)
def test_a_version_comes_back_from_its_encoding(version: AppVersion) -> None:
    """Reading after writing is the identity."""
    assert parse_action_data(Kind.VERSION, version.encode()) == version


@given(_versions, st.data())
def test_a_version_has_one_encoding(version: AppVersion, data: st.DataObject) -> None:
    """Bytes that are left over, or missing, are refused."""
    encoded = version.encode()
    other = encoded + data.draw(st.binary(min_size=1, max_size=64))

    for wrong in (other, encoded[:-1]):
        with pytest.raises(InputError, match="not of the form of its kind"):
            parse_action_data(Kind.VERSION, wrong)


@given(st.builds(KmsInfo, *[st.binary(max_size=70)] * 4), st.binary(min_size=1, max_size=64))
def test_kms_info_has_one_encoding(info: KmsInfo, more: bytes) -> None:
    """Reading after writing is the identity; bytes that are left over, or missing, are refused."""
    assert parse_action_data(Kind.KMS_INFO, info.encode()) == info
    for wrong in (info.encode() + more, info.encode()[:-1]):
        with pytest.raises(InputError, match="not of the form of its kind"):
            parse_action_data(Kind.KMS_INFO, wrong)


@pytest.mark.parametrize(
    ("text", "kind", "target", "meaning"),
    [
        ("OsImage=" + "5a" * 32, Kind.OS_IMAGE, KMS, Digest32(b"\x5a" * 32)),
        (f"compose-hash:{APP}=0x" + "5a" * 32, Kind.COMPOSE_HASH, APP, Digest32(b"\x5a" * 32)),
        (f"AnyDevice:{APP}", Kind.ANY_DEVICE, APP, Switch()),
        (f"OutdatedTcb:{APP}=2026-12-15T13:00:00+01:00", Kind.OUTDATED_TCB, APP, NOON),
        (f"OutdatedTcb:{APP}", Kind.OUTDATED_TCB, APP, Switch()),
        (f"Sunset:{APP}=7,2026-12-15T12:00:00Z", Kind.SUNSET, APP, SunsetChange(7, NOON)),
        (f"Sunset:{APP}=7,never", Kind.SUNSET, APP, SunsetChange(7, None)),
        ("Delay=roles,259200", Kind.DELAY, OPERATOR, DelayChange(DelayClass.ROLES, 259200)),
        (f"Guardian={APP}", Kind.GUARDIAN, OPERATOR, APP),
        (f"ForcedGuardian={APP}", Kind.FORCED_GUARDIAN, OPERATOR, APP),
        ("KeyEpoch=1,86400", Kind.KEY_EPOCH, KMS, EpochChange(1, 86400)),
        (
            f"Genesis:{APP}=" + "5a" * 32 + "," + "6b" * 32,
            Kind.GENESIS,
            APP,
            Genesis(Digest32(b"\x5a" * 32), Digest32(b"\x6b" * 32)),
        ),
        (f"App={APP}", Kind.APP, KMS, APP),
    ],
)
def test_what_is_typed_is_what_is_meant(text: str, kind: Kind, target: str, meaning: Meaning) -> None:
    """Kind and target come out as written, and the data means the value."""
    action = parse_action(text, DEPLOYMENT)

    assert (action.kind, action.target) == (kind, target)
    assert parse_action_data(kind, action.data) == meaning


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Everything=1", "want a kind of AnyDevice, App, .*ComposeHash, .*Sunset, got 'Everything'"),
        ("Version=1", "want --app and --compose"),
        ("KmsInfo=1", "want --kms-info"),
        ("KeyEpoch=1", "want the epoch's number, a comma and seconds"),
        ("KeyEpoch=0,86400", "want the epoch's number, a comma and seconds"),
        ("Genesis=" + "5a" * 32, "want the contract it belongs to"),
        (f"Genesis:{APP}=" + "5a" * 32, "GENESIS: evidence"),
        (f"Genesis:{APP}=" + "5a" * 31 + "," + "5a" * 32, "GENESIS: fingerprint"),
        ("Device=" + "5a" * 32, "want the contract it belongs to"),
        ("OsImage", "want a value"),
        (f"AnyDevice:{APP}=1", "want no value"),
        (f"OutdatedTcb:{APP}=tomorrow", "want a time such as"),
        (f"OutdatedTcb:{APP}=2026-12-15T12:00:00", "want a time zone"),
        (f"Sunset:{APP}=0,never", "want NUMBER,TIME"),
        ("Delay=some,1", "want policy, roles or upgrades"),
        ("Owner=0x" + "00" * 20, "got the zero address"),
    ],
)
def test_what_is_typed_wrongly_is_refused(text: str, sentence: str) -> None:
    """Each mistake has its own sentence."""
    with pytest.raises((InputError, ConfigError), match=sentence):
        parse_action(text, DEPLOYMENT)


def test_a_version_is_one_sentence() -> None:
    """What may get keys, and what ends when."""
    version = AppVersion(7, ComposeHash(b"\x01" * 32), (OsImageHash(b"\x02" * 32),), (), 6, NOON)

    assert grant_sentence(Action(Kind.VERSION, APP, version.encode())) == (
        f"version 7 of app {APP} may get keys (compose hash {'01' * 32}, OS image {'02' * 32}); "
        "version 6 ends 2026-12-15 12:00 UTC"
    )
