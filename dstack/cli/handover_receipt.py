"""`dstack handover verify`: a receipt checked on a laptop, without asking anybody."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from dstack.attestation.appraise import appraise
from dstack.attestation.evidence import parse_evidence
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify import verify_quote
from dstack.cli.files import read_input
from dstack.cli.trust import trusted_roots
from dstack.cli.verify_inputs import read_collateral_for, read_policy
from dstack.errors import HandoverRefusedError, MessageMalformedError
from dstack.measurement.strict_json import Members
from dstack.policy.boot_info import boot_info
from dstack.values import Digest32, ReportData
from replicator.custody import Genesis, Receipt, read_genesis, read_receipt
from replicator.documents import MAX_EVIDENCE, Party, QuotedRequest, bounded, document, inner, read_quoted_request

MAX_RECEIPT = 16 << 20
_EXAMPLES = """\b
Examples:
  dstack handover verify 4f..a0.received.json --collateral collateral.json
  dstack handover verify 4f..a0.received.json --collateral collateral/ --accept-status OutOfDate@2027-06-30T00:00:00Z
  dstack handover verify receipt.json --collateral collateral.json --root platform/root.der --json"""


@dataclass(frozen=True, slots=True)
class _Judge:
    """Verifies evidence as of one time."""

    collateral: str
    roots: TrustedRoots
    at: datetime
    policy: VerificationPolicy

    def party(self, blob: bytes, expected: ReportData) -> Party:
        """Who made evidence that carries *expected*."""
        evidence = parse_evidence(blob)
        collateral = read_collateral_for(self.collateral, evidence.quote, roots=self.roots, at=self.at)
        verified = verify_quote(evidence.quote, collateral, roots=self.roots, at=self.at, policy=self.policy)
        return Party.of(boot_info(appraise(evidence, verified, expected_report_data=expected)))


@click.command(name="verify", epilog=_EXAMPLES, short_help="who handed what to whom, and do their quotes bind it")
@click.argument("receipt")
@click.option(
    "--collateral",
    required=True,
    metavar="FILE|DIR",
    help="The maker's statements about the platforms; a folder where the two nodes' machines are of two models.",
)
@click.option("--root", metavar="FILE", help="Trust this simulator's root, DER or PEM, and no other. Default: Intel's.")
@click.option("--at", metavar="TIME", help="When everything must be valid. Default: the time of the receipt.")
@click.option("--policy", metavar="FILE", help="What is accepted, as JSON. Default: the strict policy.")
@click.option(
    "--accept-status",
    multiple=True,
    metavar="STATUS@UNTIL",
    help="Accept this TCB status besides UpToDate, before that time, as the nodes' settings did. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def command(
    *,
    receipt: str,
    collateral: str,
    root: str | None,
    at: str | None,
    policy: str | None,
    accept_status: tuple[str, ...],
    as_json: bool,
) -> None:
    """Verify RECEIPT, a file of a replicator's receipts folder, or - for standard input.

    Says who handed what to whom, and that both sides' quotes bind it. Asks neither node nor chain: whether the block
    that it names said so is for `dstack govern history`.
    """
    members = document(read_input(receipt, limit=MAX_RECEIPT), what="receipt file", limit=MAX_RECEIPT)
    members.refuse_others(frozenset({"role", "hash", "receipt", "evidence", "simulated_root", "request", "sealed_key"}))
    subject = inner(members, "receipt")
    is_genesis = members.text("role") == "genesis"
    kept = read_genesis(subject) if is_genesis else read_receipt(subject)
    made_at = kept.at if isinstance(kept, Genesis) else kept.terms.at
    judge = _Judge(
        collateral,
        trusted_roots(root),
        _moment(at) if at else _time_of(made_at),
        read_policy(policy, accept_status, ()),
    )
    facts = _verified(kept, members, judge)
    if members.sized("hash", Digest32) != kept.hash():
        raise HandoverRefusedError(f"receipt: hash: want {kept.hash().hex()}, got {members.text('hash')}")
    facts["simulated_root"] = root is not None
    click.echo(json.dumps(facts) if as_json else _text(facts))


def _verified(kept: Receipt | Genesis, members: Members, judge: _Judge) -> dict[str, Any]:
    evidence = bounded(members, "evidence", MAX_EVIDENCE)
    if isinstance(kept, Genesis):
        _require_party("maker", kept.maker, judge.party(evidence, kept.report_data()))
        return {"kind": "genesis", "hash": kept.hash().hex(), **kept.members()}
    quoted = read_quoted_request(inner(members, "request"))
    _require_bound(kept, quoted, members.hexadecimal("sealed_key"))
    _require_party("sender", kept.terms.sender, judge.party(evidence, kept.report_data()))
    _require_party("receiver", kept.terms.receiver, judge.party(quoted.evidence, quoted.request.report_data()))
    return {"kind": "handover", "hash": kept.hash().hex(), "head": kept.head().hex(), **kept.members()}


def _require_bound(receipt: Receipt, quoted: QuotedRequest, sealed_key: bytes) -> None:
    if quoted.request != receipt.terms.request or quoted.transcript() != receipt.terms.transcript:
        raise HandoverRefusedError("receipt: transcript: the request beside it is another one")
    if hashlib.sha256(sealed_key).digest() != receipt.sealed_key_sha256:
        raise HandoverRefusedError("receipt: the sealed key beside it is another one")


def _require_party(role: str, named: Party, seen: Party) -> None:
    if named != seen:
        raise HandoverRefusedError(f"receipt: {role}: want {seen.members()}, got {named.members()}")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise MessageMalformedError(f"--at: want a time such as 2027-01-15T08:00:00Z, got {text[:40]!r}") from exc
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _time_of(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise MessageMalformedError(f"receipt: at: want a time in Unix seconds, got {seconds}") from exc


def _text(facts: dict[str, Any]) -> str:
    lines = ["VERIFIED: the quotes are genuine and bind this receipt"]
    if facts["simulated_root"]:
        lines = ["SIMULATED: no Intel CPU stands behind these quotes", *lines]
    # Of a handover, app and contracts are in the request.
    named = {**facts.get("request", {}), **facts}
    shown = {name: value for name, value in facts.items() if not isinstance(value, dict)}
    shown["chain_id"] = named["chain_id"]
    shown |= {name: f"0x{named[name]}" for name in ("app_id", "operator", "contract")}
    shown["at"] = f"{_time_of(facts['at']):%Y-%m-%d %H:%M:%S} UTC"
    for role in ("maker", "sender", "receiver"):
        if role in facts:
            shown |= {f"{role} {name}": value for name, value in facts[role].items()}
    return "\n".join((*lines, *(f"{name}: {value}" for name, value in shown.items())))
