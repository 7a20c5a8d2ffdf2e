"""RTMR3 of every release follows from the facts, and a fact that is missing is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dstack.errors import MeasurementMalformedError
from dstack.measurement.event_log import RuntimeEvent
from dstack.measurement.rtmr3 import (
    OUR_SEQUENCE,
    SEQUENCES,
    BootInputs,
    boot_events,
    predict_legacy_rtmr3,
    predict_rtmr3,
    split_at_boot_mr_done,
)
from dstack.values import AppId, ComposeHash, Digest32, InstanceId, OsImageHash

Load = Callable[[str], Any]

INPUTS = BootInputs(
    app_id=AppId(b"a" * 20),
    compose_hash=ComposeHash(b"c" * 32),
    instance_id=InstanceId(b"i" * 20),
    key_provider="kms",
    key_provider_id=b"k" * 91,
    os_image_hash=OsImageHash(b"o" * 32),
    storage_fs="zfs",
)


def boot_inputs(facts: dict[str, Any]) -> BootInputs:
    """Read the inputs of a golden case."""
    kinds: dict[str, Any] = {
        "app_id": AppId,
        "compose_hash": ComposeHash,
        "instance_id": InstanceId,
        "os_image_hash": OsImageHash,
        **dict.fromkeys(("mr_kms", "gpu_policy_hash", "rootfs_hash", "ca_cert_hash"), Digest32),
    }
    values: dict[str, Any] = {name: kind.from_hex(facts[name]) for name, kind in kinds.items() if facts.get(name)}
    return BootInputs(
        **values,
        key_provider=facts["key_provider"],
        key_provider_id=bytes.fromhex(facts.get("key_provider_id", "")),
        storage_fs=facts.get("storage_fs"),
        init_script_hashes=tuple(map(Digest32.from_hex, facts.get("init_script_hashes", []))),
    )


def test_every_golden_boot_is_predicted(golden: Load) -> None:
    """Events and register of each release equal the golden ones, four of which real machines have shown."""
    for case in golden("rtmr3_offline.json")["cases"]:
        wanted = tuple(RuntimeEvent(event["event"], bytes.fromhex(event["payload"])) for event in case["events"])

        events = boot_events(case["version"], boot_inputs(case["inputs"]))

        assert events == wanted[: len(events)]
        assert predict_rtmr3(events).hex() == case.get("rtmr3_boot_only", case["rtmr3"])
        assert predict_rtmr3(wanted).hex() == case["rtmr3"]


def test_the_2024_image_is_predicted(golden: Load) -> None:
    """Three raw values give the register that a real machine printed."""
    for case in golden("rtmr3_legacy.json")["cases"]:
        values = (Digest32.from_hex(case[name]) for name in ("rootfs_hash", "app_id", "ca_cert_hash"))
        assert predict_legacy_rtmr3(*values).hex() == case["rtmr3"]


def test_our_images_measure_these_events() -> None:
    """The sequence of our images, in order."""
    assert SEQUENCES[OUR_SEQUENCE] == (
        "system-preparing",
        "app-id",
        "compose-hash",
        "instance-id",
        "boot-mr-done",
        "os-image-hash",
        "key-provider",
        "storage-fs",
        "system-ready",
    )


def test_without_an_instance_id_the_event_is_empty() -> None:
    """`no_instance_id` leaves the event in its place, so RTMR3 is a constant of the app."""
    events = boot_events(OUR_SEQUENCE, replace(INPUTS, instance_id=None))

    assert RuntimeEvent("instance-id", b"") in events


def test_the_event_log_version_reaches_every_event() -> None:
    """Version 2 gives events of version 2, and another register."""
    events = boot_events(OUR_SEQUENCE, INPUTS, version=2)

    assert {event.version for event in events} == {2}
    assert predict_rtmr3(events) != predict_rtmr3(boot_events(OUR_SEQUENCE, INPUTS))


@pytest.mark.parametrize(
    ("sequence", "change", "message"),
    [
        ("0.7", {}, "boot sequence: want one of 0.3.2, .*, head, got '0.7'"),
        ("0.6-pre", {"os_image_hash": None}, "measures os_image_hash, and none was given"),
        ("0.6-pre", {"key_provider_id": b""}, "measures key_provider_id, and none was given"),
        ("0.6-pre", {"key_provider": "local", "key_provider_id": b""}, "measures key_provider_id"),
        ("0.6-pre", {"key_provider": "none"}, "key provider none: want no id, got 91 bytes"),
        ("0.6-pre", {"key_provider": "sgx"}, "key provider: want one of none, local, kms, tpm, got 'sgx'"),
        ("0.6-pre", {"storage_fs": None}, "storage_fs: want one of zfs, ext4, got None"),
        ("0.6-pre", {"storage_fs": "btrfs"}, "storage_fs: want one of zfs, ext4, got 'btrfs'"),
        ("head", {}, "measures gpu_policy_hash, and none was given"),
        ("head", {"init_script_hashes": (Digest32(bytes(32)),) * 6}, "init_script_hashes: want at most 5, got 6"),
        ("dev-0.4.0", {}, "measures rootfs_hash, and none was given"),
        ("0.3.6", {"rootfs_hash": Digest32(bytes(32))}, "measures ca_cert_hash, and none was given"),
    ],
)
def test_an_input_that_is_missing_or_wrong_is_named(sequence: str, change: dict[str, Any], message: str) -> None:
    """No register is predicted from a guess."""
    with pytest.raises(MeasurementMalformedError, match=message):
        boot_events(sequence, replace(INPUTS, **change))


def test_only_a_kms_names_the_image_and_itself() -> None:
    """Another key provider leaves os-image-hash and mr-kms out, whatever was given."""
    inputs = replace(INPUTS, key_provider="local", mr_kms=Digest32(bytes(32)))

    names = {event.name for event in boot_events("0.5.7", inputs)}

    assert names.isdisjoint({"os-image-hash", "mr-kms"})


def test_a_boot_is_parted_where_keys_are_asked_for() -> None:
    """`boot-mr-done` is the last event before, and nothing is lost."""
    events = boot_events(OUR_SEQUENCE, INPUTS)

    before, after = split_at_boot_mr_done(events)

    assert [event.name for event in before][-2:] == ["instance-id", "boot-mr-done"]
    assert (*before, *after) == events


def test_a_boot_without_that_event_is_not_parted() -> None:
    """Releases before dev-0.4.0 do not have it."""
    with pytest.raises(MeasurementMalformedError, match="boot events: want boot-mr-done, got none"):
        split_at_boot_mr_done([RuntimeEvent("app-id", b"")])
