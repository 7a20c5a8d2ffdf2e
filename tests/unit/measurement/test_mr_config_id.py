"""MRCONFIGID: the three versions, and documents that are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from dstack.errors import DstackError, MeasurementMalformedError
from dstack.measurement.mr_config_id import (
    MAX_DOCUMENT,
    ConfigDocument,
    mr_config_id_v1,
    mr_config_id_v2,
    mr_config_id_v3,
    parse_config_document,
    serialise_config_document,
)
from dstack.values import AppId, ComposeHash, Digest32, InstanceId

Load = Callable[[str], Any]
DOCUMENT = ConfigDocument(
    compose_hash=ComposeHash(b"c" * 32),
    key_provider="kms",
    key_provider_id=b"k" * 91,
    app_id=AppId(b"a" * 20),
    instance_id=InstanceId(b"i" * 20),
    gpu_policy_hash=Digest32(b"g" * 32),
    init_script_hashes=(Digest32(b"s" * 32),),
)


def test_the_golden_values(golden: Load) -> None:
    """All versions and all kinds of key provider."""
    for case in golden("mr_config_id.json")["cases"]:
        if case["version"] == 3:
            got = mr_config_id_v3(case["document"].encode())
            assert (
                serialise_config_document(parse_config_document(case["document"].encode())).decode() == case["document"]
            )
        elif case["version"] == 2:
            app_id, provider_id = AppId.from_hex(case["app_id"]), bytes.fromhex(case["key_provider_id"])
            got = mr_config_id_v2(ComposeHash.from_hex(case["compose_hash"]), app_id, case["key_provider"], provider_id)
        else:
            got = mr_config_id_v1(ComposeHash.from_hex(case["compose_hash"]))
        assert got.hex() == case["mr_config_id"]


@pytest.mark.parametrize(
    ("member", "bound"),
    [
        ('"init_script_hashes":[],"key_provider":"none"', {"init_script_hashes": ()}),
        ('"instance_id":"","key_provider":"none"', {"instance_id": b""}),
        ('"key_provider":"none","key_provider_id":""', {"key_provider_id": b""}),
        ('"key_provider":"none"', {}),
    ],
)
def test_bound_to_nothing_is_not_the_same_as_not_bound(member: str, bound: dict[str, Any]) -> None:
    """No init script, no instance id, a provider without an id: each is said by an empty member, and kept."""
    raw = f'{{"compose_hash":"{"63" * 32}",{member},"version":3}}'.encode()

    document = parse_config_document(raw)

    assert document == ConfigDocument(compose_hash=ComposeHash(b"c" * 32), key_provider="none", **bound)
    assert serialise_config_document(document) == raw


def test_version_3_digests_the_bytes() -> None:
    """With a prefix that ends in a zero byte."""
    wanted = b"\3" + sha256(b"dstack-mr-config-v3:\0" + b"{}").digest() + bytes(15)

    assert mr_config_id_v3(b"{}") == wanted


@pytest.mark.parametrize(
    "document", [DOCUMENT, ConfigDocument(compose_hash=ComposeHash(bytes(32)), key_provider="none")]
)
def test_a_document_that_was_written_is_read_again(document: ConfigDocument) -> None:
    """With everything, and with nothing that can be left out."""
    assert parse_config_document(serialise_config_document(document)) == document


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"version":3', b'"version":2', "want version 3"),
        (b'"version":3', b'"version":3,"x":1', "unknown member 'x'"),
        (b'"version":3', b'"version": 3', "want the spelling of RFC 8785"),
        (
            b'"key_provider":"kms"',
            b'"key_provider":"aws"',
            "key provider: want one of none, local, kms, tpm, got 'aws'",
        ),
        (b'"' + b"61" * 20, b'"' + b"61" * 19, "app_id: AppId: want 20 bytes, got 19"),
        (b'"' + b"69" * 20, b'"' + b"69" * 19, "InstanceId: want 20 bytes, got 19"),
        (b'"' + b"73" * 32, b'"' + b"73" * 31, "Digest32: want 32 bytes, got 31"),
        (b'"' + b"63" * 32, b'"' + b"6G" * 32, "want hexadecimal"),
        (b"{", b"[", "not JSON"),
    ],
)
def test_other_documents_are_refused(old: bytes, new: bytes, message: str) -> None:
    """Unknown members, another spelling, wrong lengths."""
    raw = serialise_config_document(DOCUMENT)
    assert old in raw

    with pytest.raises(DstackError, match=message):
        parse_config_document(raw.replace(old, new))


def test_bounds_of_a_document() -> None:
    """Its size, and the number of init scripts."""
    with pytest.raises(MeasurementMalformedError, match=f"want at most {MAX_DOCUMENT} bytes"):
        parse_config_document(b" " * (MAX_DOCUMENT + 1))
    with pytest.raises(MeasurementMalformedError, match="want at most 5 init scripts, got 6"):
        replace(DOCUMENT, init_script_hashes=(Digest32(bytes(32)),) * 6)
