"""Identities are digests of exactly these bytes."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from dstack.errors import MeasurementMalformedError
from dstack.measurement.identities import (
    derive_instance_id,
    device_id,
    key_provider_payload,
    launch_token_hash,
    mr_aggregated,
    mr_key_provider,
    mr_system,
)
from dstack.measurement.mr_config_id import mr_config_id_v1
from dstack.values import AppId, ComposeHash, Digest32, Register

Load = Callable[[str], Any]

ZERO = Register(bytes(48))


def test_instance_ids_are_those_of_the_golden_data(golden: Load) -> None:
    """With and without a platform binding."""
    for case in golden("instance_id.json")["cases"]:
        seed, app_id = bytes.fromhex(case["instance_id_seed"]), AppId.from_hex(case["app_id"])
        binding = Digest32.from_hex(case["platform_binding"])
        assert derive_instance_id(seed, app_id).hex() == case["instance_id"]
        assert derive_instance_id(seed, app_id, binding).hex() == case["instance_id_with_binding"]


@pytest.mark.parametrize("size", [0, 19, 21, 32])
def test_an_instance_id_seed_is_20_bytes(size: int) -> None:
    """Another length is refused: it would give an id that no guest derives."""
    with pytest.raises(MeasurementMalformedError, match=f"instance id seed: want 20 bytes, got {size}"):
        derive_instance_id(bytes(size), AppId(bytes(20)))


def test_a_real_machine_printed_these_values(golden: Load) -> None:
    """What a machine printed as mrSystem and mrAggregated is computed, MRCONFIGID being that of the compose hash."""
    for case in golden("mr_identities.json")["cases"]:
        mrtd, rtmr0, rtmr1, rtmr2, rtmr3 = (
            Register.from_hex(case[name]) for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
        )
        config_id = Register.from_hex(case["mr_config_id"])
        provider = mr_key_provider(bytes.fromhex(case["key_provider_info"]))

        aggregated = mr_aggregated(
            mrtd, rtmr0, rtmr1, rtmr2, rtmr3, mr_config_id=config_id, mr_owner=ZERO, mr_owner_config=ZERO
        )

        assert mr_system(mrtd, rtmr0, rtmr1, rtmr2, provider).hex() == case["mr_system"]
        assert aggregated.hex() == case["mr_aggregated"]
        assert mr_config_id_v1(ComposeHash(config_id[1:33])) == config_id


def test_the_real_machine_with_a_gpu_has_these_identities(golden: Load) -> None:
    """Without MRCONFIGID, mrAggregated is over five registers; before keys, the key provider counts as zeros."""
    case = golden("real_64gib_gpu.json")["replay"]
    mrtd = Register.from_hex(case["mr_td"])
    rtmr0, rtmr1, rtmr2, rtmr3 = (Register.from_hex(case["quote_rtmr"][imr]) for imr in "0123")
    early = Register.from_hex(case["boottime"]["rtmr3_at_boot_mr_done"])

    def aggregated(last: Register) -> str:
        return mr_aggregated(
            mrtd, rtmr0, rtmr1, rtmr2, last, mr_config_id=ZERO, mr_owner=ZERO, mr_owner_config=ZERO
        ).hex()

    provider = Digest32.from_hex(case["mr_key_provider"])
    assert mr_system(mrtd, rtmr0, rtmr1, rtmr2, provider).hex() == case["mr_system"]
    assert mr_system(mrtd, rtmr0, rtmr1, rtmr2, mr_key_provider(None)).hex() == case["boottime"]["mr_system"]
    assert aggregated(rtmr3) == case["mr_aggregated"]
    assert aggregated(early) == case["boottime"]["mr_aggregated"]
    assert device_id(bytes.fromhex(case["ppid"])).hex() == case["device_id"]


@pytest.mark.parametrize("name", ["mr_config_id", "mr_owner", "mr_owner_config"])
def test_any_configuration_register_counts(name: str) -> None:
    """One non-zero byte in any of the three changes mrAggregated, by all 144 bytes."""
    registers = {"mr_config_id": ZERO, "mr_owner": ZERO, "mr_owner_config": ZERO}
    registers[name] = Register(bytes(47) + b"\x01")

    aggregated = mr_aggregated(ZERO, ZERO, ZERO, ZERO, ZERO, **registers)

    assert aggregated == sha256(bytes(5 * 48) + b"".join(registers.values())).digest()


@pytest.mark.parametrize(
    ("kind", "provider", "payload"),
    [
        ("none", b"", b'{"name":"none","id":""}'),
        ("local", b"\xab", b'{"name":"local-sgx","id":"ab"}'),
        ("kms", b"\x30\x59", b'{"name":"kms","id":"3059"}'),
        ("tpm", b"", b'{"name":"tpm","id":""}'),
    ],
)
def test_a_key_provider_is_measured_as_these_bytes(kind: str, provider: bytes, payload: bytes) -> None:
    """Compact JSON, name first."""
    assert key_provider_payload(kind, provider) == payload


def test_a_device_id_needs_a_ppid() -> None:
    """Evidence that nobody verified has no PPID, and must not get the digest of nothing as its device."""
    with pytest.raises(MeasurementMalformedError, match="PPID: want 16 bytes, got 0"):
        device_id(b"")


def test_a_launch_token_has_its_hash() -> None:
    """The value of dstack's own unit test; a short token is refused without being repeated."""
    assert launch_token_hash("unit-test-launch-token-0000000001").hex() == (
        "28faa1319055d733ad9651f5ab7689c15b04609846bcd27b3c5bc8df6246f5a3"
    )
    with pytest.raises(MeasurementMalformedError, match=r"^launch token: want at least 32 bytes, got 31$"):
        launch_token_hash("x" * 31)
