"""Messages as JSON."""

import tracemalloc

import pytest

from dstack.errors import MessageMalformedError
from dstack.values import AppId
from dstack.wire import guest, kms
from dstack.wire.message import from_json, to_json


def test_every_field_is_written_in_its_order() -> None:
    """Compact, defaults included, null for what is unset."""
    assert to_json(kms.GetMetaResponse(ca_cert="é", k256_pubkey=b"\x0a", chain_id=0)) == (
        '{"ca_cert":"é","allow_any_upgrade":false,"k256_pubkey":"0a","bootstrap_info":null,"is_dev":false,'
        '"gateway_app_id":null,"kms_contract_address":null,"chain_id":0,"app_auth_implementation":null}'
    )


def test_messages_in_messages_are_written() -> None:
    """Sub-messages are objects, repeated ones lists of them."""
    answer = kms.KmsKeyResponse("pem", (kms.KmsKeys("a", b"\x01"), kms.KmsKeys("b", b"")))

    text = to_json(answer)

    assert text == ('{"temp_ca_key":"pem","keys":[{"ca_key":"a","k256_key":"01"},{"ca_key":"b","k256_key":""}]}')
    assert from_json(kms.KmsKeyResponse, text) == answer


def test_sized_bytes_are_bytes() -> None:
    """A typed value needs no conversion to be sent."""
    assert to_json(kms.AppIdRequest(AppId(bytes(20)))) == f'{{"app_id":"{"00" * 20}"}}'


def test_a_renamed_field_is_written_under_both_names() -> None:
    """Old and new clients find it, and either name is read; the new one wins."""
    text = to_json(kms.AttestationInfoResponse(tee_variant="dstack-tdx"))

    assert '"tee_variant":"dstack-tdx","attestation_mode":"dstack-tdx"' in text
    for given in ('{"attestation_mode":"x"}', '{"tee_variant":"x"}', '{"attestation_mode":"y","tee_variant":"x"}'):
        assert from_json(kms.AttestationInfoResponse, given) == kms.AttestationInfoResponse(tee_variant="x")


def test_unknown_names_are_ignored_and_missing_ones_default() -> None:
    """Messages of other versions are read."""
    assert from_json(kms.GetAppKeyRequest, '{"later": {"a": [1]}}') == kms.GetAppKeyRequest()


@pytest.mark.parametrize("text", ["0aff", "0AFF", "0x0aff", "0x0x0aFF"])
def test_hexadecimal_is_read_in_every_spelling(text: str) -> None:
    """Either case, and any number of leading 0x."""
    assert from_json(kms.AppIdRequest, f'{{"app_id":"{text}"}}') == kms.AppIdRequest(b"\x0a\xff")


@pytest.mark.parametrize("text", ["", "0x", "0x0x"])
def test_no_digits_are_no_bytes(text: str) -> None:
    """Empty hexadecimal is empty bytes."""
    assert from_json(kms.AppIdRequest, f'{{"app_id":"{text}"}}') == kms.AppIdRequest(b"")


@pytest.mark.parametrize("text", ["0", "0x0", "zz", "0 ", " 00", "00\\n", "0X00", "００"])
def test_other_hexadecimal_is_refused(text: str) -> None:
    """Nothing but whole bytes in ASCII digits."""
    with pytest.raises(MessageMalformedError, match=r"^app_id: want hexadecimal of even length"):
        from_json(kms.AppIdRequest, f'{{"app_id":"{text}"}}')


@pytest.mark.parametrize("number", [0, 1, (1 << 64) - 1])
def test_numbers_are_read_whole(number: int) -> None:
    """The whole range of 64 bits."""
    assert from_json(kms.PublicKeyResponse, f'{{"timestamp":{number}}}').timestamp == number


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("-1", "want a number from 0 to 18446744073709551615"),
        (str(1 << 64), "want a number from 0 to 18446744073709551615"),
        ("1.0", "want a whole number, got a number"),
        ("1e3", "want a whole number, got a number"),
        ("true", "want a whole number, got true or false"),
        ('"1"', "want a whole number, got text"),
        ("null", "want a whole number, got null"),
        ("[1]", "want a whole number, got a list"),
        ("{}", "want a whole number, got an object"),
    ],
)
def test_other_numbers_are_refused(value: str, named: str) -> None:
    """No sign, fraction, text or null, and no more than 64 bits; the field is named."""
    with pytest.raises(MessageMalformedError, match=f"^timestamp: {named}$"):
        from_json(kms.PublicKeyResponse, f'{{"timestamp":{value}}}')


