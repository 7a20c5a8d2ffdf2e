"""P24: chain id and contract address are bound into whatever a KMS or replicator signs about a decision.

The replicator's request and receipt bind both. A KMS signs no statement about a decision: its signature chain over
app keys is upstream's (tests/vectors/kms/signature_chain.json) and names neither chain nor contract; which contract and
chain it asks it only says, unsigned, in `GetMeta`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dstack.errors import HandoverRefusedError
from dstack.values import AppId, ComposeHash, Digest32, OsImageHash
from replicator.documents import Address, Law, Party, Receipt, Request, Terms
from replicator.handover import OldNode
from tests.governed_world import GovernedWorld, proposal_id

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
APP = AppId(b"\x01" * 20)
LAW = Law(31337, Address(b"\x02" * 20))
OTHERS = [replace(LAW, chain_id=1), replace(LAW, contract=Address(b"\x03" * 20))]
PARTY = Party(ComposeHash(b"\x03" * 32), None, OsImageHash(b"\x04" * 32))


def request(law: Law) -> Request:
    """A request under a law."""
    expires_at = int((AT + timedelta(minutes=1)).timestamp())
    return Request(Digest32(b"\x05" * 32), Digest32(b"\x06" * 32), APP, law, expires_at)


def receipt(law: Law) -> Receipt:
    """A receipt under a law; everything else is the same."""
    asked = request(LAW).hash()
    terms = Terms(asked, APP, law, 7, Digest32(b"\x07" * 32), int(AT.timestamp()), PARTY, PARTY, False)
    return Receipt(terms, Digest32(b"\x08" * 32))


@pytest.mark.parametrize("other", OTHERS, ids=["chain", "contract"])
def test_p24_the_quote_of_a_request_binds_both(other: Law) -> None:
    """The report data that the new node has signed differs, and so does the name of the request."""
    assert request(LAW).report_data() != request(other).report_data()
    assert request(LAW).hash() != request(other).hash()


@pytest.mark.parametrize("other", OTHERS, ids=["chain", "contract"])
def test_p24_the_quote_of_a_receipt_binds_both(other: Law) -> None:
    """What the old node has signed about its decision differs."""
    assert receipt(LAW).report_data() != receipt(other).report_data()


@pytest.mark.parametrize(
    ("other", "said"), zip(OTHERS, ["want chain 31337, got 1", "want contract 0x0202"], strict=True), ids=["c", "a"]
)
def test_p24_a_request_under_another_law_is_refused(other: Law, said: str) -> None:
    """Before anything is sealed, and in its own words."""
    with pytest.raises(HandoverRefusedError, match=said):
        OldNode().answering(request(other), law=LAW, app_id=APP, at=AT)


def test_p24_what_signers_sign_of_a_proposal_binds_both(governed: GovernedWorld) -> None:
    """The id of a proposal is another on another chain or in another operator."""
    content = governed.content([governed.compose()])
    here = proposal_id(31337, governed.operator.address, 0, content)

    assert bytes(governed.operator.functions.proposalId(0, content).call()) == here
    assert here != proposal_id(1, governed.operator.address, 0, content)
    assert here != proposal_id(31337, governed.kms.address, 0, content)
