"""The forms of the original service (guest.md 9), as envelopes around version 2. Pure.

Old scripts carry `pubk`, `quote` and the sealed text from one node to the other without looking inside. So they work
unchanged, and what they carry holds all that version 2 demands: `quote` is the quote with the request document after
it, the sealed text is the answer and its chunks in hexadecimal. A bare quote or a bare sealed box, as the original sent
them, shows neither event log nor sender and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl

from dstack.attestation.evidence import parse_evidence
from dstack.errors import HandoverRefusedError, InputError, MessageMalformedError
from dstack.values import bytes_from_hex
from replicator.answers import MAX_ANSWER
from replicator.documents import QuotedRequest, parse_request, serialise_request

MAX_CONTENT = 1 << 20
"""Bytes of a secure file that travels in the old form: it is one text in the hands of a shell."""

MAX_SEALED_TEXT = 2 * (MAX_ANSWER + 2 * MAX_CONTENT)
LOADED = "Loaded encrypted state"
"""What `/receiveKey` answers to that text."""

MARK = b"\0dstack-handover-request-v2\0"


def old_request(quoted: QuotedRequest) -> dict[str, str]:
    """What `/requestKey` answers in the old form."""
    quote = parse_evidence(quoted.evidence).quote
    envelope = quote + MARK + serialise_request(quoted).encode()
    return {"quote": envelope.hex(), "pubk": quoted.request.public_key.hex()}


def old_status(quoted: QuotedRequest | None, genesis_evidence: bytes | None) -> dict[str, str]:
    """What the original's `/status` says of itself, from what this service has in its place; empty where it has none.

    Args:
        quoted: The newest request that waits: its key and quote are the original's own of round 1.
        genesis_evidence: The evidence of the genesis, where this node made it.
    """
    return {
        "myPub": quoted.request.public_key.hex() if quoted else "",
        "onboard_quote": parse_evidence(quoted.evidence).quote.hex() if quoted else "",
        "bootstrap_quote": parse_evidence(genesis_evidence).quote.hex() if genesis_evidence else "",
        # An account and a key name of the original, which shares one secret key; here each container has its own.
        "addr": "",
        "myKey": "",
    }


def is_old_form(raw: bytes) -> bool:
    """Whether the body of `/onboard` or `/receiveKey` is not a document of version 2."""
    return raw.lstrip()[:1] != b"{"


def request_in_form(raw: bytes) -> bytes:
    """The request document out of the form `pubk=..&quote=..` that `/onboard` gets.

    Raises:
        MessageMalformedError: Another form, or its parts do not fit each other.
        HandoverRefusedError: A bare quote.
    """
    fields = _form(raw)
    envelope = _hex(fields["quote"], "quote")
    quote, mark, document = envelope.partition(MARK)
    if not mark:
        raise HandoverRefusedError(
            "onboard: quote: want what this service's /requestKey answered, got a bare quote: it binds neither chain "
            "nor nonce nor expiry, and shows no event log"
        )
    quoted = parse_request(document)
    if parse_evidence(quoted.evidence).quote != quote:
        raise MessageMalformedError("onboard: quote: want the quote of the request inside it, got another")
    if quoted.request.public_key != _hex(fields["pubk"], "pubk"):
        raise MessageMalformedError("onboard: pubk: want the key of the request in quote, got another")
    return document


def sealed_text(parts: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """An answer in the old form."""
    for part in parts:
        yield part.hex().encode()


def answer_in_text(raw: bytes) -> tuple[bytes, bytes]:
    """The answer's line and all its chunks, out of the text that `/receiveKey` gets.

    Raises:
        MessageMalformedError: It is not hexadecimal.
        HandoverRefusedError: A bare sealed box.
    """
    try:
        text = raw.decode("ascii").strip()
    except UnicodeError as exc:
        raise MessageMalformedError("receiveKey: want hexadecimal text, got other bytes") from exc
    line, feed, chunks = _hex(text, "text").partition(b"\n")
    if not feed or not line.startswith(b"{"):
        raise HandoverRefusedError(
            "receiveKey: want what this service's /onboard answered, got a bare sealed box: it names no sender"
        )
    return line, chunks


def _form(raw: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(raw.decode("ascii"), strict_parsing=True, max_num_fields=2, keep_blank_values=True)
    except ValueError as exc:
        raise MessageMalformedError("onboard: want a form with pubk and quote") from exc
    if sorted(name for name, _ in pairs) != ["pubk", "quote"]:
        raise MessageMalformedError("onboard: want a form with pubk and quote, each once")
    return dict(pairs)


def _hex(text: str, name: str) -> bytes:
    try:
        return bytes_from_hex(text, what=name)
    except InputError as exc:
        raise MessageMalformedError(f"old form: {exc}") from exc