def test_a_u32_has_its_own_range() -> None:
    """One more than 32 bits hold is refused."""
    assert from_json(kms.GetAppKeyRequest, '{"api_version":4294967295}').api_version == 4294967295
    with pytest.raises(MessageMalformedError, match="api_version: want a number from 0 to 4294967295"):
        from_json(kms.GetAppKeyRequest, '{"api_version":4294967296}')


@pytest.mark.parametrize(
    ("message", "text", "named"),
    [
        (kms.BootstrapRequest, '{"domain":1}', "domain: want text, got a number"),
        (kms.BootstrapRequest, '{"domain":null}', "domain: want text, got null"),
        (kms.BootstrapRequest, '{"domain":"\\ud800"}', "domain: half of a surrogate pair"),
        (kms.GetMetaResponse, '{"is_dev":1}', "is_dev: want true or false, got a number"),
        (kms.GetMetaResponse, '{"is_dev":null}', "is_dev: want true or false, got null"),
        (kms.GetMetaResponse, '{"bootstrap_info":[]}', "bootstrap_info: want an object, got a list"),
        (kms.GetMetaResponse, '{"bootstrap_info":{"ca_pubkey":1}}', r"bootstrap_info\.ca_pubkey: want text"),
        (kms.KmsKeyResponse, '{"keys":{}}', "keys: want a list, got an object"),
        (kms.KmsKeyResponse, '{"keys":null}', "keys: want a list, got null"),
        (kms.KmsKeyResponse, '{"keys":[{},{"k256_key":"0"}]}', r"keys\[1\]\.k256_key: want hexadecimal"),
        (guest.GetTlsKeyRequest, '{"alt_names":["a",1]}', r"alt_names\[1\]: want text, got a number"),
        (guest.GetKeyResponse, '{"signature_chain":["0"]}', r"signature_chain\[0\]: want hexadecimal"),
    ],
)
def test_a_field_of_another_kind_is_refused(message: type, text: str, named: str) -> None:
    """The path of the field is named, down to the element of a list."""
    with pytest.raises(MessageMalformedError, match=named):
        from_json(message, text)


def test_null_unsets_what_is_optional() -> None:
    """Optional fields and sub-messages take null; zero is something else."""
    text = '{"bootstrap_info":null,"gateway_app_id":null,"chain_id":null}'

    assert from_json(kms.GetMetaResponse, text) == kms.GetMetaResponse()
    assert from_json(kms.GetMetaResponse, '{"chain_id":0}') == kms.GetMetaResponse(chain_id=0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("{} {}", "not JSON"),
        (b'{"domain":"\xff"}', "not JSON"),
        ('{"domain":"a"}'.encode("utf-16"), "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"x":' + "9" * 5000 + "}", "not JSON"),
        ("[]", "want an object, got a list"),
        ("null", "want an object, got null"),
        ('"text"', "want an object, got text"),
        ('{"x":NaN}', "NaN is no number"),
        ('{"domain":"a","domain":"b"}', "a name occurs twice"),
        ('{"x":{"y":1,"y":2}}', "a name occurs twice"),
    ],
)
def test_what_is_no_json_object_is_refused(text: str | bytes, named: str) -> None:
    """Not JSON, not UTF-8, too deep, too long a number, not an object, or ambiguous."""
    with pytest.raises(MessageMalformedError, match=named):
        from_json(kms.BootstrapRequest, text)


def test_long_hexadecimal_takes_little_memory() -> None:
    """A stranger's ten megabytes of digits do not become a gigabyte while they are read."""
    body = b'{"app_id": "%s"}' % (b"0x" * 2 + b"ab" * (2 << 20))
    tracemalloc.start()
    try:
        read = from_json(kms.AppIdRequest, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert read.app_id == b"\xab" * (2 << 20)
    assert peak < 5 * len(body)


def test_values_are_bounded() -> None:
    """Ten million small values take seconds to read, for which nobody else in the process has a turn."""
    with pytest.raises(MessageMalformedError, match="AppIdRequest: want at most 100000 commas and opening brackets"):
        from_json(kms.AppIdRequest, b'{"any": [' + b"[]," * 50_000 + b"1]}")
