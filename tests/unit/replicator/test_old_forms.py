"""The forms of the original service around the documents of version 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest

from dstack.attestation.evidence import parse_evidence, serialise_evidence
from dstack.errors import HandoverRefusedError, MessageMalformedError
from replicator.documents import parse_request, serialise_request
from replicator.old_forms import answer_in_text, is_old_form, old_request, request_in_form, sealed_text
from tests.worlds import Site, make_handover


def test_a_request_survives_the_old_form(tmp_path: Path, site: Site) -> None:
    """The quote is the machine's quote, with the request after it; the form gives back the same request."""
    world = make_handover(tmp_path, site)
    quoted = world.new.request_key()
    old = old_request(quoted)
    quote = parse_evidence(quoted.evidence).quote

    assert set(old) == {"quote", "pubk"}
    assert bytes.fromhex(old["quote"]).startswith(quote)
    assert parse_request(request_in_form(urlencode(old).encode())) == quoted


def test_an_answer_survives_the_old_form() -> None:
    """The text gives back the line and the chunks, whatever white space a shell adds."""
    text = b"".join(sealed_text((b'{"a":1}\n', b"\x00chunk\n")))

    assert is_old_form(text)
    assert answer_in_text(text + b"\n") == (b'{"a":1}', b"\x00chunk\n")


def test_a_bare_quote_is_refused(tmp_path: Path, site: Site) -> None:
    """What the original sent shows no event log and binds no chain: it is refused as a downgrade."""
    world = make_handover(tmp_path, site)
    quoted = world.new.request_key()
    bare = {"pubk": quoted.request.public_key.hex(), "quote": parse_evidence(quoted.evidence).quote.hex()}

    with pytest.raises(HandoverRefusedError, match="got a bare quote"):
        request_in_form(urlencode(bare).encode())


def test_a_bare_sealed_box_is_refused() -> None:
    """What the original answered names no sender."""
    with pytest.raises(HandoverRefusedError, match="bare sealed box"):
        answer_in_text((b"\x07" * 90).hex().encode())


def test_another_key_beside_the_quote_is_refused(tmp_path: Path, site: Site) -> None:
    """`pubk` must be the key that the quote binds."""
    form = old_request(make_handover(tmp_path, site).new.request_key()) | {"pubk": "00" * 32}

    with pytest.raises(MessageMalformedError, match="pubk: want the key of the request"):
        request_in_form(urlencode(form).encode())


def test_another_quote_before_the_request_is_refused(tmp_path: Path, site: Site) -> None:
    """The quote in front must be the one inside, so that nobody looks at another than is judged."""
    world = make_handover(tmp_path, site)
    quoted = world.new.request_key()
    other = parse_evidence(serialise_evidence(world.old_machine.evidence(quoted.request.report_data()))).quote
    form = old_request(quoted)
    genuine = parse_evidence(quoted.evidence).quote.hex()

    with pytest.raises(MessageMalformedError, match="want the quote of the request inside it"):
        request_in_form(urlencode(form | {"quote": form["quote"].replace(genuine, other.hex())}).encode())


@pytest.mark.parametrize(
    "raw", [b"", b"pubk=00", b"pubk=00&quote=00&x=1", b"pubk=00&pubk=00", b"\xff", b"pubk=xy&quote=zz", b"a" * 100]
)
def test_another_form_is_bad_input(raw: bytes) -> None:
    """Anything but the two fields, each once and in hexadecimal, is refused."""
    with pytest.raises(MessageMalformedError, match=r"onboard|old form"):
        request_in_form(raw)


def test_the_form_of_version_2_is_told_apart(tmp_path: Path, site: Site) -> None:
    """A document of version 2 is not taken for an old form."""
    quoted = make_handover(tmp_path, site).new.request_key()

    assert not is_old_form(serialise_request(replace(quoted)).encode())
