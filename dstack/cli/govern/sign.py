"""`dstack govern sign`: one owner's signature, on a machine that needs no network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from dstack.chain.call_words import NOT_UNDERSTOOD
from dstack.chain.client import checked_address
from dstack.chain.deployment_file import MAX_FILE as MAX_DEPLOYMENT
from dstack.chain.deployment_file import parse_deployment
from dstack.chain.safe import SafeSignature
from dstack.chain.safe_account import approved_digest
from dstack.chain.signing_file import SigningFile, add_signature
from dstack.cli.files import read_input
from dstack.cli.govern.connection import DEFAULT_DEPLOYMENT, answer, json_option
from dstack.cli.govern.keys import key_options, load_key
from dstack.cli.govern.signing import file_facts, file_lines, read_signing_file, rewrite_signing_file
from dstack.errors import InputError, RefusedError
from dstack.values import Digest32, bytes_from_hex

_EXAMPLES = """\b
Examples:
  dstack govern sign proposal.json --show
  dstack govern sign proposal.json --key-file owner.json --digest 0x4f1c...
  dstack govern sign proposal.json --owner 0x70c8... --signature 0x9d02...
  dstack govern sign parent.json --inner proposal.json --key-file owner.json --yes"""


@click.command(name="sign", epilog=_EXAMPLES)
@click.argument("file")
@click.option("--show", is_flag=True, help="Only show what would be signed.")
@click.option("--digest", metavar="HEX", help="What the digest must be, as you heard or computed it elsewhere.")
@click.option("--yes", is_flag=True, help="Do not ask before signing.")
@click.option("--blind", is_flag=True, help="Sign even what cannot be put into words.")
@click.option("--inner", metavar="FILE", help="The signing file that FILE's transaction agrees to: show its content.")
@click.option(
    "--deployment",
    metavar="FILE",
    envvar="DSTACK_DEPLOYMENT",
    help="Refuse what does not call this deployment's UpgradeOperator. Default: deployment.json, if there is one.",
)
@click.option("--owner", metavar="ADDRESS", help="Whose --signature it is.")
@click.option("--signature", metavar="HEX", help="A signature made elsewhere, such as by a hardware wallet.")
@key_options
@json_option
def command(
    *,
    file: str,
    show: bool,
    digest: str | None,
    yes: bool,
    blind: bool,
    inner: str | None,
    deployment: str | None,
    owner: str | None,
    signature: str | None,
    as_json: bool,
    **key: Any,
) -> None:
    """Sign the transaction in the signing file FILE, and put the signature into it.

    Shows first what is signed: in words, and as the two hashes (domain, message) that a hardware wallet shows. Asks
    nobody: who owns the Safe now, and whether the proposal is wanted, is for `review` and `submit`.
    """
    read = read_signing_file(file)
    within = None if inner is None else _inner(read, inner)
    _check_target(read if within is None else within, deployment)
    shown = file_lines(read) + ([] if within is None else ["which is", *(f"  {line}" for line in file_lines(within))])
    if digest is not None and Digest32.from_hex(digest) != read.transaction.digest():
        raise RefusedError(f"digest: want {digest}, the file's is 0x{read.transaction.digest().hex()}")
    if show:
        answer(as_json, file_facts(read), shown)
        return
    if not blind and any(NOT_UNDERSTOOD in line for line in shown):
        raise RefusedError("signing file: what its transaction does cannot be put into words; nothing was signed")
    if not as_json:
        click.echo("\n".join(shown))
    if (owner is None) != (signature is None):
        raise InputError("want --owner and --signature together")
    _confirm(certain=yes or digest is not None)
    if owner is not None and signature is not None:
        made = SafeSignature(checked_address(owner, what="--owner"), bytes_from_hex(signature, what="--signature"))
        signed = add_signature(read, made)
    else:
        signed = read.signed_by(load_key(**key))
    rewrite_signing_file(file, signed)
    count = f"{len(signed.signatures)} of {signed.threshold}"
    answer(as_json, file_facts(signed), [f"signed by {signed.signatures[-1].owner}; {count} signatures in {file}"])


def _check_target(file: SigningFile, deployment_file: str | None) -> None:
    """Refuse a call of another contract than the UpgradeOperator that the signer knows.

    Agreeing to another Safe's transaction calls that Safe; what it does is seen with --inner only.
    """
    path = deployment_file or DEFAULT_DEPLOYMENT
    transaction = file.transaction
    if approved_digest(transaction.data) is not None or (deployment_file is None and not Path(path).exists()):
        return
    deployment, _ = parse_deployment(read_input(path, limit=MAX_DEPLOYMENT))
    if (transaction.chain_id, transaction.to) != (deployment.chain_id, deployment.operator):
        raise RefusedError(
            f"signing file: it calls {transaction.to} on chain {transaction.chain_id}, not UpgradeOperator "
            f"{deployment.operator} on chain {deployment.chain_id}"
        )


def _inner(outer: SigningFile, path: str) -> SigningFile:
    inner = read_signing_file(path)
    if approved_digest(outer.transaction.data) != inner.transaction.digest() or (
        outer.transaction.to != inner.transaction.safe
    ):
        raise RefusedError(f"{path}: this is not the transaction that the other file agrees to")
    return inner


def _confirm(*, certain: bool) -> None:
    if certain:
        return
    if not sys.stdin.isatty():
        raise InputError("want --digest or --yes; there is no terminal to ask at")
    click.confirm("Sign this?", abort=True, err=True)
