"""The two state machines of a handover."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dstack.errors import HandoverRefusedError
from dstack.values import AppId, Digest32
from replicator.answers import Answer
from replicator.custody import Custody, Receipt
from replicator.documents import Address, QuotedRequest, Request
from replicator.handover import (
    CLOCK_TOLERANCE,
    MAX_ANSWERED,
    MAX_PENDING,
    REQUEST_LIFETIME,
    TRANSFER_LIFETIME,
    Answered,
    Asked,
    NewNode,
    OldNode,
    require_parties,
)
from tests.unit.replicator.test_documents import GENESIS, LAW, NEW, OLD, TERMS

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
APP = AppId(b"\x01" * 20)


def make_request(number: int, at: datetime = AT) -> QuotedRequest:
    """The request of that number, made at *at*."""
    expires_at = int((at + REQUEST_LIFETIME).timestamp())
    request = Request(Digest32(bytes(32)), Digest32(number.to_bytes(32, "big")), APP, LAW, expires_at)
    return QuotedRequest(request, b"evidence %d" % number)


def make_receipt(quoted: QuotedRequest, sealed_key: bytes = b"sealed") -> Receipt:
    """The receipt of an answer to *quoted*."""
    terms = replace(TERMS, request=quoted.request, transcript=quoted.transcript())
    return Receipt(terms, Digest32(hashlib.sha256(sealed_key).digest()))


def make_answer(quoted: QuotedRequest) -> Answer:
    """An answer to *quoted*."""
    return Answer(b"sealed", make_receipt(quoted, b"sealed"), Custody(GENESIS), b"evidence")


def test_a_second_request_does_not_replace_the_first() -> None:
    """Requests wait beside each other; an answer finds its own."""
    first, second = Asked(make_request(1), b"k1"), Asked(make_request(2), b"k2")

    node = NewNode().asking(first, AT).asking(second, AT)

    assert node.for_answer(make_answer(first.quoted), AT) == first
    assert node.for_answer(make_answer(second.quoted), AT) == second


def test_waiting_requests_are_bounded_and_expire() -> None:
    """One more than the bound is refused, until the waiting ones have expired."""
    node = NewNode()
    for number in range(MAX_PENDING):
        node = node.asking(Asked(make_request(number), b""), AT)
    later = AT + REQUEST_LIFETIME
    one_more = Asked(make_request(99, later), b"")

    with pytest.raises(HandoverRefusedError, match=f"at most {MAX_PENDING} waiting"):
        node.asking(one_more, AT)

    assert node.asking(one_more, later).asked == (one_more,)


def test_a_private_key_does_not_show() -> None:
    """The text form of a node's state does not contain the key that opens its answers."""
    node = NewNode((Asked(make_request(1), b"a key nobody may see"),))

    assert "a key nobody may see" not in repr(node)


@pytest.mark.parametrize("late", [timedelta(), timedelta(seconds=1)])
def test_an_expired_request_takes_no_answer(late: timedelta) -> None:
    """From the second of its expiry on, a request is as if it had never been made."""
    quoted = make_request(1)
    node = NewNode((Asked(quoted, b""),))

    with pytest.raises(HandoverRefusedError, match="waits here"):
        node.for_answer(make_answer(quoted), AT + REQUEST_LIFETIME + late)


def test_a_transfer_that_has_begun_goes_on_after_the_expiry() -> None:
    """An accepted answer is taken on for a day after its request has expired, and then forgotten with the key."""
    quoted = make_request(1)
    node = NewNode((Asked(quoted, b"key"),)).accepting(make_receipt(quoted))
    last = AT + REQUEST_LIFETIME + TRANSFER_LIFETIME

    assert node.for_answer(make_answer(quoted), last - timedelta(seconds=1)).stage == "receiving"
    assert node.at(last) == NewNode()


