"""The keys a guest has got, who gave them, and the file they are left in for the app (guest.md 5.4, 5.5)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime

from dstack.attestation.ratls import evidence_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.guest.platform import Platform, platform_evidence
from dstack.keys.certs import build_app_root
from dstack.keys.derivation import AppKeys, app_ca_from_seed, app_keys_from_seed
from dstack.keys.pem import certificate_pem, private_key_pem, spki_der
from dstack.keys.scalars import p256_from_scalar
from dstack.values import Digest32, OsImageHash


@dataclass(frozen=True, slots=True)
class KmsProvider:
    """A KMS gave the keys.

    Attributes:
        root_spki: SubjectPublicKeyInfo (DER) of its root CA: what names it, in measurements too.
        os_image_hash: The OS image that the KMS says it gave them to.
    """

    url: str
    root_spki: bytes
    temp_ca_cert_pem: str
    temp_ca_key_pem: str = field(repr=False)
    os_image_hash: OsImageHash


@dataclass(frozen=True, slots=True)
class NoProvider:
    """The guest drew the keys itself; they are gone at the next boot."""

    app_key_pem: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LocalProvider:
    """A local key provider gave the seed of the keys: the same at every boot of this machine.

    Attributes:
        mr_enclave: Of the provider.
    """

    app_key_pem: str = field(repr=False)
    mr_enclave: Digest32


Provider = KmsProvider | LocalProvider | NoProvider


@dataclass(frozen=True, slots=True)
class PreviousKeys:
    """The keys of the epoch before, to move data from: the KMS gives them until `served_until`, and then no more."""

    keys: AppKeys
    epoch: int
    served_until: datetime


@dataclass(frozen=True, slots=True)
class ProvidedKeys:
    """Keys and their origin.

    Attributes:
        keys: The keys.
        ca_cert_pem: The root that certifies the app's certificates.
        gateway_app_id: Of the gateway the app may register at, as the KMS says; empty for none.
        provider: Who gave them.
        epoch: The key epoch they are of; 0 is the first.
        previous: Those of the epoch before, as long as the KMS serves it.
    """

    keys: AppKeys
    ca_cert_pem: str
    gateway_app_id: str
    provider: Provider
    epoch: int = 0
    previous: PreviousKeys | None = None


def keys_of_seed(seed: bytes, platform: Platform, *, at: datetime, mr_enclave: Digest32 | None = None) -> ProvidedKeys:
    """Make the keys of an app without a KMS.

    Args:
        seed: 32 bytes: random ones for this boot only, or those of a local key provider.
        platform: Quotes the app's own root certificate.
        at: Now.
        mr_enclave: Of the provider; None where there is none.
    """
    key = p256_from_scalar(app_ca_from_seed(seed))
    evidence = platform_evidence(platform, ratls_report_data(spki_der(key)))
    root = build_app_root(key, evidence_extensions(evidence), at=at)
    pem = private_key_pem(key)
    provider = NoProvider(pem) if mr_enclave is None else LocalProvider(pem, mr_enclave)
    return ProvidedKeys(app_keys_from_seed(seed), certificate_pem(root), "", provider)


def serialise_app_keys(provided: ProvidedKeys) -> bytes:
    """Write `.appkeys.json`. It holds every secret of the app: store it for its owner only.

    Its members are upstream's in epoch 0; after a rotation `key_epoch` and `previous` follow.
    """
    members: dict[str, object] = {
        **_key_members(provided.keys),
        "gateway_app_id": provided.gateway_app_id,
        "ca_cert": provided.ca_cert_pem,
        "key_provider": _provider_members(provided.provider),
    }
    if provided.epoch:
        members["key_epoch"] = provided.epoch
    if (previous := provided.previous) is not None:
        served_until = int(previous.served_until.timestamp())
        members["previous"] = {
            "key_epoch": previous.epoch,
            **_key_members(previous.keys),
            "served_until": served_until,
        }
    return json.dumps(members, indent=2).encode()


def _key_members(keys: AppKeys) -> dict[str, str]:
    return {
        "disk_crypt_key": keys.disk_crypt_key.hex(),
        "env_crypt_key": keys.env_crypt_key.hex(),
        "k256_key": keys.k256_key.hex(),
        "k256_signature": keys.k256_signature.hex(),
    }


def _provider_members(provider: Provider) -> dict[str, dict[str, str]]:
    if isinstance(provider, LocalProvider):
        return {"Local": {"key": provider.app_key_pem, "mr": provider.mr_enclave.hex()}}
    if isinstance(provider, NoProvider):
        return {"None": {"key": provider.app_key_pem}}
    return {
        "Kms": {
            "url": provider.url,
            "pubkey": provider.root_spki.hex(),
            "tmp_ca_key": provider.temp_ca_key_pem,
            "tmp_ca_cert": provider.temp_ca_cert_pem,
        }
    }
