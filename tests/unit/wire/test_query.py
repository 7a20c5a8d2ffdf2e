"""Messages in the query of a URL."""

import pytest

from dstack.errors import MessageMalformedError
from dstack.wire import guest, kms
from dstack.wire.message import from_query


def test_nothing_is_all_defaults() -> None:
    """An empty query, and one that only asks for JSON."""
    assert from_query(kms.GetAppKeyRequest, "") == from_query(kms.GetAppKeyRequest, "json") == kms.GetAppKeyRequest()


def test_fields_of_every_kind_are_read() -> None:
    """Text, numbers, truth, bytes, lists and optional fields; names that are unknown are ignored."""
    request = from_query(
        guest.GetTlsKeyRequest,
        "json&subject=a+b%2Bc%C3%A9&alt_names[0]=x&alt_names[]=y&usage_ra_tls=true&with_app_info=false"
        "&not_before=0&other[a]=1&&",
    )

    assert request == guest.GetTlsKeyRequest(subject="a b+cé", alt_names=("x", "y"), usage_ra_tls=True, not_before=0)
    assert from_query(kms.AppIdRequest, "app_id=0x0aFF") == kms.AppIdRequest(b"\x0a\xff")


def test_brackets_may_be_escaped() -> None:
    """Many clients escape them."""
    assert from_query(guest.GetTlsKeyRequest, "alt_names%5B0%5D=x") == guest.GetTlsKeyRequest(alt_names=("x",))


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("subject=a&subject=b", "subject: want one value"),
        ("subject[0]=a", "subject: want one value"),
        ("alt_names=a", "alt_names: want element 0, got no brackets"),
        ("alt_names[1]=a", r"alt_names: want element 0, got \[1\]"),
        ("alt_names[0]=a&alt_names[0]=b", r"alt_names: want element 1, got \[0\]"),
        ("alt_names[0][0]=a", "alt_names: want element 0"),
        ("not_before=", "not_before: want a decimal number"),
        ("not_before=-1", "not_before: want a decimal number"),
        ("not_before=+1", "not_before: want a decimal number"),
        ("not_before=1_0", "not_before: want a decimal number"),
        ("not_before=%D9%A1", "not_before: want a decimal number"),
        ("not_before=99999999999999999999", "not_before: want a number from 0 to"),
        ("usage_ra_tls=1", "usage_ra_tls: want true or false"),
        ("usage_ra_tls", "usage_ra_tls: want true or false"),
        ("subject=%", "want two hexadecimal digits after %"),
        ("subject=%4", "want two hexadecimal digits after %"),
        ("subject=%  ", "want two hexadecimal digits after %"),
        ("subject=%ff", "want percent-encoded UTF-8"),
        ("subject=é", "want percent-encoded UTF-8"),
        ("=a", "want a name, then brackets or nothing"),
        ("a[=b", "want a name, then brackets or nothing"),
        ("&".join(f"n{n}=1" for n in range(257)), "want at most 256 fields, got 257"),
    ],
)
def test_other_queries_are_refused(query: str, named: str) -> None:
    """Ambiguity, wrong kinds and broken escapes; the field is named."""
    with pytest.raises(MessageMalformedError, match=named):
        from_query(guest.GetTlsKeyRequest, query)


def test_a_message_inside_a_message_is_refused() -> None:
    """No request of ours has one, and nothing is guessed."""
    with pytest.raises(MessageMalformedError, match="bootstrap_info: a message inside a message"):
        from_query(kms.GetMetaResponse, "bootstrap_info[ca_pubkey]=00")
