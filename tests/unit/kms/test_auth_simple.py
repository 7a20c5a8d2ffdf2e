"""The auth server with a policy file: upstream's order and words, and nobody on an empty list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from dstack.policy import Denied, Granted
from dstack.policy.decision import NO_BLOCK
from dstack.transport.listener import Listener
from kms.auth_server import Answer, BootRequest, auth_app
from kms.auth_simple import FileDecider, Policy, opened_decider
from kms.webhook import WebhookAuthority
from tests.unit.chain.test_kms_auth import BOOT

APP, COMPOSE, DEVICE, IMAGE, MR = "a1" * 20, "c0" * 32, "de" * 32, "05" * 32, "3a" * 32
POLICY: dict[str, Any] = {
    "gatewayAppId": "gateway",
    "kmsContractAddr": "0x" + "c0" * 20,
    "chainId": 5,
    "osImages": [f"0x{IMAGE}"],
    "allowedAdvisoryIds": ["INTEL-SA-1"],
    "kms": {"mrAggregated": [MR], "devices": [DEVICE.upper()]},
    "apps": {f"0x{APP.upper()}": {"composeHashes": [COMPOSE], "devices": [DEVICE]}},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A policy that allows one app and one KMS."""
    file = tmp_path / "auth-config.json"
    file.write_text(json.dumps(POLICY))
    return file


@pytest.fixture
def url(path: Path) -> Iterator[str]:
    """A running auth server."""
    with Listener(auth_app(FileDecider(path))).running() as listener:
        yield f"http://127.0.0.1:{listener.port}"


def asked(**changes: object) -> dict[str, object]:
    """The question of a KMS about the app, with changes."""
    return {**json.loads(BOOT.to_json()), **changes}


def test_our_kms_takes_its_word(url: str) -> None:
    """Granted for the app and the KMS of the file, denied with its reason for another."""
    with closing(WebhookAuthority(url)) as authority:
        granted = Granted(NO_BLOCK, gateway_app_id="gateway")
        assert (authority.authorize_app(BOOT), authority.authorize_kms(BOOT)) == (granted,) * 2
        other = authority.authorize_app(replace(BOOT, tcb_status="OutOfDate"))
        facts = authority.check(chain_id=5), authority.recent_facts()

    assert isinstance(other, Denied)
    assert other.reason == "TCB status is not allowed"
    assert facts[1] is not None
    assert (facts[1].gateway_app_id, facts[1].kms_contract.lower()) == ("gateway", POLICY["kmsContractAddr"])


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("app", {}, ""),
        ("app", {"advisoryIds": ["INTEL-SA-1"]}, ""),
        ("app", {"tcbStatus": "OutOfDate", "advisoryIds": ["INTEL-SA-2"]}, "TCB status is not allowed"),
        ("app", {"tcbStatus": ""}, "TCB status is not allowed"),
        ("app", {"advisoryIds": ["INTEL-SA-1", "INTEL-SA-2"], "osImageHash": ""}, "advisory ID is not allowed"),
        ("app", {"osImageHash": "06" * 32, "appId": ""}, "OS image is not allowed"),
        ("app", {"osImageHash": ""}, "OS image is not allowed"),
        ("app", {"appId": "a2" * 20, "composeHash": ""}, "app not registered"),
        ("app", {"appId": ""}, "app not registered"),
        ("app", {"composeHash": "c1" * 32, "deviceId": ""}, "compose hash not allowed"),
        ("app", {"deviceId": "df" * 32}, "app is not allowed to boot on this device"),
        ("app", {"deviceId": ""}, "app is not allowed to boot on this device"),
        ("kms", {"appId": "a2" * 20, "composeHash": ""}, ""),
        ("kms", {"tcbStatus": "Revoked"}, "TCB status is not allowed"),
        ("kms", {"osImageHash": "06" * 32}, "OS image is not allowed"),
        ("kms", {"mrAggregated": "3b" * 32, "deviceId": ""}, "aggregated MR not allowed"),
        ("kms", {"deviceId": "df" * 32}, "KMS is not allowed to boot on this device"),
    ],
)
def test_rules_in_upstreams_order_and_words(url: str, kind: str, changes: dict[str, object], reason: str) -> None:
    """The first rule that fails gives the reason; hexadecimal is compared without regard to case and `0x`."""
    answer = httpx.post(f"{url}/bootAuth/{kind}", json=asked(**changes))

    expected = {"isAllowed": not reason, "reason": reason, "gatewayAppId": "gateway"}
    assert (answer.status_code, answer.json()) == (200, expected)


