"""Items 3 to 5: is collateral genuine and current? Needs no quote, so it is done once for the same content.

Every check names the step of `docs/verification-steps.md` in its error.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import dcap_qvl
from cryptography import x509

from dstack.attestation.certificates import (
    common_name,
    der_of,
    p256_key,
    parse_certificate,
    parse_chain,
    parse_crl,
    require_authority,
    require_current_crl,
    require_end_entity,
    require_issued,
    require_not_revoked,
    require_signature,
    validity,
)
from dstack.attestation.checklist import Ledger
from dstack.attestation.collateral import Collateral, serialise_collateral
from dstack.attestation.content_cache import ContentCache, Period, content_key
from dstack.attestation.roots import TrustedRoot, TrustedRoots
from dstack.attestation.tcb import QeIdentity, TcbInfo
from dstack.errors import CollateralMalformedError, QuoteUntrustedError
from dstack.keys.pem import spki_der


@dataclass(frozen=True, slots=True)
class CheckedCollateral:
    """Collateral whose signers are known. Made by `check_collateral` alone; holds for `period`.

    Attributes:
        root: Ends its chains; must be said to be simulated wherever this is reported, if it is.
        authority: The PCK CA whose CRL this is: the only one whose platforms it speaks of.
        pck_crl: Revoked platforms.
        root_crl: Revoked authorities and signers.
        signer_keys: SubjectPublicKeyInfo of whoever signed the two documents.
        library_form: The same statements as the quote library takes them.
        period: While everything in it is valid; names what ends first.
    """

    root: TrustedRoot
    authority: x509.Certificate
    root_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList
    root_crl_number: int
    pck_crl_number: int
    tcb_info: TcbInfo
    qe_identity: QeIdentity
    signer_keys: frozenset[bytes]
    library_form: dcap_qvl.QuoteCollateralV3
    period: Period


@dataclass(frozen=True, slots=True)
class _Crls:
    authority: x509.Certificate
    root_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList
    root_number: int
    pck_number: int
    period: Period


@dataclass(frozen=True, slots=True)
class _Documents:
    tcb_info: TcbInfo
    qe_identity: QeIdentity
    signer_keys: frozenset[bytes]
    period: Period


def check_collateral(
    collateral: Collateral, *, roots: TrustedRoots, at: datetime, cache: ContentCache | None = None
) -> CheckedCollateral:
    """Establish who signed collateral, and that all of it is in force: what a store does on arrival.

    Args:
        collateral: As it came.
        roots: The only certificates allowed to end a chain; the PCK CRL's issuer chain says which of them.
        at: When everything must be valid.
        cache: Remembers the answer.

    Raises:
        CollateralMalformedError: A part is not of its form.
        QuoteUntrustedError: Step 3, 4 or 5 failed.
    """
    chain = parse_chain(collateral.pck_crl_issuer_chain.encode(), what="PCK CRL issuer chain")
    root = roots.find(chain[-1])
    if root is None:
        raise QuoteUntrustedError(3, f"root {common_name(chain[-1].subject)[:80]!r} is not a configured root of trust")
    checked = checked_collateral(collateral, root, at, Ledger(strict=True), cache)
    assert checked is not None, "a strict ledger raises"
    return checked


def checked_collateral(
    collateral: Collateral, root: TrustedRoot, at: datetime, ledger: Ledger, cache: ContentCache | None
) -> CheckedCollateral | None:
    """As `check_collateral`, under one root; None only if *ledger* has written down why."""
    key = content_key(b"collateral", collateral.digest, root.certificate_der, repr(root.names).encode())
    found = cache.get(key, CheckedCollateral, at) if cache else None
    if found is not None:
        ledger.passed(4, "checked before, unchanged and still in force")
        ledger.passed(5, "checked before, unchanged and still in force")
        return found
    checked = _check(collateral, root, at, ledger)
    if cache and checked:
        cache.put(key, checked, checked.period)
    return checked


def _check(collateral: Collateral, root: TrustedRoot, at: datetime, ledger: Ledger) -> CheckedCollateral | None:
    anchor = parse_certificate(root.certificate_der, what="root")
    crls = ledger.run(
        4,
        lambda: _check_crls(collateral, anchor, root, at),
        seen=lambda seen: f"numbers {seen.root_number} (root) and {seen.pck_number} (PCK CA), until {seen.period.end}",
    )
    if crls is None:
        ledger.skip((5,), "signers of documents cannot be known without revocation lists")
        return None
    documents = ledger.run(
        5,
        lambda: _check_documents(collateral, anchor, crls, root, at),
        seen=lambda seen: f"signed by {root.names.tcb_signer}, until {seen.period.end}",
    )
    if documents is None:
        return None
    return CheckedCollateral(
        root=root,
        authority=crls.authority,
        root_crl=crls.root_crl,
        pck_crl=crls.pck_crl,
        root_crl_number=crls.root_number,
        pck_crl_number=crls.pck_number,
        tcb_info=documents.tcb_info,
        qe_identity=documents.qe_identity,
        signer_keys=documents.signer_keys,
        library_form=_library_form(collateral),
        period=validity(anchor).within(crls.period).within(documents.period),
    )


def _check_crls(collateral: Collateral, anchor: x509.Certificate, root: TrustedRoot, at: datetime) -> _Crls:
    authority = _issuer(collateral.pck_crl_issuer_chain, anchor, step=4, what="PCK CRL issuer chain")
    root_crl = parse_crl(collateral.root_ca_crl, what="root CRL")
    pck_crl = parse_crl(collateral.pck_crl, what="PCK CRL")
    require_authority(anchor, path_length=1, at=at, step=4)
    root_number, root_period = require_current_crl(root_crl, anchor, at=at, step=4)
    require_not_revoked(anchor, root_crl, step=3)
    require_pck_authority(authority, anchor, root_crl, root, at, step=4)
    pck_number, pck_period = require_current_crl(pck_crl, authority, at=at, step=4)
    period = root_period.within(pck_period).within(validity(authority))
    return _Crls(authority, root_crl, pck_crl, root_number, pck_number, period)


def _check_documents(
    collateral: Collateral, anchor: x509.Certificate, crls: _Crls, root: TrustedRoot, at: datetime
) -> _Documents:
    tcb_info, qe_identity = collateral.parsed_tcb_info(), collateral.parsed_qe_identity()
    keys, period = [], crls.period
    for name, chain, text, signature, document in (
        (
            "TCB info",
            collateral.tcb_info_issuer_chain,
            collateral.tcb_info,
            collateral.tcb_info_signature,
            tcb_info,
        ),
        (
            "QE identity",
            collateral.qe_identity_issuer_chain,
            collateral.qe_identity,
            collateral.qe_identity_signature,
            qe_identity,
        ),
    ):
        signer = _issuer(chain, anchor, step=5, what=f"{name} issuer chain")
        require_role(signer, (root.names.tcb_signer,), step=5)
        require_end_entity(signer, at=at, step=5)
        require_issued(signer, anchor, step=5)
        require_not_revoked(signer, crls.root_crl, step=5)
        require_signature(p256_key(signer, step=5), signature, text.encode(), step=5, what=name)
        good = Period(document.issue_date, document.next_update, name)
        if at not in good:
            raise QuoteUntrustedError(5, f"{name}: good {document.issue_date} to {document.next_update}, not at {at}")
        keys.append(spki_der(signer))
        period = period.within(good).within(validity(signer))
    return _Documents(tcb_info, qe_identity, frozenset(keys), period)


def require_pck_authority(
    authority: x509.Certificate,
    anchor: x509.Certificate,
    root_crl: x509.CertificateRevocationList,
    root: TrustedRoot,
    at: datetime,
    *,
    step: int,
) -> None:
    """Require a PCK CA that the root issued and did not revoke."""
    require_role(authority, root.names.pck_authorities, step=step)
    require_authority(authority, path_length=0, at=at, step=step)
    require_issued(authority, anchor, step=step)
    require_not_revoked(authority, root_crl, step=step)


def require_role(certificate: x509.Certificate, names: tuple[str, ...], *, step: int) -> None:
    """Require that the subject's CN is one of *names*."""
    name = common_name(certificate.subject)
    if name not in names:
        raise QuoteUntrustedError(step, f"certificate: want the role {' or '.join(names)}, got {name[:80]!r}")


def _issuer(pem: str, root: x509.Certificate, *, step: int, what: str) -> x509.Certificate:
    """The first of exactly two certificates, the second of which is *root*."""
    chain = parse_chain(pem.encode(), what=what)
    if len(chain) != 2 or der_of(chain[1]) != der_of(root):
        raise QuoteUntrustedError(step, f"{what}: want exactly an issuer and the root of the quote's chain")
    return chain[0]


def _library_form(collateral: Collateral) -> dcap_qvl.QuoteCollateralV3:
    try:
        return dcap_qvl.QuoteCollateralV3.from_json(serialise_collateral(collateral))
    except (ValueError, TypeError) as exc:
        raise CollateralMalformedError(f"collateral: the quote library cannot read it: {exc}") from exc
