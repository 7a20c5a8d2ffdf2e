"""NOT PRODUCTION. The keys, certificates and collateral of one simulated platform."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from dstack.attestation.collateral import Collateral, serialise_collateral
from dstack.attestation.pck import PckExtension, parse_pck_extension
from dstack.errors import InputError
from dstack.simulator import statements
from dstack.simulator.certificates import (
    BACKDATED,
    PCK,
    PCK_AUTHORITY,
    ROOT,
    TCB_SIGNER,
    Issuer,
    issue_certificate,
    subject_name,
)

# Order of the P-256 group (FIPS 186-5, D.1.2.3).
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_FMSPC = bytes.fromhex("50806f000000")
_PCE_ID = bytes(2)
_CPU_SVN = bytes.fromhex("03030202040100050000000000000000")
_PCE_SVN = 13
_SCALABLE = 1


@dataclass(frozen=True, slots=True)
class SimulatedKeys:
    """One P-256 key per role: a shared key would let one role speak for another."""

    root: ec.EllipticCurvePrivateKey
    pck_authority: ec.EllipticCurvePrivateKey
    pck: ec.EllipticCurvePrivateKey
    tcb_signer: ec.EllipticCurvePrivateKey
    attestation: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class SimulatedPki:
    """A simulated platform's maker: signs quotes and says what they are worth."""

    keys: SimulatedKeys
    root: x509.Certificate
    pck_authority: x509.Certificate
    pck: x509.Certificate
    tcb_signer: x509.Certificate

    @classmethod
    def generate(cls, at: datetime, seed: bytes | None = None) -> Self:
        """Make a new platform, born at *at* (an aware time, kept to the second).

        Args:
            at: Certificates and collateral are valid from here.
            seed: Makes every byte a function of *seed* and *at*; without it, keys are random.
        """
        at = at.astimezone(UTC).replace(microsecond=0)
        make_key = _random_key if seed is None else _seeded_key(seed)
        keys = SimulatedKeys(**{field.name: make_key(field.name) for field in fields(SimulatedKeys)})
        root, authority = Issuer(subject_name(ROOT), keys.root), Issuer(subject_name(PCK_AUTHORITY), keys.pck_authority)
        return cls(
            keys=keys,
            root=issue_certificate(ROOT, keys.root.public_key(), root, at=at),
            pck_authority=issue_certificate(PCK_AUTHORITY, keys.pck_authority.public_key(), root, at=at),
            pck=issue_certificate(PCK, keys.pck.public_key(), authority, at=at, platform=_platform(keys.pck)),
            tcb_signer=issue_certificate(TCB_SIGNER, keys.tcb_signer.public_key(), root, at=at),
        )

    @property
    def born_at(self) -> datetime:
        """The `at` it was generated with."""
        return self.root.not_valid_before_utc + BACKDATED

    @property
    def root_der(self) -> bytes:
        """The root certificate: what a verifier must be told to trust."""
        return self.root.public_bytes(Encoding.DER)

    @property
    def platform(self) -> PckExtension:
        """Which platform the PCK certificate names."""
        return parse_pck_extension(self.pck)

    @property
    def pck_chain_pem(self) -> bytes:
        """PCK certificate, its CA and the root, as a quote carries them."""
        return _pem(self.pck, self.pck_authority, self.root)

    def collateral(
        self,
        at: datetime | None = None,
        *,
        revoked: tuple[int, ...] = (),
        evaluation_number: int = statements.EVALUATION_NUMBER,
        crl_number: int = 1,
        sgx: bool = False,
    ) -> Collateral:
        """What the maker says at *at* (by default, at its birth), good for 30 days.

        Args:
            at: An aware time, kept to the second.
            revoked: Serial numbers that both CRLs list.
            evaluation_number: The TCB evaluation data number of both documents.
            crl_number: The number of both CRLs.
            sgx: Speak of SGX enclaves instead of TDs.
        """
        at = self.born_at if at is None else at.astimezone(UTC).replace(microsecond=0)
        tcb_info = statements.tcb_info(self.platform, at=at, evaluation_number=evaluation_number, sgx=sgx)
        qe_identity = statements.qe_identity(at=at, evaluation_number=evaluation_number, sgx=sgx)
        issuer_chain = _pem(self.tcb_signer, self.root).decode()
        root_issuer = Issuer(self.root.subject, self.keys.root)
        pck_issuer = Issuer(self.pck_authority.subject, self.keys.pck_authority)
        return Collateral(
            pck_crl_issuer_chain=_pem(self.pck_authority, self.root).decode(),
            root_ca_crl=_crl_der(root_issuer, at, revoked, crl_number),
            pck_crl=_crl_der(pck_issuer, at, revoked, crl_number),
            tcb_info_issuer_chain=issuer_chain,
            tcb_info=tcb_info,
            tcb_info_signature=raw_signature(self.keys.tcb_signer, tcb_info.encode()),
            qe_identity_issuer_chain=issuer_chain,
            qe_identity=qe_identity,
            qe_identity_signature=raw_signature(self.keys.tcb_signer, qe_identity.encode()),
        )

    def save(self, folder: Path) -> None:
        """Write keys (mode 0600), certificates, `root.der` and `collateral.json` into *folder*."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(SimulatedKeys):
            key: ec.EllipticCurvePrivateKey = getattr(self.keys, field.name)
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            _write_private(folder / f"{field.name}.key", pem)
        for name in _CERTIFICATES:
            (folder / f"{name}.crt").write_bytes(_pem(getattr(self, name)))
        (folder / "root.der").write_bytes(self.root_der)
        (folder / "collateral.json").write_text(serialise_collateral(self.collateral()))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: A file is missing or is not what it should be.
        """
        try:
            keys = SimulatedKeys(**{field.name: _load_key(folder, field.name) for field in fields(SimulatedKeys)})
            certificates = {
                name: x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes()) for name in _CERTIFICATES
            }
        except (OSError, ValueError) as exc:
            raise InputError(f"simulated PKI: want the files that `pki` writes in {folder}, got: {exc}") from exc
        return cls(keys=keys, **certificates)


_CERTIFICATES = ("root", "pck_authority", "pck", "tcb_signer")


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA P-256 SHA-256 in the 64-byte r||s form of quotes and collateral."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The 64-byte x||y form of quotes."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def _random_key(_role: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _seeded_key(seed: bytes) -> Callable[[str], ec.EllipticCurvePrivateKey]:
    def derive(role: str) -> ec.EllipticCurvePrivateKey:
        digest = hashlib.sha512(b"dstack-simulated-pki-v1:" + role.encode() + b":" + seed).digest()
        return ec.derive_private_key(int.from_bytes(digest, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1())

    return derive


def _platform(pck_key: ec.EllipticCurvePrivateKey) -> PckExtension:
    """A platform whose PPID, hence device id, follows from its PCK key."""
    identity = hashlib.sha256(b"dstack-simulated-ppid-v1:" + raw_public_key(pck_key)).digest()
    return PckExtension(identity[:16], _CPU_SVN, _PCE_SVN, _PCE_ID, _FMSPC, _SCALABLE, identity[16:])


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _crl_der(issuer: Issuer, at: datetime, revoked: tuple[int, ...], number: int) -> bytes:
    return statements.revocation_list(issuer, at=at, revoked=revoked, number=number).public_bytes(Encoding.DER)


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def _load_key(folder: Path, name: str) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key((folder / f"{name}.key").read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{name}.key: want an EC key")
    return key
