"""The chain of custody: it cannot be rewritten, and what descends is told from what does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dstack.errors import HandoverRefusedError, MessageMalformedError
from dstack.measurement.strict_json import Members
from dstack.values import AppId, Digest32
from replicator.custody import MAX_LINKS, Custody, Receipt, read_custody
from tests.unit.replicator.test_documents import GENESIS, RECEIPT, TERMS

F0, F1, F2 = (Digest32(bytes([number]) * 32) for number in range(3))


def handed(custody: Custody, fingerprint: Digest32 = F0) -> Custody:
    """The chain after one more handover of content with this fingerprint."""
    terms = replace(TERMS, fingerprint=fingerprint, custody=custody.head, depth=custody.depth)
    return custody.after(replace(RECEIPT, terms=terms))


def read(custody: Custody) -> Custody:
    """Through JSON and back."""
    value = json.loads(json.dumps(custody.members()))
    return read_custody(Members.of(value, what="custody", error=MessageMalformedError))


def test_a_long_chain_keeps_its_head_and_depth() -> None:
    """Older links are left out, and the head still stands for all of them."""
    custody = Custody(GENESIS)
    heads = {custody.head}
    for _ in range(MAX_LINKS + 3):
        custody = handed(custody)
        heads.add(custody.head)

    assert (len(custody.links), custody.depth, len(heads)) == (MAX_LINKS, MAX_LINKS + 3, MAX_LINKS + 4)
    assert read(custody) == custody


@pytest.mark.parametrize("left_out", [1, 2])
def test_the_past_cannot_be_cut_off(left_out: int) -> None:
    """Links that follow each other are not enough: what lies between them and the genesis is there, up to the limit."""
    custody = handed(handed(handed(Custody(GENESIS))))

    with pytest.raises(MessageMalformedError, match=f"want the last {MAX_LINKS} links, or all .* got {3 - left_out}"):
        read(Custody(GENESIS, custody.links[left_out:]))


def test_a_chain_of_another_app_is_refused() -> None:
    """Neither a link nor what continues the chain may be of another app than the genesis."""
    other = replace(TERMS.request, app_id=AppId(b"\x99" * 20))
    foreign = Custody(
        GENESIS, (replace(RECEIPT, terms=replace(TERMS, request=other, custody=GENESIS.hash(), depth=0)),)
    )
    here = Custody(GENESIS)

    with pytest.raises(MessageMalformedError, match="a link is of another app"):
        read(foreign)
    with pytest.raises(HandoverRefusedError, match=f"receipt: app: want {GENESIS.app_id.hex()}, got {'99' * 20}"):
        here.require_before(replace(TERMS, request=other, custody=here.head, depth=0))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_changed_link_breaks_the_chain(position: int) -> None:
    """Links that were changed in any place no longer follow each other; the last one is held by the head."""
    custody = handed(handed(handed(Custody(GENESIS))))
    links = list(custody.links)
    links[position] = replace(links[position], terms=replace(links[position].terms, at=1))
    changed = Custody(GENESIS, tuple(links))

    if position == 2:
        assert read(changed).head != custody.head
        return
    with pytest.raises(MessageMalformedError, match=f"link {position + 1} does not continue"):
        read(changed)


def test_a_chain_of_another_genesis_is_refused() -> None:
    """Links cannot be hung under another genesis."""
    other = replace(GENESIS, nonce=Digest32(b"\x99" * 32))

    with pytest.raises(MessageMalformedError, match="does not continue the genesis"):
        read(Custody(other, handed(Custody(GENESIS)).links))


def test_a_link_that_names_another_genesis_is_refused() -> None:
    """Every link names the genesis of its chain."""
    link = replace(RECEIPT, terms=replace(TERMS, genesis=F2))

    with pytest.raises(MessageMalformedError, match="a link is of another genesis"):
        read(Custody(GENESIS, (link,)))


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"genesis": F2}, "receipt: genesis"), ({"custody": F2}, "receipt: custody"), ({"depth": 1}, "receipt: depth")],
)
def test_terms_must_continue_the_chain(changes: dict[str, object], match: str) -> None:
    """A receipt that names another past than the chain beside it is refused."""
    Custody(GENESIS).require_before(TERMS)

    with pytest.raises(HandoverRefusedError, match=match):
        Custody(GENESIS).require_before(replace(TERMS, **changes))


def test_what_went_through_the_held_content_descends_from_it() -> None:
    """A node takes back a later content, if the chain shows that its own was handed on as it still is."""
    held = Custody(GENESIS)

    handed(handed(held, F0), F1).require_descends(held, F0)


def test_what_never_saw_a_local_change_does_not_replace_it() -> None:
    """Content that was changed here after it was handed on is not lost to an older line."""
    held = Custody(GENESIS)

    with pytest.raises(HandoverRefusedError, match="was changed since it was handed on"):
        handed(handed(held, F0), F1).require_descends(held, F2)


def test_a_side_line_does_not_replace_a_later_one() -> None:
    """Two nodes that got the file from one do not overwrite each other."""
    first = handed(Custody(GENESIS), F0)
    second = Custody(GENESIS).after(replace(first.links[0], sealed_key_sha256=F1))

    with pytest.raises(HandoverRefusedError, match="does not descend"):
        handed(second, F1).require_descends(first, F0)


def test_an_older_place_in_the_same_line_does_not_replace_a_later_one() -> None:
    """A rollback to content from before is refused."""
    first = handed(Custody(GENESIS), F0)

    with pytest.raises(HandoverRefusedError, match="does not descend"):
        first.require_descends(handed(first, F1), F1)


def test_another_genesis_is_a_second_secret() -> None:
    """Nothing of another genesis takes the place of what is held."""
    other = Custody(replace(GENESIS, nonce=F2))

    with pytest.raises(HandoverRefusedError, match="this would be a second secret"):
        handed(other).require_descends(Custody(GENESIS), F0)


def test_receipts_are_told_apart() -> None:
    """Two handovers of the same content at the same place are two links."""
    assert Receipt(TERMS, F0).head() != Receipt(TERMS, F1).head()
