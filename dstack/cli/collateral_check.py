"""`dstack collateral check`: is it genuine, complete and in force at a time, and is it for a quote."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from dstack.attestation.certificates import common_name, parse_chain
from dstack.attestation.collateral import Collateral, parse_collateral
from dstack.attestation.envelope import MAX_ENVELOPE, open_envelope
from dstack.attestation.pck import claimed_platform
from dstack.attestation.quote import Quote, parse_quote
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verify_collateral import VerifiedCollateral, verify_collateral
from dstack.cli.collateral_facts import facts_of, print_facts, print_object
from dstack.cli.files import read_input
from dstack.cli.trust import moment, trusted_roots
from dstack.errors import CollateralUnavailableError, InputError, QuoteMalformedError, RefusedError
from dstack.keys.pem import spki_der
from dstack.transport.collateral import PlatformModel
from dstack.transport.collateral_archive import CollateralArchive
from dstack.transport.collateral_versions import best_kept

_LIMIT = 4 * 1024 * 1024
_EXAMPLES = """\b
Examples:
  dstack collateral check collateral.json
  dstack collateral check collateral.json --quote quote.bin --at 2027-01-15T08:00:00Z
  dstack collateral check collateral/ --quote get-quote.json --root platform/root.der --json

Exit codes: 0 good, 1 not genuine, not in force, or about another platform, 2 not collateral, 3 none in the store."""


@click.command(name="check", epilog=_EXAMPLES)
@click.argument("source", metavar="FILE")
@click.option("--quote", metavar="FILE", help="Want it to be about the platform of this quote or evidence.")
@click.option("--at", metavar="TIME", help="When all of it must be in force. Default: now.")
@click.option("--root", metavar="FILE", help="Trust this simulator's root, DER or PEM, and no other. Default: Intel's.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def command(*, source: str, quote: str | None, at: str | None, root: str | None, as_json: bool) -> None:
    """Check FILE: every signature up to the root, every date, every revocation; with a quote, that it is for it.

    FILE may be the folder of a store: then the newest version that was in force at the time is checked, and a quote is
    needed. Nothing is said of the quote itself: that is `dstack verify`.
    """
    roots, when = trusted_roots(root), moment(at)
    parsed = None if quote is None else parse_quote(open_envelope(read_input(quote, limit=MAX_ENVELOPE)).evidence.quote)
    verified = verify_collateral(_collateral(source, parsed, roots, when), roots=roots, at=when)
    if parsed is not None:
        require_platform(verified, parsed)
    facts = facts_of(verified.collateral, roots)
    if as_json:
        print_object({"verified": True, "at": when.isoformat(), "for_quote": parsed is not None, **facts.as_json()})
        return
    about = " and about the platform that the quote names" if parsed else ""
    click.echo(f"good: genuine, complete, in force at {when.isoformat()}{about}\n")
    print_facts(facts, at=when)


def require_platform(verified: VerifiedCollateral, quote: Quote) -> None:
    """Require that collateral is about the platform that a quote names.

    Raises:
        RefusedError: It is about another.
        QuoteMalformedError: The quote names none.
    """
    claimed, info = claimed_platform(quote), verified.parts.tcb_info
    chain = parse_chain(quote.signature.pck_chain_pem, what="PCK chain", error=QuoteMalformedError)
    if len(chain) < 2 or spki_der(chain[1]) != spki_der(verified.parts.authority):
        raise RefusedError(f"PCK CRL: want one of the quote's CA {common_name(chain[0].issuer)[:80]!r}, got another's")
    wanted = (PlatformModel.of(quote).tee, claimed.fmspc, claimed.pce_id)
    if wanted != (info.id.lower(), info.fmspc, info.pce_id):
        raise RefusedError(
            f"TCB info: want {wanted[0]}, FMSPC {claimed.fmspc.hex()} and PCEID {claimed.pce_id.hex()} of the quote, "
            f"got {info.id.lower()}, {info.fmspc.hex()} and {info.pce_id.hex()}"
        )


def _collateral(source: str, quote: Quote | None, roots: TrustedRoots, at: datetime) -> Collateral:
    """The file's, or of a store's the newest that was in force at *at*; if none was, the newest."""
    if source == "-" or not Path(source).is_dir():
        return parse_collateral(read_input(source, limit=_LIMIT))
    if quote is None:
        raise InputError("a store holds many platforms: want --quote to choose one")
    model = PlatformModel.of(quote)
    archive = CollateralArchive(Path(source))
    best = best_kept(archive, model, roots=roots, at=at)
    if best is not None:
        return best.collateral
    versions = archive.newest(model)
    if not versions:
        raise CollateralUnavailableError(f"{source}: want collateral for {model}, got none")
    return versions[0].collateral
