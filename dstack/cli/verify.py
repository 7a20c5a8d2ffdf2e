"""`dstack verify`: who signed evidence, on what platform, and whether it measures what it should."""

from __future__ import annotations

import json

import click

from dstack.attestation.evidence_checks import EvidenceChecks, Expected, check_evidence
from dstack.cli.trust import moment, trusted_roots
from dstack.cli.verify_inputs import (
    read_collateral_for,
    read_evidence,
    read_policy,
    read_reference,
)
from dstack.cli.verify_report import facts, lines
from dstack.measurement.result import Verdict
from dstack.values import ReportData

_REFUSED, _BAD_INPUT, _COULD_NOT_COMPARE = 1, 2, 3
_EXAMPLES = """\b
Examples:
  dstack verify quote.bin --collateral collateral.json
  dstack verify https://kms.example:9201 --collateral collateral/ --reference measured.json
  dstack verify get-quote.json --collateral collateral.json --at 2027-01-15T08:00:00Z --json
  dstack verify quote.hex --collateral collateral.json --accept-status SWHardeningNeeded@2027-06-30T00:00:00Z
  dstack verify quote.bin --collateral collateral.json --root pki/root.der

The items are the numbered steps of docs/verification-steps.md. Exit codes: 0 matched, 1 mismatched, 2 bad input,
3 not computable or could not ask."""


@click.command(name="verify", epilog=_EXAMPLES)
@click.argument("subject")
@click.option("--collateral", required=True, metavar="FILE|DIR", help="The maker's statements about the platform.")
@click.option("--at", metavar="TIME", help="When everything must be valid, such as 2027-01-15T08:00:00Z. Default: now.")
@click.option("--root", metavar="FILE", help="Trust this simulator's root, DER or PEM, and no other. Default: Intel's.")
@click.option("--policy", metavar="FILE", help="What is accepted, as JSON. Default: the strict policy.")
@click.option(
    "--accept-status",
    multiple=True,
    metavar="STATUS@UNTIL",
    help="Accept this TCB status besides UpToDate, before that time. Repeatable.",
)
@click.option("--mr-enclave", multiple=True, metavar="HEX", help="Accept SGX quotes of this enclave. Repeatable.")
@click.option("--reference", metavar="FILE", help="Registers as `dstack measure --json` writes them, or alone.")
@click.option("--report-data", metavar="HEX", help="What the quote must carry, 64 bytes.")
@click.option("--quote-only", is_flag=True, help="Ask only who signed the quote; leave log, image and binding aside.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def command(
    context: click.Context,
    *,
    subject: str,
    collateral: str,
    at: str | None,
    root: str | None,
    policy: str | None,
    accept_status: tuple[str, ...],
    mr_enclave: tuple[str, ...],
    reference: str | None,
    report_data: str | None,
    quote_only: bool,
    as_json: bool,
) -> None:
    """Verify SUBJECT and say what came of every check.

    SUBJECT is a file (- for standard input) or https://host:port, whose certificate is fetched. A file may hold a
    quote, an attestation blob, an RA-TLS certificate (PEM or DER), or the JSON answer of GetQuote or Attest; quotes
    and blobs also in hexadecimal. A bare quote without --reference answers only who signed it.
    """
    verified_at, roots = moment(at), trusted_roots(root)
    expected = Expected(
        report_data=None if report_data is None else ReportData.from_hex(report_data),
        reference=read_reference(reference),
        quote_only=quote_only,
    )
    accepted = read_policy(policy, accept_status, mr_enclave)
    envelope = read_evidence(subject)
    statements = read_collateral_for(collateral, envelope.evidence.quote, roots=roots, at=verified_at)
    outcome = check_evidence(envelope, statements, roots=roots, at=verified_at, policy=accepted, expected=expected)
    if as_json:
        click.echo(json.dumps(facts(outcome, envelope, roots)))
    else:
        for line in lines(outcome, envelope, roots):
            click.echo(line)
    context.exit(_exit_code(outcome))


def _exit_code(outcome: EvidenceChecks) -> int:
    if outcome.quote.quote is None:
        return _BAD_INPUT
    codes = {Verdict.MATCHED: 0, Verdict.MISMATCHED: _REFUSED, Verdict.NOT_COMPUTABLE: _COULD_NOT_COMPARE}
    return codes[outcome.verdict]
