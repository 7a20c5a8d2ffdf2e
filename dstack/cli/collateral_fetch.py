"""`dstack collateral fetch`: from Intel's service or a cache of it, verified, into a store or a file."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import click

from dstack.attestation.collateral import serialise_collateral
from dstack.attestation.envelope import MAX_ENVELOPE, open_envelope
from dstack.attestation.quote import parse_quote
from dstack.attestation.verify_collateral import VerifiedCollateral
from dstack.cli.collateral_facts import facts_of, print_facts, print_object
from dstack.cli.files import read_input
from dstack.cli.trust import moment, trusted_roots
from dstack.errors import CollateralFatalError, InputError, RefusedError
from dstack.transport.collateral import PckAuthority, PlatformModel, Tee
from dstack.transport.collateral_fetch import INTEL_PCS, PcsClient
from dstack.transport.collateral_store import CollateralStore
from dstack.values import bytes_from_hex

_EXAMPLES = f"""\b
Examples:
  dstack collateral fetch quote.bin --out collateral.json
  dstack collateral fetch get-quote.json --store collateral/ --from https://pccs.example:8081 --from {INTEL_PCS}
  dstack collateral fetch --fmspc 50806f000000 --out - --json

Exit codes: 0 fetched, 1 what came is not genuine, or goes back in time, or the platform is unknown, 2 bad input,
3 nobody answered."""


@click.command(name="fetch", epilog=_EXAMPLES)
@click.argument("quote", required=False)
@click.option("--fmspc", metavar="HEX", help="Instead of QUOTE: the model of platform, 12 digits.")
@click.option("--tee", type=click.Choice(get_args(Tee)), default="tdx", help="With --fmspc. Default: tdx.")
@click.option(
    "--ca", type=click.Choice(get_args(PckAuthority)), default="platform", help="With --fmspc. Default: platform."
)
@click.option("--from", "urls", multiple=True, metavar="URL", help="Ask here, in this order. Default: Intel's PCS.")
@click.option("--store", metavar="DIR", help="Keep it in this store, beside what is there; never goes back.")
@click.option("--out", metavar="FILE", help="Write it here as one JSON object.")
@click.option("--root", metavar="FILE", help="Trust this simulator's root, DER or PEM, and no other. Default: Intel's.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def command(
    *,
    quote: str | None,
    fmspc: str | None,
    tee: Tee,
    ca: PckAuthority,
    urls: tuple[str, ...],
    store: str | None,
    out: str | None,
    root: str | None,
    as_json: bool,
) -> None:
    """Fetch collateral for the platform of QUOTE: a quote, or anything with one in it.

    That is an answer of GetQuote, an attestation blob, or an RA-TLS certificate. What comes is verified before it is
    kept: every signature up to the root, every date, and with a store that no number is lower than one seen before.
    """
    if (store is None) == (out is None):
        raise InputError("want --store DIR or --out FILE, one of them")
    roots = trusted_roots(root)
    model = _model(quote, fmspc, tee, ca)
    # What the store would log is what this command says in the end.
    logging.getLogger(CollateralStore.__module__).addHandler(logging.NullHandler())
    click.echo(f"asking {', '.join(urls or (INTEL_PCS,))} about {model}", err=True)
    with ExitStack() as stack:
        clients = [stack.enter_context(PcsClient(url, roots)) for url in urls or (INTEL_PCS,)]
        folder = Path(store or stack.enter_context(TemporaryDirectory()))
        store_of = CollateralStore(folder, roots=roots, endpoints=clients, clock=lambda: moment(None))
        try:
            fetched = stack.enter_context(closing(store_of)).refresh(model)
        except CollateralFatalError as exc:
            raise RefusedError(str(exc)) from exc
    if out is not None:
        _write(out, fetched)
    facts = facts_of(fetched.collateral, roots)
    if as_json and out != "-":
        print_object({"verified": True, "kept_in": store or out, **facts.as_json()})
    elif out != "-":
        click.echo(f"verified, and kept in {store or out}\n")
        print_facts(facts, at=moment(None))


def _model(quote: str | None, fmspc: str | None, tee: Tee, ca: PckAuthority) -> PlatformModel:
    if (quote is None) == (fmspc is None):
        raise InputError("want QUOTE or --fmspc, one of them")
    if fmspc is not None:
        return PlatformModel(tee, ca, bytes_from_hex(fmspc, what="--fmspc"))
    assert quote is not None
    return PlatformModel.of(parse_quote(open_envelope(read_input(quote, limit=MAX_ENVELOPE)).evidence.quote))


def _write(out: str, fetched: VerifiedCollateral) -> None:
    text = serialise_collateral(fetched.collateral)
    if out == "-":
        click.echo(text)
        return
    try:
        Path(out).write_text(text)
    except OSError as exc:
        raise InputError(f"{out}: cannot be written: {exc.strerror or exc}") from exc
