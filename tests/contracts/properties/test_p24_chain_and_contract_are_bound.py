"""P24: chain id and contract address are bound into whatever a KMS or replicator signs about a decision.

The replicator's request and receipt bind both, and so does each entry of a KMS's log of decisions. The signature chain
over app keys is upstream's (tests/vectors/kms/signature_chain.json): it is about keys, and names neither.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dstack.errors import DecisionLogBrokenError, HandoverRefusedError
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, OsImageHash
from kms.decision_log.entry import canonical
from kms.decision_log.signing import DecisionSigner
from kms.decision_log.store import open_store
from kms.decision_log.verification import verify_log
from kms.decision_log.writer import DecisionLog
from replicator.custody import Receipt, Terms
from replicator.documents import Address, Law, Party, QuotedRequest, Request
from replicator.handover import OldNode
from tests.governed_world import GovernedWorld, proposal_id

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
APP = AppId(b"\x01" * 20)
LAW = Law(31337, Address(b"\x02" * 20), Address(b"\x0c" * 20))
OTHERS = {
    "chain": replace(LAW, chain_id=1),
    "operator": replace(LAW, operator=Address(b"\x03" * 20)),
    "contract": replace(LAW, contract=Address(b"\x03" * 20)),
}
SAID = {
    "chain": "want chain 31337, got 1",
    "operator": "want operator 0x0202",
    "contract": "want contract 0x0c0c",
}
PARTY = Party(ComposeHash(b"\x03" * 32), None, OsImageHash(b"\x04" * 32), DeviceId(b"\xde" * 32), "UpToDate")


def digest(fill: int) -> Digest32:
    """Some digest."""
    return Digest32(bytes([fill]) * 32)


def request(law: Law) -> Request:
    """A request under a law."""
    return Request(digest(5), digest(6), APP, law, int((AT + timedelta(minutes=1)).timestamp()))


def receipt(law: Law) -> Receipt:
    """A receipt about a request under a law; everything else is the same."""
    terms = Terms(
        request=request(law),
        transcript=digest(7),
        block_number=7,
        block_hash=digest(8),
        at=int(AT.timestamp()),
        sender=PARTY,
        receiver=PARTY,
        simulated_root=False,
        fingerprint=digest(9),
        size=1,
        genesis=digest(10),
        custody=digest(11),
        depth=0,
    )
    return Receipt(terms, digest(12))


@pytest.mark.parametrize("name", OTHERS)
def test_p24_the_quote_of_a_request_binds_all(name: str) -> None:
    """The report data that the new node has signed differs, and so does the name of the request."""
    assert request(LAW).report_data() != request(OTHERS[name]).report_data()
    assert request(LAW).hash() != request(OTHERS[name]).hash()


@pytest.mark.parametrize("name", OTHERS)
def test_p24_the_quote_of_a_receipt_binds_all(name: str) -> None:
    """What the old node has signed about its decision differs."""
    assert receipt(LAW).report_data() != receipt(OTHERS[name]).report_data()


@pytest.mark.parametrize("name", OTHERS)
def test_p24_a_request_under_another_law_is_refused(name: str) -> None:
    """Before anything is sealed, and in its own words."""
    quoted = QuotedRequest(request(OTHERS[name]), b"")

    with pytest.raises(HandoverRefusedError, match=SAID[name]):
        OldNode().admit(quoted, law=LAW, app_id=APP, at=AT)


@pytest.mark.parametrize("name", ["chain_id", "kms_contract"])
def test_p24_a_decision_of_a_kms_binds_both(tmp_path: Path, name: str) -> None:
    """An entry of its log says which contract on which chain decided, and holds for no other."""
    signer = DecisionSigner.derive(bytes(31) + b"\2")
    law = {"chain_id": 31337, "kms_contract": "0xc0"}
    decision = {"at": AT.isoformat(), "subject": "app", "decision": "granted", "app_id": APP.hex()}
    with closing(open_store(f"sqlite:///{tmp_path}/log.sqlite3")) as store:
        with closing(DecisionLog(store, signer, about=lambda: law, retention=timedelta(days=10**4))) as log:
            log.keep(decision, must=True)
        (entry,), vouchers, head = tuple(store.entries()), store.vouchers(), store.head()
    elsewhere = replace(
        entry, content=canonical({**entry.members(), name: {"chain_id": 1, "kms_contract": "0xc1"}[name]})
    )

    assert entry.members() == {**decision, **law, "seq": 1}
    assert verify_log([entry], vouchers, head).count == 1
    with pytest.raises(DecisionLogBrokenError, match="entry 1"):
        verify_log([elsewhere], vouchers, head)


def test_p24_what_signers_sign_of_a_proposal_binds_both(governed: GovernedWorld) -> None:
    """The id of a proposal is another on another chain or in another operator."""
    content = governed.content([governed.compose()])
    here = proposal_id(31337, governed.operator.address, 0, content)

    assert bytes(governed.operator.functions.proposalId(0, content).call()) == here
    assert here != proposal_id(1, governed.operator.address, 0, content)
    assert here != proposal_id(31337, governed.kms.address, 0, content)
