"""`dstack kms decisions`: the signed log of decisions, read and verified."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from dstack.errors import DecisionLogBrokenError, InputError
from dstack.keys.signature_chain import PUBLIC_KEY_SIZE
from dstack.values import AppId, bytes_from_hex
from kms.config import load_settings
from kms.decision_log.entry import Entry
from kms.decision_log.store import DecisionStore, open_store
from kms.decision_log.verification import VerifiedLog, verify_log

_EXAMPLES = """\b
Examples:
  dstack kms decisions --last 20
  dstack kms decisions --app 0x7c... --json
  dstack kms decisions --unverified-acpi --json
  dstack kms decisions --verify --root 02f1... --head 1234:9c0e...

The root is GetMeta's k256_pubkey, also in the contract's kmsInfo. A head is what an earlier run of --verify showed:
with it, entries that were removed at the new end are noticed too."""


@click.command(name="decisions", epilog=_EXAMPLES)
@click.option(
    "-c", "--config", type=Path, default=Path("/etc/kms/kms.toml"), show_default=True, help="The KMS's settings."
)
@click.option("--verify", is_flag=True, help="Verify the whole log instead of showing entries; exit 1 if it is broken.")
@click.option("--root", metavar="HEX", help="With --verify: the k256 public key that must vouch for it.")
@click.option("--head", metavar="SEQ:DIGEST", help="With --verify: an entry that must be in it.")
@click.option("--app", metavar="ID", help="Entries about this app only.")
@click.option(
    "--unverified-acpi", is_flag=True, help="Entries that rest on ACPI tables nobody but the machine has seen."
)
@click.option("--last", type=click.IntRange(1), default=100, show_default=True, help="How many of the newest to show.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON; entries one a line.")
def command(
    *,
    config: Path,
    verify: bool,
    root: str | None,
    head: str | None,
    app: str | None,
    unverified_acpi: bool,
    last: int,
    as_json: bool,
) -> None:
    """Show who was granted or denied keys, by which rule, in the state of which block, on what evidence."""
    if not verify and (root or head):
        raise InputError("--root and --head: want them with --verify")
    store = open_store(load_settings(config).core.database_url, read_only=True)
    try:
        if verify:
            _verify(store, root=_root(root), head=head, as_json=as_json)
        else:
            app_id = None if app is None else AppId.from_hex(app).hex()
            acpi = False if unverified_acpi else None
            for entry in store.entries(app_id=app_id, acpi_tables_verified=acpi, last=last):
                click.echo(_json(entry) if as_json else _line(entry))
    finally:
        store.close()


def _verify(store: DecisionStore, *, root: bytes | None, head: str | None, as_json: bool) -> None:
    wanted, remembered = _head(head), store.head()
    found: list[str] = []

    def watched() -> Iterator[Entry]:
        for entry in store.entries(until=remembered.seq):
            if wanted is not None and entry.seq == wanted[0]:
                found.append(entry.digest.hex())
            yield entry

    verified = verify_log(watched(), store.vouchers(), remembered, root=root)
    store.require_columns(remembered.seq)
    if wanted is not None and found != [wanted[1]]:
        raise DecisionLogBrokenError(
            f"entry {wanted[0]}: want digest {wanted[1]}, got {found[0] if found else 'no such entry'}"
        )
    click.echo(json.dumps(_facts(verified)) if as_json else _sentences(verified))


def _facts(log: VerifiedLog) -> dict[str, object]:
    return {
        "verified": True,
        "entries": log.count,
        "first": log.first,
        "head": f"{log.head.seq}:{log.head.digest.hex()}",
        "root": log.root.hex(),
        "missing": log.missing,
    }


def _sentences(log: VerifiedLog) -> str:
    if not log.count:
        return "the log is empty"
    missing = f", {log.missing} more were made while the log could not be written" if log.missing else ""
    return (
        f"VERIFIED: {log.count} decisions from {log.first} to {log.head.seq}, none missing or changed{missing}\n"
        f"root: {log.root.hex()}\nhead: {log.head.seq}:{log.head.digest.hex()}"
    )


def _json(entry: Entry) -> str:
    return json.dumps({**entry.members(), "digest": entry.digest.hex(), "signature": entry.signature.hex()})


def _line(entry: Entry) -> str:
    members = entry.members()
    who = members.get("app_id") or members.get("request", "")
    where = "" if members.get("block") is None else f" at block {members['block']}"
    why = f": {members['rule']}: {members.get('reason', '')}" if members.get("rule") else ""
    acpi = "; ACPI tables not verified" if members.get("acpi_tables_verified") is False else ""
    return f"{entry.seq}  {members.get('at', '')}  {members['subject']} {members['decision']}{where}  {who}{why}{acpi}"


def _root(text: str | None) -> bytes | None:
    if text is None:
        return None
    root = bytes_from_hex(text, what="--root")
    if len(root) != PUBLIC_KEY_SIZE:
        raise InputError(f"--root: want {PUBLIC_KEY_SIZE} bytes in hexadecimal, got {len(root)}")
    return root


def _head(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    seq, _, digest = text.partition(":")
    if not seq.isascii() or not seq.isdigit() or len(bytes_from_hex(digest, what="--head")) != 32:
        raise InputError("--head: want SEQ:DIGEST as an earlier --verify showed it")
    return int(seq), digest.lower()
