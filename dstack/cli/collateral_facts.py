"""Collateral in words: every number, date and signer in it. Nothing here is verified."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import click
from cryptography import x509

from dstack.attestation.certificates import common_name, der_of, parse_chain, parse_crl
from dstack.attestation.collateral import Collateral
from dstack.attestation.roots import TrustedRoots
from dstack.cli.printable import printable
from dstack.errors import InputError


@dataclass(frozen=True, slots=True)
class Part:
    """One signed statement: what it is, its number (a certificate's serial), its dates, and who signed it."""

    name: str
    number: str
    issued_at: datetime
    ends_at: datetime
    signer: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What collateral says.

    Attributes:
        root_fingerprint: SHA-256 of the certificate that its chains end in.
        root_kind: "intel", "simulated" (the root that --root names) or "unknown".
        revoked: How many certificates both CRLs list together.
    """

    tee: str
    fmspc: str
    pce_id: str
    evaluation_number: int
    qe_evaluation_number: int
    root: str
    root_fingerprint: str
    root_kind: str
    revoked: int
    parts: tuple[Part, ...]

    @property
    def first_to_end(self) -> Part:
        """What makes all of it refused."""
        return min(self.parts, key=lambda part: part.ends_at)

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object; times as ISO 8601."""
        members = asdict(self)
        for part in members["parts"]:
            part |= {name: part[name].isoformat() for name in ("issued_at", "ends_at")}
        first = self.first_to_end
        return {**members, "first_to_end": first.name, "ends_at": first.ends_at.isoformat()}


def facts_of(collateral: Collateral, roots: TrustedRoots) -> Facts:
    """Read everything in *collateral*; *roots* only name the root.

    Raises:
        CollateralMalformedError: A part is not of its form.
    """
    crl_chain = parse_chain(collateral.pck_crl_issuer_chain.encode(), what="PCK CRL issuer chain")
    tcb_chain = parse_chain(collateral.tcb_info_issuer_chain.encode(), what="TCB info issuer chain")
    qe_chain = parse_chain(collateral.qe_identity_issuer_chain.encode(), what="QE identity issuer chain")
    root_crl = parse_crl(collateral.root_ca_crl, what="root CRL")
    pck_crl = parse_crl(collateral.pck_crl, what="PCK CRL")
    info, identity = collateral.parsed_tcb_info(), collateral.parsed_qe_identity()
    root = crl_chain[-1]
    documents = (
        Part("TCB info", str(info.evaluation_number), info.issue_date, info.next_update, _subject(tcb_chain[0])),
        Part(
            "QE identity",
            str(identity.evaluation_number),
            identity.issue_date,
            identity.next_update,
            _subject(qe_chain[0]),
        ),
    )
    certificates = {der_of(each): each for chain in (crl_chain, tcb_chain, qe_chain) for each in chain}
    return Facts(
        tee=info.id.lower(),
        fmspc=info.fmspc.hex(),
        pce_id=info.pce_id.hex(),
        evaluation_number=info.evaluation_number,
        qe_evaluation_number=identity.evaluation_number,
        root=_subject(root),
        root_fingerprint=hashlib.sha256(der_of(root)).hexdigest(),
        root_kind=_kind(root, roots),
        revoked=len(root_crl) + len(pck_crl),
        parts=(*documents, _crl("root CRL", root_crl), _crl("PCK CRL", pck_crl), *map(_part, certificates.values())),
    )


def print_facts(facts: Facts, *, at: datetime) -> None:
    """A table for people; what is not in force at *at* is marked."""
    click.echo(f"about        {facts.tee} platforms of FMSPC {facts.fmspc}, PCEID {facts.pce_id}")
    click.echo(printable(f"root         {facts.root} ({_ROOTS[facts.root_kind]})"))
    click.echo(f"fingerprint  {facts.root_fingerprint}")
    click.echo(f"evaluation   number {facts.evaluation_number} (TCB info), {facts.qe_evaluation_number} (QE identity)")
    click.echo(f"revoked      {facts.revoked or 'none'}\n")
    rows = [("part", "number", "from", "until", "signed by")]
    rows += [
        (part.name, part.number, _day(part.issued_at), _day(part.ends_at) + _mark(part, at), part.signer)
        for part in facts.parts
    ]
    click.echo("\n".join(map(printable, _table(rows))))
    first = facts.first_to_end
    click.echo(f"\nfirst to end {printable(first.name)}, {_day(first.ends_at)}")


def print_object(facts: Mapping[str, object]) -> None:
    """One JSON object on standard output."""
    import json

    click.echo(json.dumps(facts))


_ROOTS = {
    "intel": "Intel's",
    "simulated": "SIMULATED: trusted because --root says so, no Intel CPU stands behind it",
    "unknown": "not a root of trust here",
}


def _kind(root: x509.Certificate, roots: TrustedRoots) -> str:
    known = roots.find(root)
    if known is None:
        return "unknown"
    return "simulated" if known.simulated else "intel"


def _part(certificate: x509.Certificate) -> Part:
    return Part(
        f"certificate {_subject(certificate)}",
        f"{certificate.serial_number:x}"[:12],
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        common_name(certificate.issuer)[:80],
    )


def _crl(name: str, crl: x509.CertificateRevocationList) -> Part:
    end = crl.next_update_utc
    if end is None:
        raise InputError(f"{name}: want an end, got none")
    try:
        number = str(crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
    except x509.ExtensionNotFound:
        number = "none"
    return Part(name, number, crl.last_update_utc, end, common_name(crl.issuer)[:80])


def _subject(certificate: x509.Certificate) -> str:
    return common_name(certificate.subject)[:80] or "a certificate without a name"


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _mark(part: Part, at: datetime) -> str:
    return "" if part.issued_at <= at < part.ends_at else "  NOT IN FORCE"


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Columns as wide as they have to be; the last is not padded."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
