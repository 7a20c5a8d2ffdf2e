"""Signing files on the command line: made, read, shown and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from web3 import Web3

from dstack.chain.call_words import describe_call
from dstack.chain.safe import SafeTransaction
from dstack.chain.safe_account import SafeAccount, safe_transaction
from dstack.chain.signing_file import MAX_FILE, SigningFile, parse_signing_file, serialise_signing_file
from dstack.chain.tx import Call
from dstack.cli.files import read_input
from dstack.errors import InputError
from dstack.transport.private_file import create_private, replace_private


def out_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where a command puts the signing file, if a Safe is to make the call."""
    return click.option("--out", metavar="FILE", help="The signing file for the owners of a Safe; must not exist.")(
        function
    )


def nonce_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The Safe's number of the transaction."""
    return click.option("--nonce", type=click.IntRange(0), help="The Safe's number for it. Default: its next.")(
        function
    )


def read_signing_file(path: str) -> SigningFile:
    """Read and check the signing file at *path*; `-` is standard input."""
    return parse_signing_file(read_input(path, limit=MAX_FILE))


def make_signing_file(w3: Web3, safe: SafeAccount, call: Call, *, out: str, nonce: int | None) -> SigningFile:
    """Have *call* simulated as the Safe's own, and write the file that its owners sign.

    Raises:
        RefusedError: The contract called would refuse it.
        InputError: *out* exists, or cannot be written.
        ChainUnavailableError: The endpoint does not answer.
    """
    file = SigningFile(safe_transaction(w3, safe, call, nonce=nonce), safe.owners, safe.threshold)
    try:
        create_private(Path(out), serialise_signing_file(file))
    except FileExistsError as exc:
        raise InputError(f"{out}: exists already, and would be replaced") from exc
    except OSError as exc:
        raise InputError(f"{out}: cannot be written: {exc.strerror or exc}") from exc
    return file


def rewrite_signing_file(path: str, file: SigningFile) -> None:
    """Put *file* in place of what is at *path*.

    Raises:
        InputError: It cannot be written.
    """
    try:
        replace_private(Path(path), serialise_signing_file(file))
    except OSError as exc:
        raise InputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def transaction_facts(transaction: SafeTransaction) -> dict[str, object]:
    """What a signer compares with a hardware wallet and with other signers."""
    return {
        "chain_id": transaction.chain_id,
        "safe": transaction.safe,
        "safe_nonce": transaction.nonce,
        "to": transaction.to,
        "digest": "0x" + transaction.digest().hex(),
        "domain_hash": "0x" + transaction.domain_hash().hex(),
        "message_hash": "0x" + transaction.message_hash().hex(),
    }


def file_facts(file: SigningFile) -> dict[str, object]:
    """The transaction, what it does in words, and who has signed."""
    return transaction_facts(file.transaction) | {
        "does": describe_call(file.transaction.to, file.transaction.data),
        "threshold": file.threshold,
        "owners": list(file.owners),
        "signed_by": [signature.owner for signature in file.signatures],
    }


def file_lines(file: SigningFile) -> list[str]:
    """The same for people; the hashes as wallets show them."""
    transaction = file.transaction
    return [
        f"Safe          {transaction.safe} on chain {transaction.chain_id}, its transaction {transaction.nonce}",
        f"calls         {transaction.to}",
        *(f"does          {sentence}" for sentence in describe_call(transaction.to, transaction.data)),
        f"domain hash   0x{transaction.domain_hash().hex()}",
        f"message hash  0x{transaction.message_hash().hex()}",
        f"digest        0x{transaction.digest().hex()}",
        f"signed by     {_signers(file)}",
    ]


def _signers(file: SigningFile) -> str:
    names = ", ".join(signature.owner for signature in file.signatures) or "nobody yet"
    return f"{names} ({len(file.signatures)} of {file.threshold} wanted)"
