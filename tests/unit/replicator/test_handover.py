"""The two state machines of a handover."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dstack.errors import HandoverRefusedError
from dstack.values import AppId, ComposeHash, Digest32, OsImageHash
from replicator.documents import Address, Answer, Law, Party, Receipt, Request, Terms
from replicator.handover import (
    CLOCK_TOLERANCE,
    MAX_ANSWERED,
    MAX_PENDING,
    REQUEST_LIFETIME,
    NewNode,
    OldNode,
    Pending,
    require_parties,
)

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
APP = AppId(b"\x01" * 20)
LAW = Law(31337, Address(b"\x02" * 20))
PARTY = Party(ComposeHash(b"\x03" * 32), None, OsImageHash(b"\x04" * 32))
OTHER = replace(PARTY, compose_hash=ComposeHash(b"\x05" * 32))


def make_request(number: int, at: datetime = AT) -> Request:
    """The request of that number, made at *at*."""
    expires_at = int((at + REQUEST_LIFETIME).timestamp())
    return Request(Digest32(bytes(32)), Digest32(number.to_bytes(32, "big")), APP, LAW, expires_at)


def make_answer(request: Request, sealed: bytes = b"sealed") -> Answer:
    """An answer to *request*."""
    terms = Terms(request.hash(), request.app_id, request.law, 1, Digest32(bytes(32)), 0, PARTY, OTHER, False)
    return Answer(sealed, Receipt(terms, Digest32(hashlib.sha256(sealed).digest())), b"evidence")


def test_a_second_request_does_not_replace_the_first() -> None:
    """Requests wait beside each other; an answer finds its own."""
    first, second = Pending(make_request(1), b"k1"), Pending(make_request(2), b"k2")

    node = NewNode().asked(first, AT).asked(second, AT)

    assert node.pending_for(make_answer(first.request), AT) == first
    assert node.pending_for(make_answer(second.request), AT) == second


def test_waiting_requests_are_bounded_and_expire() -> None:
    """One more than the bound is refused, until the waiting ones have expired."""
    node = NewNode()
    for number in range(MAX_PENDING):
        node = node.asked(Pending(make_request(number), b""), AT)
    later = AT + REQUEST_LIFETIME
    one_more = Pending(make_request(99, later), b"")

    with pytest.raises(HandoverRefusedError, match=f"at most {MAX_PENDING} waiting"):
        node.asked(one_more, AT)

    assert node.asked(one_more, later).pending == (one_more,)


def test_a_private_key_does_not_show() -> None:
    """The text form of a node's state does not contain the key that opens its answers."""
    node = NewNode((Pending(make_request(1), b"a key nobody may see"),))

    assert "a key nobody may see" not in repr(node)


@pytest.mark.parametrize("late", [timedelta(), timedelta(seconds=1)])
def test_an_expired_request_takes_no_answer(late: timedelta) -> None:
    """From the second of its expiry on, a request is as if it had never been made."""
    request = make_request(1)
    node = NewNode((Pending(request, b""),))

    with pytest.raises(HandoverRefusedError, match="waits here"):
        node.pending_for(make_answer(request), AT + REQUEST_LIFETIME + late)


def test_an_answer_about_another_app_is_refused() -> None:
    """An answer that names our request but another app is refused."""
    request = make_request(1)
    answer = make_answer(request)
    terms = replace(answer.receipt.terms, app_id=AppId(bytes(20)))

    with pytest.raises(HandoverRefusedError, match="answer: want app"):
        NewNode((Pending(request, b""),)).pending_for(replace(answer, receipt=replace(answer.receipt, terms=terms)), AT)


def test_an_answer_under_another_law_is_refused() -> None:
    """An answer that names our request but another contract is refused."""
    request = make_request(1)
    answer = make_answer(request)
    terms = replace(answer.receipt.terms, law=replace(LAW, contract=Address(bytes(20))))

    with pytest.raises(HandoverRefusedError, match="answer: want contract"):
        NewNode((Pending(request, b""),)).pending_for(replace(answer, receipt=replace(answer.receipt, terms=terms)), AT)


def test_a_receipt_for_other_bytes_is_refused() -> None:
    """The receipt's digest must be that of the sealed bytes."""
    request = make_request(1)

    with pytest.raises(HandoverRefusedError, match="other sealed bytes"):
        NewNode((Pending(request, b""),)).pending_for(replace(make_answer(request), sealed=b"changed"), AT)


def test_a_receipt_must_name_the_parties_that_were_seen() -> None:
    """A receipt with another sender or another receiver than the evidence showed is refused; the right one is not."""
    receipt = make_answer(make_request(1)).receipt

    require_parties(receipt, sender=PARTY, receiver=OTHER)

    with pytest.raises(HandoverRefusedError, match="receipt: sender"):
        require_parties(receipt, sender=OTHER, receiver=OTHER)
    with pytest.raises(HandoverRefusedError, match="receipt: receiver"):
        require_parties(receipt, sender=PARTY, receiver=PARTY)


def test_answered_requests_are_bounded() -> None:
    """An old node that cannot remember one more answered request refuses it, rather than forget another."""
    answered = tuple(make_request(number) for number in range(MAX_ANSWERED))

    with pytest.raises(HandoverRefusedError, match=f"at most {MAX_ANSWERED} answered"):
        OldNode(answered).answering(make_request(MAX_ANSWERED), law=LAW, app_id=APP, at=AT)


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
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.answered: list[Digest32] = []
        self.received: list[Digest32] = []

    @rule(seconds=st.integers(1, 400))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def asks(self) -> None:
        request = make_request(len(self.requests), self.now)
        try:
            self.new = self.new.asked(Pending(request, b"key"), self.now)
        except HandoverRefusedError:
            return
        self.requests.append(request)

    @rule(data=st.data())
    def answers_any_request(self, data: st.DataObject) -> None:
        if not self.requests:
            return
        request = data.draw(st.sampled_from(self.requests))
        try:
            self.old = self.old.answering(request, law=LAW, app_id=APP, at=self.now)
        except HandoverRefusedError:
            return
        self.answered.append(request.hash())
        self.answers.append(make_answer(request))

    @rule(data=st.data())
    def receives_any_answer(self, data: st.DataObject) -> None:
        if not self.answers:
            return
        answer = data.draw(st.sampled_from(self.answers))
        try:
            pending = self.new.pending_for(answer, self.now)
        except HandoverRefusedError:
            return
        assert pending.request.expires_at > self.now.timestamp()
        self.received.append(pending.request.hash())
        self.new = self.new.received(pending.request.hash())

    @invariant()
    def nothing_happens_twice(self) -> None:
        assert len(set(self.answered)) == len(self.answered)
        assert len(set(self.received)) == len(self.received)

    @invariant()
    def only_what_was_answered_is_received(self) -> None:
        assert set(self.received) <= set(self.answered)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.new.pending) <= MAX_PENDING


TestHandoverMachine = HandoverMachine.TestCase
