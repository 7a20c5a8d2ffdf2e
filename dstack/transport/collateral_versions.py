"""Versions of collateral: what one must be to be kept about a model of platform, and which of two is newer."""

from __future__ import annotations

from datetime import datetime

from dstack.attestation.certificates import common_name
from dstack.attestation.collateral import Collateral
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verify_collateral import VerifiedCollateral, verify_collateral
from dstack.errors import InputError, QuoteUntrustedError
from dstack.transport.collateral import PlatformModel, authority_of
from dstack.transport.collateral_archive import CollateralArchive

_QE_OF = {"tdx": "TD_QE", "sgx": "QE"}


def verify_version(
    model: PlatformModel, collateral: Collateral, *, roots: TrustedRoots, at: datetime
) -> VerifiedCollateral:
    """Require collateral that is genuine, in force at *at*, and about *model*.

    Raises:
        CollateralMalformedError: It is not of its form.
        InputError: It is about another model.
        QuoteUntrustedError: It is not genuine, or not in force.
    """
    verified = verify_collateral(collateral, roots=roots, at=at)
    info, identity = verified.parts.tcb_info, verified.parts.qe_identity
    authority = authority_of(common_name(verified.parts.authority.subject))
    about = (info.id.lower(), authority, info.fmspc)
    if about != (model.tee, model.authority, model.fmspc) or identity.id != _QE_OF[model.tee]:
        raise InputError(f"collateral: want {model}, got {about[0]}-{authority}-{info.fmspc.hex()}, {identity.id}")
    return verified


def growing_numbers(model: PlatformModel, verified: VerifiedCollateral) -> dict[tuple[str, str], int]:
    """The numbers that may only grow, each by its name and by what it is a number of."""
    root = verified.parts.root.fingerprint
    return {
        ("TCB info", f"{root} {model}"): verified.parts.tcb_info.evaluation_number,
        ("QE identity", f"{root} {model.tee}"): verified.parts.qe_identity.evaluation_number,
        ("root CRL", root): verified.root_crl_number,
        ("PCK CRL", f"{root} {model.authority}"): verified.pck_crl_number,
    }


def is_newer(one: VerifiedCollateral, other: VerifiedCollateral) -> bool:
    """By numbers, then by date of issue, then by the end."""
    return _age(one) > _age(other)


def _age(verified: VerifiedCollateral) -> tuple[int, int, int, datetime, datetime]:
    return (
        verified.evaluation_number,
        verified.root_crl_number,
        verified.pck_crl_number,
        verified.parts.tcb_info.issue_date,
        verified.expires_at,
    )


def best_kept(
    archive: CollateralArchive, model: PlatformModel, *, roots: TrustedRoots, at: datetime
) -> VerifiedCollateral | None:
    """The newest version about *model* that was in force at *at*; None if there is none."""
    best: VerifiedCollateral | None = None
    for version in archive.newest(model):
        try:
            verified = verify_version(model, version.collateral, roots=roots, at=at)
        except (QuoteUntrustedError, InputError):
            continue
        if best is None or is_newer(verified, best):
            best = verified
    return best
