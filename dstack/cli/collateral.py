"""`dstack collateral`: fetch, read and check what a platform's maker says of it."""

from __future__ import annotations

import click

from dstack.cli.lazy import LazyGroup

_SUMMARIES = {
    "check": "is it genuine, complete and in force at a time, for a quote",
    "fetch": "get it from Intel's service or a cache, verified, into a store or a file",
    "show": "every number, date and signer in it, and what ends first",
}
_EXAMPLES = """\b
Examples:
  dstack collateral fetch quote.bin --out collateral.json
  dstack collateral fetch --fmspc 50806f000000 --store collateral/ --from https://pccs.example:8081
  dstack collateral show collateral.json
  dstack collateral check collateral.json --quote quote.bin --at 2027-01-15T08:00:00Z"""


@click.group(
    name="collateral",
    cls=LazyGroup,
    modules={name: (f"dstack.cli.collateral_{name}", summary) for name, summary in _SUMMARIES.items()},
    epilog=_EXAMPLES,
)
def command() -> None:
    """Collateral: the maker's signed statements about a platform, without which no quote can be verified.

    They have numbers that only grow and dates after which they are refused. They say nothing of any one machine.
    """