@pytest.mark.parametrize(
    "change",
    [
        {"app_id": AppId(bytes(20))},
        {"law": replace(LAW, operator=Address(bytes(20)))},
        {"nonce": Digest32(bytes(32))},
        {"public_key": Digest32(b"\x01" * 32)},
        {"expires_at": 1},
    ],
)
def test_an_answer_must_repeat_the_request_word_by_word(change: dict[str, object]) -> None:
    """An answer about a request that differs from ours in any one field answers nothing that we asked."""
    quoted = make_request(1)
    other = replace(quoted, request=replace(quoted.request, **change))

    with pytest.raises(HandoverRefusedError, match="no request"):
        NewNode((Asked(quoted, b""),)).for_answer(make_answer(other), AT)


def test_an_answer_to_other_evidence_is_refused() -> None:
    """An answer whose transcript is of our request with another quote is refused."""
    quoted = make_request(1)

    with pytest.raises(HandoverRefusedError, match="answer: transcript"):
        NewNode((Asked(quoted, b""),)).for_answer(make_answer(replace(quoted, evidence=b"other")), AT)


def test_a_receipt_for_another_key_is_refused() -> None:
    """The receipt's digest must be that of the sealed key."""
    quoted = make_request(1)

    with pytest.raises(HandoverRefusedError, match="another sealed key"):
        NewNode((Asked(quoted, b""),)).for_answer(replace(make_answer(quoted), sealed_key=b"changed"), AT)


def test_another_answer_with_the_same_content_goes_on_where_the_first_one_ended() -> None:
    """Chunks that were opened stay good under the answer of a restarted old node; of other content none does."""
    quoted = make_request(1)
    first = make_receipt(quoted)
    node = NewNode((Asked(quoted, b"key"),)).accepting(first).received(first, 3)
    again = make_receipt(quoted, b"another key")
    other = replace(again, terms=replace(again.terms, fingerprint=Digest32(bytes(32))))
    larger = replace(again, terms=replace(again.terms, size=again.terms.size + 1))

    assert node.accepting(again).of(again).next_chunk == 3
    assert node.accepting(other).of(other).next_chunk == 0
    assert node.accepting(larger).of(larger).next_chunk == 0


def test_an_answer_that_comes_too_late_is_refused() -> None:
    """What was judged while another answer was stored, or the request ended, changes nothing."""
    quoted = make_request(1)
    first, late = make_receipt(quoted), make_receipt(quoted, b"another key")
    stored = NewNode((Asked(quoted, b"key"),)).accepting(first).storing(first)

    with pytest.raises(HandoverRefusedError, match="another answer to this request was stored already"):
        stored.accepting(late)
    with pytest.raises(HandoverRefusedError, match=f"no request {quoted.request.hash().hex()} waits here"):
        NewNode().received(first, 1)


def test_what_is_stored_forgets_its_key() -> None:
    """After the last step no key is left, and the request takes no further answer as a new one."""
    quoted = make_request(1)
    receipt = make_receipt(quoted)
    node = NewNode((Asked(quoted, b"key"),)).accepting(receipt).storing(receipt)

    assert node.of(receipt) == Asked(quoted, b"", receipt, stored=True)
    assert node.pending(AT) == ()


def test_a_receipt_must_name_the_parties_that_were_seen() -> None:
    """A receipt with another sender or another receiver than the evidence showed is refused; the right one is not."""
    receipt = make_receipt(make_request(1))

    require_parties(receipt, sender=OLD, receiver=NEW)

    with pytest.raises(HandoverRefusedError, match="receipt: sender"):
        require_parties(receipt, sender=NEW, receiver=NEW)
    with pytest.raises(HandoverRefusedError, match="receipt: receiver"):
        require_parties(receipt, sender=OLD, receiver=OLD)


def test_the_sides_may_differ_about_a_tcb_status() -> None:
    """Each side judges by its own collateral; the names of the parties stay comparable."""
    require_parties(make_receipt(make_request(1)), sender=replace(OLD, tcb_status="OutOfDate"), receiver=NEW)


def test_answered_requests_are_bounded() -> None:
    """An old node that cannot remember one more answered request refuses it, rather than forget another."""
    quoted = [make_request(number) for number in range(MAX_ANSWERED)]
    node = OldNode(tuple(Answered(each.transcript(), make_receipt(each)) for each in quoted))

    with pytest.raises(HandoverRefusedError, match=f"at most {MAX_ANSWERED} answered"):
        node.admit(make_request(MAX_ANSWERED), law=LAW, app_id=APP, at=AT)


