"""The OCTET STRING around a payload."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.errors import EvidenceMalformedError
from dstack.keys.der import octet_string, read_octet_string


@pytest.mark.parametrize(
    ("size", "header"),
    [(0, "0400"), (127, "047f"), (128, "048180"), (255, "0481ff"), (256, "04820100"), (65536, "0483010000")],
)
def test_the_length_has_its_shortest_form(size: int, header: str) -> None:
    """Short form up to 127, then as few bytes as the length needs."""
    assert octet_string(bytes(size)) == bytes.fromhex(header) + bytes(size)


@given(st.binary(max_size=600))
def test_reading_undoes_writing(payload: bytes) -> None:
    """Any payload survives."""
    assert read_octet_string(octet_string(payload)) == payload


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ("", "want an OCTET STRING"),
        ("04", "want an OCTET STRING"),
        ("0c0161", "want an OCTET STRING"),
        ("040161ff", "its length equal to its content"),
        ("040261", "its length equal to its content"),
        ("04810161", "its length equal to its content"),
        ("0482000161", "its length equal to its content"),
        ("0480610000", "its length equal to its content"),
        ("0485000000000161", "its length equal to its content"),
        ("04ff", "its length equal to its content"),
    ],
)
def test_every_other_form_is_refused(raw: str, named: str) -> None:
    """Other tags, bytes left over or missing, long lengths of short content, and endless ones."""
    with pytest.raises(EvidenceMalformedError, match=named):
        read_octet_string(bytes.fromhex(raw))