@pytest.mark.parametrize("kind", ["app", "kms"])
def test_an_empty_list_of_devices_allows_no_device(path: Path, url: str, kind: str) -> None:
    """Unlike upstream's: nobody is on an empty list; whoever means everybody says so."""
    policy = json.loads(path.read_text())
    for part in (policy["kms"], *policy["apps"].values()):
        part["devices"] = []
    path.write_text(json.dumps(policy))
    nobody = httpx.post(f"{url}/bootAuth/{kind}", json=asked()).json()
    for part in (policy["kms"], *policy["apps"].values()):
        part["allowAnyDevice"] = True
    path.write_text(json.dumps(policy))

    assert (nobody["isAllowed"], "boot on this device" in nobody["reason"]) == (False, True)
    assert httpx.post(f"{url}/bootAuth/{kind}", json=asked(deviceId="")).json()["isAllowed"] is True


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"osImages": "0x05"}'),
        lambda path: path.write_text(json.dumps({**POLICY, "kms": {"allowAnyDevice": "true"}})),
        lambda path: path.write_text(json.dumps(POLICY) + " " * (4 << 20)),
    ],
    ids=["missing", "no JSON", "a list", "no list", "no bool", "huge"],
)
def test_a_file_that_cannot_be_read_allows_nothing(path: Path, url: str, spoil: Callable[[Path], object]) -> None:
    """Read anew for every question: what was allowed a moment ago is not, and the server goes on."""
    assert httpx.post(f"{url}/bootAuth/app", json=asked()).json()["isAllowed"] is True
    spoil(path)

    answers = [httpx.post(f"{url}/bootAuth/{kind}", json=asked()) for kind in ("app", "kms")]

    denied = {"isAllowed": False, "reason": "OS image is not allowed", "gatewayAppId": ""}
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, denied)] * 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        json.dumps(asked(appId=7)),
        json.dumps(asked(advisoryIds="x")),
        json.dumps(asked(mrAggregated=None)),
    ],
)
def test_a_question_out_of_form_is_refused(url: str, body: bytes | str) -> None:
    """Status 400 and upstream's words."""
    answer = httpx.post(f"{url}/bootAuth/app", content=body)

    expected = {"isAllowed": False, "reason": "invalid authorization request", "gatewayAppId": ""}
    assert (answer.status_code, answer.json()) == (400, expected)


def test_questions_of_older_kms_are_understood(url: str) -> None:
    """`0x` before values, members that came later missing, members that went present."""
    older = {
        name: f"0x{value}" if isinstance(value, str) and name not in ("tcbStatus",) else value
        for name, value in asked(mrtd="00", rtmr0="00", eventLog="").items()
        if name not in ("mrSystem", "keyProviderInfo", "teeVariant", "attestationMode", "advisoryIds")
    }

    assert httpx.post(f"{url}/bootAuth/app", json=older).json()["isAllowed"] is True


def test_what_it_says_of_itself(url: str) -> None:
    """Every member that a KMS wants."""
    assert httpx.get(url).json() == {
        "status": "ok",
        "kmsContractAddr": POLICY["kmsContractAddr"],
        "ethRpcUrl": "",
        "gatewayAppId": "gateway",
        "chainId": 5,
        "appAuthImplementation": "0x" + "00" * 20,
        "appImplementation": "0x" + "00" * 20,
    }


def test_nothing_is_allowed_by_default() -> None:
    """The policy of an empty file denies both kinds; the file is where upstream has it."""
    request = BootRequest.model_validate(asked())

    assert (
        Policy().decide("app", request) == Policy().decide("kms", request) == Answer(False, "OS image is not allowed")
    )
    with opened_decider({}) as decider:
        assert decider._path == Path("auth-config.json")
