"""Who signed collateral: `Collateral` to `VerifiedCollateral`, steps 3 to 5 of `docs/verification-steps.md`.

It needs no quote, so that collateral can be judged when it arrives, and once for all quotes of a platform.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, reduce

from cryptography import x509

from dstack.attestation.certificates import (
    common_name,
    p256_key,
    parse_chain,
    parse_crl,
    require_authority,
    require_crl_number,
    require_current_crl,
    require_end_entity,
    require_issued,
    require_not_revoked,
    require_signature,
    validity,
)
from dstack.attestation.checklist import Ledger
from dstack.attestation.collateral import Collateral
from dstack.attestation.content_cache import Period
from dstack.attestation.roots import TrustedRoot, TrustedRoots
from dstack.attestation.tcb import QeIdentity, TcbInfo
from dstack.errors import InputError, QuoteUntrustedError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CollateralParts:
    """Collateral, parsed to its last byte; every chain ends in `root`, and nothing else is verified.

    Attributes:
        root: The configured root.
        root_certificate: The same, parsed.
        authority: The PCK CA, which should have signed the PCK CRL.
        tcb_signer: Should have signed TCB info.
        qe_signer: Should have signed the QE identity; usually the same certificate.
    """

    root: TrustedRoot
    root_certificate: x509.Certificate
    authority: x509.Certificate
    tcb_signer: x509.Certificate
    qe_signer: x509.Certificate
    root_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList
    tcb_info: TcbInfo
    qe_identity: QeIdentity


@dataclass(frozen=True)
class VerifiedCollateral:
    """Collateral whose signers are known. Made by `verify_collateral` alone.

    Attributes:
        collateral: As it came.
        parts: The same, parsed; `parts.root.simulated` must be said wherever this is reported.
        root_crl_number: Number of the root's CRL.
        pck_crl_number: Number of the PCK CA's CRL.
    """

    collateral: Collateral
    parts: CollateralParts
    root_crl_number: int
    pck_crl_number: int

    @cached_property
    def periods(self) -> tuple[Period, ...]:
        """When each part holds, by its name."""
        parts = self.parts
        documents: dict[str, TcbInfo | QeIdentity] = {"TCB info": parts.tcb_info, "QE identity": parts.qe_identity}
        crls = {"root CRL": parts.root_crl, "PCK CRL": parts.pck_crl}
        certificates = {
            "root certificate": parts.root_certificate,
            "PCK CA certificate": parts.authority,
            "TCB signer's certificate": parts.tcb_signer,
            "QE identity signer's certificate": parts.qe_signer,
        }
        return (
            *(_document_period(each, name) for name, each in documents.items()),
            *(_crl_period(crl, name) for name, crl in crls.items()),
            *(validity(certificate, name) for name, certificate in certificates.items()),
        )

    @property
    def ends(self) -> dict[str, datetime]:
        """When each part runs out, by its name."""
        return {period.ends: period.end for period in self.periods}

    @cached_property
    def period(self) -> Period:
        """When all of it holds; names what ends first."""
        return reduce(Period.within, self.periods)

    @property
    def expires_at(self) -> datetime:
        """When the first part runs out: from then on all of it is refused."""
        return self.period.end

    @property
    def evaluation_number(self) -> int:
        """The lower of both documents' TCB evaluation data numbers."""
        return min(self.parts.tcb_info.evaluation_number, self.parts.qe_identity.evaluation_number)


def verify_collateral(
    collateral: Collateral,
    *,
    roots: TrustedRoots,
    at: datetime,
    min_root_crl_number: int = 0,
    min_pck_crl_number: int = 0,
) -> VerifiedCollateral:
    """Establish who signed collateral, and that all of it is in force.

    Says nothing of which platform it is about; `verify_quote` compares that.

    Args:
        collateral: As received.
        roots: The only certificates allowed to end a chain.
        at: When everything must be valid, an aware time.
        min_root_crl_number: Lowest number of the root's CRL.
        min_pck_crl_number: The same for the PCK CA's CRL.

    Raises:
        CollateralMalformedError: A part of it is not of its form.
        QuoteUntrustedError: Step 3, 4 or 5 failed; its `.step` says which.
        InputError: *at* is not an aware time after 1970.
    """
    require_time(at)
    verified = check_collateral(collateral, roots=roots, at=at, ledger=Ledger(strict=True))
    assert verified is not None, "a strict ledger raises"
    for number, minimum, issuer in (
        (verified.root_crl_number, min_root_crl_number, verified.parts.root_certificate),
        (verified.pck_crl_number, min_pck_crl_number, verified.parts.authority),
    ):
        require_crl_number(number, minimum, issuer, step=4)
    return verified


def require_time(at: datetime) -> None:
    """Require an aware time after 1970.

    Raises:
        InputError: It is another.
    """
    if at.tzinfo is None or at < _EPOCH:
        raise InputError(f"verification time: want an aware time after 1970, got {at}")


def check_collateral(
    collateral: Collateral, *, roots: TrustedRoots, at: datetime, ledger: Ledger
) -> VerifiedCollateral | None:
    """As `verify_collateral`; None only if *ledger* has written down why."""
    # Everything is read before the first step that trusts any of it.
    form = "a CA, its CRL and the root's"
    crls = ledger.run(4, lambda: _parse_crls(collateral, roots), seen=form, name="form of the revocation lists")
    if crls is None:
        ledger.skip((5,), "without revocation lists no signer can be trusted")
        return None
    parts = ledger.run(5, lambda: _parse(collateral, crls), seen="read to the last byte", name="form of the documents")
    if parts is None:
        return None
    numbers = ledger.run(
        4, lambda: _check_crls(parts, at), seen=lambda seen: f"genuine, numbers {seen[0]} and {seen[1]}"
    )
    if numbers is None:
        ledger.skip((5,), "without revocation lists no signer can be trusted")
        return None
    signer = f"signed by {parts.root.names.tcb_signer}"
    checked = ledger.run(5, lambda: _check_documents(collateral, parts, at), seen=lambda _: signer)
    return VerifiedCollateral(collateral, parts, *numbers) if checked else None