def test_expired_requests_make_room_for_new_ones() -> None:
    """Whoever has many requests answered keeps nobody out for longer than these are good."""
    quoted = [make_request(number) for number in range(MAX_ANSWERED)]
    full = OldNode(tuple(Answered(each.transcript(), make_receipt(each)) for each in quoted))
    later = AT + REQUEST_LIFETIME
    one_more = make_request(MAX_ANSWERED, later)

    node = full.answering(one_more, make_receipt(one_more), law=LAW, app_id=APP, at=later)

    assert len(node.answered) == MAX_ANSWERED
    assert node.answer_to(quoted[0], later) is None
    assert node.answer_to(quoted[1], later) == make_receipt(quoted[1])
    assert node.answer_to(one_more, later) == make_receipt(one_more)


def test_the_same_request_finds_its_answer() -> None:
    """A request that is delivered twice has one answer; with other evidence it has none, and is refused."""
    quoted = make_request(1)
    receipt = make_receipt(quoted)
    node = OldNode().answering(quoted, receipt, law=LAW, app_id=APP, at=AT)
    changed = replace(quoted, evidence=b"other")

    assert node.answer_to(quoted, AT) == receipt
    assert node.answer_to(changed, AT) is None
    with pytest.raises(HandoverRefusedError, match="answered before, with other evidence"):
        node.admit(changed, law=LAW, app_id=APP, at=AT)


@pytest.mark.parametrize("ahead", [timedelta(), CLOCK_TOLERANCE])
def test_the_new_nodes_clock_may_be_a_little_ahead(ahead: timedelta) -> None:
    """A request made by a clock up to the tolerance ahead is admitted; one second more is not."""
    OldNode().admit(make_request(1, AT + ahead), law=LAW, app_id=APP, at=AT)

    with pytest.raises(HandoverRefusedError, match="expire by"):
        OldNode().admit(make_request(1, AT + CLOCK_TOLERANCE + timedelta(seconds=1)), law=LAW, app_id=APP, at=AT)


class HandoverMachine(RuleBasedStateMachine):
    """Two nodes and a clock that goes forward; requests and answers are lost, repeated and reordered at will."""

    def __init__(self) -> None:
        super().__init__()
        self.new, self.old, self.now = NewNode(), OldNode(), AT
        self.requests: list[QuotedRequest] = []
        self.answers: list[Answer] = []
        self.stored: list[Digest32] = []

    @rule(seconds=st.integers(1, 400))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def asks(self) -> None:
        quoted = make_request(len(self.requests), self.now)
        try:
            self.new = self.new.asking(Asked(quoted, b"key"), self.now)
        except HandoverRefusedError:
            return
        self.requests.append(quoted)

    @rule(data=st.data())
    def answers_any_request(self, data: st.DataObject) -> None:
        if not self.requests:
            return
        quoted = data.draw(st.sampled_from(self.requests))
        if self.old.answer_to(quoted, self.now):
            return
        answer = make_answer(quoted)
        try:
            self.old = self.old.answering(quoted, answer.receipt, law=LAW, app_id=APP, at=self.now)
        except HandoverRefusedError:
            return
        self.answers.append(answer)

    @rule(data=st.data())
    def receives_any_answer(self, data: st.DataObject) -> None:
        if not self.answers:
            return
        answer = data.draw(st.sampled_from(self.answers))
        try:
            asked = self.new.for_answer(answer, self.now)
        except HandoverRefusedError:
            return
        if not asked.stored:
            assert asked.request.expires_at > self.now.timestamp()
            self.stored.append(asked.request.hash())
            self.new = self.new.accepting(answer.receipt).storing(answer.receipt)

    @invariant()
    def nothing_happens_twice(self) -> None:
        assert len({each.receipt.terms.request for each in self.answers}) == len(self.answers)
        assert len(set(self.stored)) == len(self.stored)

    @invariant()
    def only_what_was_answered_is_stored(self) -> None:
        assert set(self.stored) <= {each.receipt.terms.request.hash() for each in self.answers}

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.new.pending(self.now)) <= MAX_PENDING


TestHandoverMachine = HandoverMachine.TestCase
