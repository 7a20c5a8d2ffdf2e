"""The attacker holds one leaked key and uses it in a role that is not its own."""

from __future__ import annotations

import json
from dataclasses import replace

import dcap_qvl
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from dstack.attestation.collateral import serialise_collateral
from dstack.errors import QuoteUntrustedError
from dstack.simulator.certificates import PCK_AUTHORITY, TCB_SIGNER, Issuer, issue_certificate
from dstack.simulator.pki import raw_signature


def pem(*certificates) -> str:
    """Certificates as collateral carries them."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates).decode()


def blessing(collateral) -> str:
    """TCB info by which every platform is up to date."""
    document = json.loads(collateral.tcb_info)
    for level in document["tcbLevels"]:
        level["tcbStatus"] = "UpToDate"
        level.pop("advisoryIDs", None)
    return json.dumps(document)


def test_a_leaked_platform_key_blesses_no_platform(world):
    """TCB info signed by a PCK key is refused, though the quote library alone would take it."""
    stale = world.evidence(world.events(b"\x01" * 32), tcb_status="OutOfDate")
    text = blessing(world.collateral)
    forged = replace(
        world.collateral,
        tcb_info=text,
        tcb_info_signature=raw_signature(world.pki.keys.pck, text.encode()),
        tcb_info_issuer_chain=pem(world.pki.pck, world.pki.pck_authority, world.pki.root),
    )

    library = dcap_qvl.verify_with_root_ca(
        stale.quote,
        dcap_qvl.QuoteCollateralV3.from_json(serialise_collateral(forged)),
        world.pki.root_der,
        int(world.at.timestamp()),
    )

    assert library.status == "UpToDate"
    with pytest.raises(
        QuoteUntrustedError, match=r"step 5: TCB info issuer chain: want exactly an issuer and the root"
    ):
        world.appraise(stale, collateral=forged)


def test_a_leaked_ca_key_blesses_no_platform(world, honest):
    """Documents signed by the PCK CA are refused: its certificate is not that of a TCB signer."""
    for name in ("tcb_info", "qe_identity"):
        text = getattr(world.collateral, name)
        changes = {
            f"{name}_signature": raw_signature(world.pki.keys.pck_authority, text.encode()),
            f"{name}_issuer_chain": pem(world.pki.pck_authority, world.pki.root),
        }
        with pytest.raises(QuoteUntrustedError, match=r"step 5: certificate: want the role Simulated SGX TCB Signing"):
            world.appraise(honest, collateral=replace(world.collateral, **changes))


def test_a_leaked_ca_key_makes_no_tcb_signer(world, honest):
    """A TCB signer issued by the PCK CA, instead of by the root, is refused."""
    issuer = Issuer(world.pki.pck_authority.subject, world.pki.keys.pck_authority)
    signer = issue_certificate(TCB_SIGNER, world.pki.keys.tcb_signer.public_key(), issuer, at=world.at)
    forged = replace(world.collateral, tcb_info_issuer_chain=pem(signer, world.pki.root))
    with pytest.raises(QuoteUntrustedError, match=r"step 5: .*'Simulated SGX TCB Signing': not signed by"):
        world.appraise(honest, collateral=forged)


def test_a_tcb_signer_makes_no_platform(world):
    """A PCK CA that the TCB signer issued is refused: that certificate is no CA."""
    issuer = Issuer(world.pki.tcb_signer.subject, world.pki.keys.tcb_signer)
    authority = issue_certificate(PCK_AUTHORITY, world.pki.keys.pck_authority.public_key(), issuer, at=world.at)
    forged = replace(world.pki, pck_authority=authority)
    evidence = world.evidence(world.events(b"\x01" * 32), pki=forged)
    with pytest.raises(QuoteUntrustedError, match=r"step 7: .*'Simulated SGX PCK Platform CA': not signed by"):
        world.appraise(evidence)


def test_a_platform_makes_no_platform(world):
    """A leaf issued with a PCK key is refused: four certificates are one too many, and three lack the link."""
    issuer = Issuer(world.pki.pck.subject, world.pki.keys.pck)
    role = replace(TCB_SIGNER, name="Simulated SGX PCK Certificate")
    leaf = issue_certificate(
        role, world.pki.keys.attestation.public_key(), issuer, at=world.at, platform=world.pki.platform
    )
    evidence = world.evidence(world.events(b"\x01" * 32), pki=replace(world.pki, pck=leaf))
    with pytest.raises(QuoteUntrustedError, match=r"step 4: PCK CRL issuer chain: want the CA that issued"):
        world.appraise(evidence)
