"""`dstack quote show`: every field of a quote by name, its certificates, and the platform they name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields

import click

from dstack.attestation.certificates import common_name, parse_chain
from dstack.attestation.envelope import MAX_ENVELOPE, open_envelope
from dstack.attestation.pck import PckExtension, claimed_platform
from dstack.attestation.quote import parse_quote
from dstack.attestation.quote_fields import QuoteField, quote_fields
from dstack.cli.files import read_input
from dstack.cli.printable import printable
from dstack.keys.pem import spki_der

_SHOWN = 64
_EXAMPLES = """\b
Examples:
  dstack quote show quote.bin
  dstack quote show get-quote.json --json"""


@click.command(name="show", epilog=_EXAMPLES)
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON, every field in full.")
def command(*, file: str, as_json: bool) -> None:
    """Name every field of the quote in FILE (- for standard input), in any envelope that `dstack verify` takes.

    Nothing is verified: what is shown is what the quote claims.
    """
    raw = open_envelope(read_input(file, limit=MAX_ENVELOPE)).evidence.quote
    named, quote = quote_fields(raw), parse_quote(raw)
    certificates = _certificates(quote.signature.pck_chain_pem)
    platform = _platform_facts(claimed_platform(quote))
    if as_json:
        facts = {"fields": [_facts(field) for field in named], "certificates": certificates, "platform": platform}
        click.echo(json.dumps(facts))
        return
    for field in named:
        click.echo(printable(f"{field.offset:5} {len(field.raw):5}  {field.name:28} {_words(field)}"))
    for number, certificate in enumerate(certificates):
        for name, value in certificate.items():
            click.echo(printable(f"certificate {number}: {name:20} {value}"))
    for name, said in platform.items():
        click.echo(f"platform: {name:23} {said}")


def _facts(field: QuoteField) -> dict[str, object]:
    return {
        "offset": field.offset,
        "size": len(field.raw),
        "name": field.name,
        "hex": field.raw.hex(),
        "meaning": field.meaning,
    }


def _words(field: QuoteField) -> str:
    digits = field.raw.hex() if len(field.raw) <= _SHOWN else f"{field.raw[:16].hex()}..."
    return f"{digits}  ({field.meaning})" if field.meaning else digits


def _certificates(pem: bytes) -> list[dict[str, str]]:
    return [
        {
            "subject": common_name(certificate.subject),
            "issuer": common_name(certificate.issuer),
            "serial number": f"{certificate.serial_number:x}",
            "valid from": certificate.not_valid_before_utc.isoformat(),
            "valid until": certificate.not_valid_after_utc.isoformat(),
            "SHA-256 of its key": hashlib.sha256(spki_der(certificate)).hexdigest(),
        }
        for certificate in parse_chain(pem, what="PCK chain")
    ]


def _platform_facts(platform: PckExtension) -> dict[str, object]:
    values = {field.name: getattr(platform, field.name) for field in fields(PckExtension)}
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}
