"""`dstack collateral show`: every number, date and signer, and what ends first."""

from __future__ import annotations

import click

from dstack.attestation.collateral import parse_collateral
from dstack.cli.collateral_facts import facts_of, print_facts, print_object
from dstack.cli.files import read_input
from dstack.cli.trust import moment, trusted_roots

_LIMIT = 4 * 1024 * 1024
_EXAMPLES = """\b
Examples:
  dstack collateral show collateral.json
  dstack collateral show collateral/tdx-platform-50806f000000/20270115T080000Z-0123456789abcdef.json --json"""


@click.command(name="show", epilog=_EXAMPLES)
@click.argument("file")
@click.option("--root", metavar="FILE", help="Name this simulator's root as one; without it only Intel's has a name.")
@click.option("--at", metavar="TIME", help="Mark what is not in force then. Default: now.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def command(*, file: str, root: str | None, at: str | None, as_json: bool) -> None:
    """Show what FILE says (- for standard input). No signature is verified: that is `dstack collateral check`."""
    facts = facts_of(parse_collateral(read_input(file, limit=_LIMIT)), trusted_roots(root))
    if as_json:
        print_object({"verified": False, **facts.as_json()})
        return
    click.echo("not verified: this is what the file says\n")
    print_facts(facts, at=moment(at))