def _check_crls(parts: CollateralParts, at: datetime) -> tuple[int, int]:
    root = parts.root_certificate
    # (3) The root is self-signed, and its own CRL does not list it. (4) Both revocation lists are genuine and current.
    if common_name(root.subject) != parts.root.names.root:
        raise QuoteUntrustedError(3, f"root: want {parts.root.names.root}, got {common_name(root.subject)[:80]!r}")
    require_issued(root, root, step=3)
    require_authority(root, path_length=1, at=at, step=4)
    root_number = require_current_crl(parts.root_crl, root, minimum=0, at=at, step=4)
    require_not_revoked(root, parts.root_crl, step=3)
    require_pck_authority(parts.authority, parts, at=at, step=4)
    pck_number = require_current_crl(parts.pck_crl, parts.authority, minimum=0, at=at, step=4)
    return root_number, pck_number


def require_pck_authority(authority: x509.Certificate, parts: CollateralParts, *, at: datetime, step: int) -> None:
    """Require a PCK CA that the root of *parts* issued and did not revoke, in its role, valid at *at*."""
    require_role(authority, parts.root.names.pck_authorities, step=step)
    require_authority(authority, path_length=0, at=at, step=step)
    require_issued(authority, parts.root_certificate, step=step)
    require_not_revoked(authority, parts.root_crl, step=step)


def require_role(certificate: x509.Certificate, names: tuple[str, ...], *, step: int) -> None:
    """Require a certificate whose subject is one of *names*.

    Raises:
        QuoteUntrustedError: It is another.
    """
    name = common_name(certificate.subject)
    if name not in names:
        raise QuoteUntrustedError(step, f"certificate: want the role {' or '.join(names)}, got {name[:80]!r}")


@dataclass(frozen=True, slots=True)
class _Crls:
    root: TrustedRoot
    root_certificate: x509.Certificate
    authority: x509.Certificate
    root_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList


def _parse_crls(collateral: Collateral, roots: TrustedRoots) -> _Crls:
    authority, root_certificate, root = _issuer(
        collateral.pck_crl_issuer_chain, roots, step=4, what="PCK CRL issuer chain"
    )
    root_crl, pck_crl = (
        parse_crl(collateral.root_ca_crl, what="root CRL"),
        parse_crl(collateral.pck_crl, what="PCK CRL"),
    )
    return _Crls(root, root_certificate, authority, root_crl, pck_crl)


def _parse(collateral: Collateral, crls: _Crls) -> CollateralParts:
    same = TrustedRoots((crls.root,))
    return CollateralParts(
        root=crls.root,
        root_certificate=crls.root_certificate,
        authority=crls.authority,
        tcb_signer=_issuer(collateral.tcb_info_issuer_chain, same, step=5, what="TCB info issuer chain")[0],
        qe_signer=_issuer(collateral.qe_identity_issuer_chain, same, step=5, what="QE identity issuer chain")[0],
        root_crl=crls.root_crl,
        pck_crl=crls.pck_crl,
        tcb_info=collateral.parsed_tcb_info(),
        qe_identity=collateral.parsed_qe_identity(),
    )


def _crl_period(crl: x509.CertificateRevocationList, name: str) -> Period:
    assert crl.next_update_utc is not None, "a list without an end was refused"
    return Period(crl.last_update_utc, crl.next_update_utc, name)


def _document_period(document: TcbInfo | QeIdentity, name: str) -> Period:
    return Period.through(document.issue_date, document.next_update, name)


def _issuer(
    pem: str, roots: TrustedRoots, *, step: int, what: str
) -> tuple[x509.Certificate, x509.Certificate, TrustedRoot]:
    """The first of exactly two certificates, the second, and the configured root that the second is."""
    chain = parse_chain(pem.encode(), what=what)
    root = roots.find(chain[1]) if len(chain) == 2 else None
    if root is None:
        got = f"{len(chain)} certificates, the last being {common_name(chain[-1].subject)[:80]!r}"
        raise QuoteUntrustedError(step, f"{what}: want exactly an issuer and the root of trust, got {got}")
    return chain[0], chain[1], root


def _check_documents(collateral: Collateral, parts: CollateralParts, at: datetime) -> bool:
    for name, signer, text, signature, document in (
        ("TCB info", parts.tcb_signer, collateral.tcb_info, collateral.tcb_info_signature, parts.tcb_info),
        ("QE identity", parts.qe_signer, collateral.qe_identity, collateral.qe_identity_signature, parts.qe_identity),
    ):
        require_role(signer, (parts.root.names.tcb_signer,), step=5)
        require_end_entity(signer, at=at, step=5)
        require_issued(signer, parts.root_certificate, step=5)
        require_not_revoked(signer, parts.root_crl, step=5)
        require_signature(p256_key(signer, step=5), signature, text.encode(), step=5, what=name)
        if at not in _document_period(document, name):
            raise QuoteUntrustedError(5, f"{name}: good {document.issue_date} to {document.next_update}, not at {at}")
    return True
