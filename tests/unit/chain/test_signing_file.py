"""The file that travels between the owners of a Safe."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from eth_account import Account
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from dstack.chain.client import checked_address
from dstack.chain.safe import SafeTransaction, sign_safe_transaction
from dstack.chain.signing_file import SigningFile, merge_signing_files, parse_signing_file, serialise_signing_file
from dstack.errors import InputError, RefusedError

OWNERS = [Account.from_key(bytes([number]) * 32) for number in (1, 2, 3)]
ADDRESSES = tuple(checked_address(owner.address, what="owner") for owner in OWNERS)
SAFE, TARGET = (checked_address("0x" + digit * 40, what="address") for digit in "45")
FILE = SigningFile(SafeTransaction(31337, SAFE, TARGET, b"\x01\x02", 7), ADDRESSES, 2)
SIGNED = FILE.signed_by(OWNERS[2]).signed_by(OWNERS[0])


def test_what_is_written_is_read() -> None:
    """Reading after writing is the identity, with and without signatures."""
    for file in (FILE, SIGNED):
        assert parse_signing_file(serialise_signing_file(file)) == file


@given(st.data())
def test_no_changed_byte_goes_unseen(data: st.DataObject) -> None:
    """Whatever byte of the file is another, it is refused, or says the same in another spelling."""
    raw = serialise_signing_file(SIGNED)
    at = data.draw(st.integers(0, len(raw) - 1))
    other = data.draw(st.integers(32, 126).filter(lambda value: value != raw[at]))
    changed = raw[:at] + bytes([other]) + raw[at + 1 :]

    try:
        read = parse_signing_file(changed)
    except (InputError, RefusedError):
        return
    assert read == SIGNED


@pytest.mark.parametrize("size", [64, 66])
def test_a_signature_has_one_length(size: int) -> None:
    """65 bytes, neither padded nor cut."""
    content = json.loads(serialise_signing_file(SIGNED))
    content["signatures"][0]["signature"] = "0x" + "1b" * size

    with pytest.raises(InputError, match="want 65 bytes"):
        parse_signing_file(json.dumps(content).encode())


def test_copies_are_merged() -> None:
    """Owners who sign copies at the same time are as good as owners who sign in turn."""
    copies = [FILE.signed_by(OWNERS[2]), FILE.signed_by(OWNERS[0])]

    assert merge_signing_files(copies) == SIGNED


def test_different_transactions_are_not_merged() -> None:
    """A signature for one nonce is none for another."""
    other = replace(FILE, transaction=replace(FILE.transaction, nonce=8)).signed_by(OWNERS[0])

    with pytest.raises(RefusedError, match="want copies of one transaction"):
        merge_signing_files([FILE, other])


def test_another_version_is_refused_before_anything_else_is_read() -> None:
    """A newer format may mean other things by the same names."""
    content = json.loads(serialise_signing_file(FILE)) | {"version": 2, "new": 1}

    with pytest.raises(InputError, match="want version 1, got 2"):
        parse_signing_file(json.dumps(content).encode())


def test_the_digest_is_made_of_the_two_hashes_that_wallets_show() -> None:
    """keccak256 of 0x1901, domain hash and message hash (EIP-712)."""
    transaction = FILE.transaction

    assert transaction.digest() == keccak(b"\x19\x01" + transaction.domain_hash() + transaction.message_hash())


def test_a_key_outside_the_list_cannot_sign() -> None:
    """The file names the owners, so a wrong key is noticed without a chain."""
    stranger = Account.from_key(b"\x09" * 32)

    with pytest.raises(RefusedError, match=f"{stranger.address} is not an owner of the Safe"):
        FILE.signed_by(stranger)
    forged = replace(FILE, signatures=(sign_safe_transaction(stranger, FILE.transaction),))
    with pytest.raises(RefusedError, match=f"{stranger.address} is not an owner of the Safe"):
        parse_signing_file(serialise_signing_file(forged))
