"""Messages as protobuf."""

from typing import Any

import pytest

from dstack.errors import MessageMalformedError
from dstack.values import AppId
from dstack.wire import guest, kms
from dstack.wire.message import from_protobuf, to_protobuf


@pytest.mark.parametrize(
    ("message", "raw"),
    [
        (kms.GetAppKeyRequest(), ""),
        (kms.GetAppKeyRequest(1, "{}"), "080112027b7d"),
        (kms.AppIdRequest(AppId(bytes(20))), "0a14" + "00" * 20),
        (kms.PublicKeyResponse(b"\x01", b"", 1700000000, b"\x02"), "0a01011880e2cfaa06220102"),
        (kms.KmsKeyResponse("", (kms.KmsKeys("", b"\x01"), kms.KmsKeys())), "12031201011200"),
        (kms.GetMetaResponse(), ""),
        (kms.GetMetaResponse(is_dev=True, chain_id=0), "28014000"),
        (kms.GetMetaResponse(bootstrap_info=kms.BootstrapResponse(), gateway_app_id=""), "22003200"),
        (kms.SignCertResponse(("a", "")), "0a01610a00"),
        (guest.GetTlsKeyRequest(not_after=1, with_app_info=True), "38014001"),
        (guest.InfoResponse(device_id=b"\x01", cloud_product="p"), "420101820101" + "70"),
        (guest.GetKeyResponse(b"", (b"\x01", b"")), "1201011200"),
    ],
)
def test_the_bytes_are_those_of_the_specification(message: Any, raw: str) -> None:
    """Field numbers and kinds as upstream declares them; absent differs from default where it is optional."""
    assert to_protobuf(message).hex() == raw
    assert from_protobuf(type(message), bytes.fromhex(raw)) == message


def test_unknown_fields_are_ignored() -> None:
    """Messages of later versions are read."""
    assert from_protobuf(kms.GetAppKeyRequest, bytes.fromhex("0801" + "fa0601ff")) == kms.GetAppKeyRequest(1)


@pytest.mark.parametrize("raw", ["08", "0aff", "12017f80", "1201ff", "0b", "00"])
def test_other_bytes_are_refused(raw: str) -> None:
    """Cut short, text that is not UTF-8, groups that do not end, field number zero."""
    with pytest.raises(MessageMalformedError, match="GetAppKeyRequest: not protobuf of this message"):
        from_protobuf(kms.GetAppKeyRequest, bytes.fromhex(raw))
