"""`dstack verify-quote`: who signed a quote, and on what platform."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

from dstack.attestation.collateral import parse_collateral
from dstack.attestation.quote import MAX_QUOTE, TdReport
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import VerificationPolicy, accept_statuses
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.cli.files import read_input
from dstack.cli.trust import moment, trusted_roots
from dstack.measurement.identities import device_id
from dstack.values import Digest32, bytes_from_hex

# Hexadecimal takes two digits per byte; some white space may stand around it.
_QUOTE_LIMIT = 2 * MAX_QUOTE + 64
_COLLATERAL_LIMIT = 4 * 1024 * 1024
_STATUSES = [status.value for status in TcbStatus if status is not TcbStatus.REVOKED]
_EXAMPLES = """\b
Examples:
  dstack verify-quote quote.bin --collateral collateral.json
  dstack verify-quote quote.hex --collateral collateral.json --accept-status SWHardeningNeeded --json
  dstack verify-quote quote.bin --collateral collateral.json --root pki/root.der

The numbers of the steps in refusals are those of docs/verification-steps.md."""


@click.command(name="verify-quote", epilog=_EXAMPLES)
@click.argument("quote")
@click.option("--collateral", required=True, metavar="FILE", help="The maker's statements about the platform, JSON.")
@click.option("--root", metavar="FILE", help="Trust this simulator's root, DER or PEM, and no other. Default: Intel's.")
@click.option("--at", metavar="TIME", help="When everything must be valid, such as 2027-01-15T08:00:00Z. Default: now.")
@click.option(
    "--accept-status",
    multiple=True,
    type=click.Choice(_STATUSES),
    help="Accept this TCB status besides UpToDate. May be repeated.",
)
@click.option("--mr-enclave", multiple=True, metavar="HEX", help="Accept SGX quotes of this enclave. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def command(
    *,
    quote: str,
    collateral: str,
    root: str | None,
    at: str | None,
    accept_status: tuple[str, ...],
    mr_enclave: tuple[str, ...],
    as_json: bool,
) -> None:
    """Verify QUOTE, a file of bytes or hexadecimal, or - for standard input.

    Says who signed it and on what platform; not whether its measurements are wanted.
    """
    policy = VerificationPolicy(
        relaxations=accept_statuses(map(TcbStatus, accept_status), datetime.max.replace(tzinfo=UTC)),
        mr_enclaves=frozenset(Digest32.from_hex(enclave) for enclave in mr_enclave),
    )
    verified = verify_quote(
        _quote_bytes(read_input(quote, limit=_QUOTE_LIMIT)),
        parse_collateral(read_input(collateral, limit=_COLLATERAL_LIMIT)),
        roots=trusted_roots(root),
        at=moment(at),
        policy=policy,
    )
    facts = _facts(verified)
    if as_json:
        click.echo(json.dumps(facts))
        return
    if verified.root.simulated:
        click.echo("SIMULATED: no Intel CPU stands behind this quote. Its root was trusted because --root says so.")
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' '):18} {_printed(value)}")


def _quote_bytes(content: bytes) -> bytes:
    """The quote itself: *content*, or what it is the hexadecimal of."""
    text = content.strip()
    if text.isalnum() and text.isascii():
        return bytes_from_hex(text.decode(), what="quote")
    return content


def _facts(verified: VerifiedQuote) -> dict[str, object]:
    body = verified.quote.body
    facts: dict[str, object] = {
        "verified": True,
        "simulated": verified.root.simulated,
        "tcb_status": verified.tcb_status.value,
        "advisory_ids": list(verified.advisory_ids),
        "device_id": device_id(verified.ppid).hex(),
        "ppid": verified.ppid.hex(),
        "fmspc": verified.fmspc.hex(),
        "root": verified.root.names.root,
        "root_fingerprint": verified.root.fingerprint,
        "evaluation_number": verified.evaluation_number,
        "expires_at": verified.expires_at.isoformat(),
        "report_data": body.report_data.hex(),
    }
    if not isinstance(body, TdReport):
        return facts | {"mr_enclave": body.mr_enclave.hex(), "mr_signer": body.mr_signer.hex()}
    names = ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id")
    return facts | {name: getattr(body, name).hex() for name in names}


def _printed(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)
