"""The first node of an app: makes the secure file, and the evidence of its genesis."""

from __future__ import annotations

import os
from collections.abc import Callable

from dstack.errors import HandoverRefusedError, KeystoreError
from dstack.keys.sealing_stream import CHUNK
from dstack.values import Digest32
from replicator.custody import Custody, Genesis, fingerprint_of
from replicator.documents import Party
from replicator.law import LawReader
from replicator.parts import Parts
from replicator.receipts import KeptReceipt
from replicator.storage import Incoming, SecureFile, aligned_buffer

SIZE = 32


def make_genesis(parts: Parts, law: LawReader, *, adopt: bool = False) -> Genesis:
    """Make a secure file of `SIZE` random bytes, or take the one that lies there, as the first of its app.

    Args:
        parts: Of this node; its quote binds the genesis, which is kept for the owners to record.
        law: Refuses where a genesis is recorded already.
        adopt: Take what lies there.

    Raises:
        HandoverRefusedError: The chain records a genesis for this app.
        KeystoreError: There is a secure file (or with *adopt*: none, or one with a custody record).
        UnavailableError: The guest agent, the chain or the collateral could not be reached.
    """
    own, secure_file = parts.identity, parts.secure_file
    recorded = law.genesis(own.app_id)
    if recorded is not None:
        raise HandoverRefusedError(
            f"bootstrap: the chain records genesis {recorded.hex()} for app {own.app_id.hex()} already: "
            f"want the secure file from another node"
        )
    if secure_file.exists() != adopt:
        found = f"there is no secure file at {secure_file.path} to adopt"
        if secure_file.exists():
            found = f"a secure file exists at {secure_file.path}; --adopt takes it"
        raise KeystoreError(f"bootstrap: {found}")
    if adopt and secure_file.held().custody is not None:
        raise KeystoreError("bootstrap: the secure file has a custody record already")
    incoming = secure_file.incoming("genesis")
    try:
        _fill(incoming, secure_file, parts.random, adopt=adopt)
        digest = incoming.seal_off()
        genesis = Genesis(
            app_id=own.app_id,
            law=law.law,
            fingerprint=fingerprint_of(digest),
            size=incoming.size,
            nonce=Digest32(parts.random(32)),
            at=int(parts.moments.now(law.block()).timestamp()),
            maker=Party.of(own.boot()),
        )
        kept = KeptReceipt("genesis", genesis, own.quoted(genesis.report_data()), own.simulated)
        secure_file.replace(incoming, Custody(genesis), at=genesis.at, receipt=kept, to=parts.receipts)
    finally:
        incoming.discard()
    return genesis


def _fill(incoming: Incoming, secure_file: SecureFile, random: Callable[[int], bytes], *, adopt: bool) -> None:
    if not adopt:
        incoming.add(random(SIZE))
        return
    with secure_file.reading() as (descriptor, size):
        buffer = aligned_buffer(CHUNK)
        for offset in range(0, size, CHUNK):
            incoming.add(buffer[: os.preadv(descriptor, [buffer], offset)])
