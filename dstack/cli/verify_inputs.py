"""What `dstack verify` is given: evidence, collateral, roots, policy, reference."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click

from dstack.attestation.collateral import Collateral, parse_collateral
from dstack.attestation.envelope import MAX_ENVELOPE, Envelope, certificate_envelope, open_envelope
from dstack.attestation.policy_document import MAX_POLICY, parse_moment, parse_policy, parse_status
from dstack.attestation.quote import Quote, parse_quote
from dstack.attestation.reference import MAX_REFERENCE, Reference, parse_reference
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verification_policy import STRICT, AcceptStatus, VerificationPolicy
from dstack.cli.files import read_input
from dstack.errors import InputError
from dstack.transport.collateral import DirectoryCollateral, PlatformModel
from dstack.transport.collateral_archive import CollateralArchive
from dstack.transport.collateral_versions import best_kept
from dstack.values import Digest32

_COLLATERAL_LIMIT = 4 * 1024 * 1024


def read_evidence(subject: str) -> Envelope:
    """Open a file, standard input for `-`, or the certificate of a TLS server for an `https://` URL.

    Raises:
        InputError: It is no evidence.
        PeerUnavailableError: The server does not answer.
    """
    if "://" in subject:
        # Only here: TLS is slow to load.
        from dstack.transport.server_certificate import fetch_server_certificate

        click.echo(f"asking {subject[:200]!r} for its certificate ...", err=True)
        return certificate_envelope(fetch_server_certificate(subject))
    return open_envelope(read_input(subject, limit=MAX_ENVELOPE))


def read_collateral_for(path: str, quote: bytes, *, roots: TrustedRoots, at: datetime) -> Collateral:
    """Read a file of collateral, or find that of the quote's platform in a folder or archive.

    Raises:
        InputError: It is no collateral.
        CollateralUnavailableError: The folder has none for this platform.
    """
    if path != "-" and Path(path).is_dir():
        return _from_folder(Path(path), parse_quote(quote), roots, at)
    return parse_collateral(read_input(path, limit=_COLLATERAL_LIMIT))


def _from_folder(folder: Path, quote: Quote, roots: TrustedRoots, at: datetime) -> Collateral:
    """What was in force then; if nothing was, what lies there by hand, so that its checks can say what is wrong."""
    best = best_kept(CollateralArchive(folder), PlatformModel.of(quote), roots=roots, at=at)
    return DirectoryCollateral(folder).collateral_for(quote) if best is None else best.collateral


def read_policy(path: str | None, statuses: tuple[str, ...], mr_enclaves: tuple[str, ...]) -> VerificationPolicy:
    """The policy of a file, or the strict one, with what the command line adds.

    Args:
        path: A policy document.
        statuses: Each `STATUS@UNTIL`.
        mr_enclaves: Enclaves in hexadecimal.

    Raises:
        ConfigError: A document or relaxation is not of its form, or a relaxation has no end.
    """
    policy = STRICT if path is None else parse_policy(read_input(path, limit=MAX_POLICY))
    return replace(
        policy,
        relaxations=(*policy.relaxations, *map(_relaxation, statuses)),
        mr_enclaves=policy.mr_enclaves.union(map(Digest32.from_hex, mr_enclaves)),
    )


def read_reference(path: str | None) -> Reference | None:
    """The reference values of a file."""
    return None if path is None else parse_reference(read_input(path, limit=MAX_REFERENCE))


def _relaxation(text: str) -> AcceptStatus:
    status, separator, until = text.partition("@")
    if not separator:
        raise InputError(f"--accept-status: want STATUS@UNTIL, the time at which that ends, got {text[:80]!r}")
    return AcceptStatus(parse_status(status), parse_moment(until, what="--accept-status"))
