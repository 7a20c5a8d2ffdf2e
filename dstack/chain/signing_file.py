"""The file that travels between the owners of a Safe: one transaction, and who has signed it.

It is read by people who have no chain at hand, so nothing in it is believed that can be computed: the digest is made
anew from the content, and every signature must be over that digest and by the owner it names. The checksum covers all
but the signatures; it catches accidents and clumsy changes, and no signature rests on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_keys.exceptions import BadSignature
from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError

from dstack.chain.client import checked_address
from dstack.chain.safe import SafeSignature, SafeTransaction, sign_safe_transaction
from dstack.errors import InputError, RefusedError
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import Digest32

FORMAT = "dstack-safe-transaction"
VERSION = 1
MAX_FILE = 256 * 1024
_MAX_U64 = 2**64 - 1
_SIGNATURE_SIZE = 65
_MEMBERS = frozenset(
    "format version chain_id safe owners threshold to data nonce digest checksum signatures".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class SigningFile:
    """One transaction of a Safe.

    Attributes:
        transaction: What the owners sign.
        owners: Who they were when the file was made; the chain has the last word.
        threshold: How many must sign.
        signatures: In the order in which they were made.
    """

    transaction: SafeTransaction
    owners: tuple[ChecksumAddress, ...]
    threshold: int
    signatures: tuple[SafeSignature, ...] = ()

    def signed_by(self, owner: LocalAccount) -> SigningFile:
        """Add the signature of *owner* to a copy of this file.

        Raises:
            RefusedError: The key is not of an owner, or its owner has signed already.
        """
        _check_owner(owner.address, self.owners)
        return add_signature(self, sign_safe_transaction(owner, self.transaction))


def add_signature(file: SigningFile, signature: SafeSignature) -> SigningFile:
    """*file* with one more signature.

    Raises:
        InputError: It is not of the form of a signature.
        RefusedError: It is not over the file's transaction, not by an owner, or its owner has signed already.
    """
    check_signature(file.transaction, signature)
    _check_owner(signature.owner, file.owners)
    if signature.owner in (other.owner for other in file.signatures):
        raise RefusedError(f"signing file: two signatures by {signature.owner}; each owner counts once")
    return replace(file, signatures=(*file.signatures, signature))


def merge_signing_files(files: Sequence[SigningFile]) -> SigningFile:
    """One file with the signatures of all copies.

    Raises:
        RefusedError: They are not copies of one transaction, or an owner signed in two of them.
    """
    merged = files[0]
    for other in files[1:]:
        if other.transaction != merged.transaction:
            raise RefusedError("signing files: want copies of one transaction, got different transactions")
        for signature in other.signatures:
            merged = add_signature(merged, signature)
    return merged


def serialise_signing_file(file: SigningFile) -> bytes:
    """Write a signing file."""
    transaction = file.transaction
    signatures = [
        {"owner": signature.owner, "signature": "0x" + signature.signature.hex()} for signature in file.signatures
    ]
    content: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "chain_id": transaction.chain_id,
        "safe": transaction.safe,
        "owners": list(file.owners),
        "threshold": file.threshold,
        "to": transaction.to,
        "data": "0x" + transaction.data.hex(),
        "nonce": transaction.nonce,
        "digest": "0x" + transaction.digest().hex(),
    }
    content["checksum"] = "0x" + _checksum(content).hex()
    return (json.dumps(content | {"signatures": signatures}, indent=2) + "\n").encode()


def parse_signing_file(raw: bytes) -> SigningFile:
    """Read a signing file, and check everything in it that can be checked without a chain.

    Says nothing of whether the transaction is wanted, nor of who owns the Safe now.

    Raises:
        InputError: Another form, or another version.
        RefusedError: The digest, the checksum or a signature does not belong to the content; an owner signed twice;
            a signature is by nobody who owns the Safe.
    """
    value = parse_json(raw, what="signing file", limit=MAX_FILE, error=InputError)
    members = Members.of(value, what="signing file", error=InputError)
    if members.text("format") != FORMAT:
        raise InputError(f"signing file: want format {FORMAT!r}, got {members.text('format')[:80]!r}")
    if members.integer("version", maximum=_MAX_U64) != VERSION:
        raise InputError(f"signing file: want version {VERSION}, got {members.integer('version', maximum=_MAX_U64)}")
    members.refuse_others(_MEMBERS)
    transaction = SafeTransaction(
        chain_id=members.integer("chain_id", maximum=_MAX_U64),
        safe=checked_address(members.text("safe"), what="signing file: safe"),
        to=checked_address(members.text("to"), what="signing file: to"),
        data=members.hexadecimal("data"),
        nonce=members.integer("nonce", maximum=_MAX_U64),
    )
    if members.sized("digest", Digest32) != transaction.digest():
        raise RefusedError("signing file: changed on its way: the digest is not that of the content")
    unsigned = {name: value for name, value in members.values.items() if name not in ("checksum", "signatures")}
    if members.sized("checksum", Digest32) != _checksum(unsigned):
        raise RefusedError("signing file: changed on its way: the checksum is not that of the content")
    owners = tuple(checked_address(text, what="signing file: owner") for text in members.texts("owners"))
    threshold = members.integer("threshold", maximum=_MAX_U64)
    return _with_signatures(SigningFile(transaction, owners, threshold), members)


def _with_signatures(unsigned: SigningFile, members: Members) -> SigningFile:
    entries = members.values.get("signatures")
    if not isinstance(entries, list):
        raise InputError("signing file: signatures: want an array")
    for entry in entries:
        one = Members.of(entry, what="signing file: signature", error=InputError)
        one.refuse_others(frozenset({"owner", "signature"}))
        owner = checked_address(one.text("owner"), what="signing file: signature: owner")
        unsigned = add_signature(unsigned, SafeSignature(owner, one.hexadecimal("signature")))
    return unsigned


def check_signature(transaction: SafeTransaction, signature: SafeSignature) -> None:
    """Establish that *signature* is over *transaction* by the owner it names.

    Raises:
        InputError: It is not of the form of a signature.
        RefusedError: It is over something else, or by somebody else.
    """
    raw = signature.signature
    if len(raw) != _SIGNATURE_SIZE or raw[-1] not in (27, 28):
        raise InputError(f"signing file: signature: want {_SIGNATURE_SIZE} bytes that end in 27 or 28")
    try:
        signer = Account.recover_message(transaction.message(), signature=raw)
    except (BadSignature, ValidationError, ValueError) as exc:
        raise RefusedError(f"signing file: the signature of {signature.owner} is none of any key") from exc
    if signer != signature.owner:
        raise RefusedError(f"signing file: the signature is not by {signature.owner} over this transaction")


def _check_owner(address: str, owners: tuple[ChecksumAddress, ...]) -> None:
    if address not in owners:
        raise RefusedError(f"signing file: {address} is not an owner of the Safe")


def _checksum(content: dict[str, object]) -> bytes:
    return keccak(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
