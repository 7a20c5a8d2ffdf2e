"""Roots of trust: the only certificates allowed to end a chain (quote-verification.md 5.3).

A simulated root is never in a default; whoever verifies simulated quotes passes it in, and says so.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from dataclasses import dataclass, field

from cryptography import x509

from dstack.attestation.certificates import common_name, der_of, parse_certificate
from dstack.attestation.content_cache import content_key
from dstack.errors import CollateralMalformedError, ConfigError
from dstack.keys.pem import spki_der

_ROOT_SUFFIX = " SGX Root CA"
_INTEL = "Intel"

# Intel's SGX provisioning root, published at certificates.trustedservices.intel.com/IntelSGXRootCA.der.
_INTEL_SGX_ROOT_DER = b64decode(
    "MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIwaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3Qg"
    "Q0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYT"
    "AlVTMB4XDTE4MDUyMTEwNDUxMFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoM"
    "EUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYTAlVTMFkwEwYHKoZI"
    "zj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi71OiOSLRFhWGjbnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxF"
    "P2sJBK5zlKOBuzCBuDAfBgNVHSMEGDAWgBQiZQzWWp00ifODtJVSv1AbOScGrDBSBgNVHR8ESzBJMEegRaBDhkFodHRwczovL2Nl"
    "cnRpZmljYXRlcy50cnVzdGVkc2VydmljZXMuaW50ZWwuY29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4EFgQUImUM1lqdNInz"
    "g7SVUr9QGzknBqwwDgYDVR0PAQH/BAQDAgEGMBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYIKoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9C"
    "iSDcNoowLuPRLsWGf/Yi7GSX94BgwTwgAiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI="
)


@dataclass(frozen=True, slots=True)
class RoleNames:
    """The subject CN that each role's certificate must carry under one root."""

    root: str
    pck_authorities: tuple[str, str]
    pck: str
    tcb_signer: str

    @classmethod
    def of(cls, prefix: str) -> RoleNames:
        """Intel's names with *prefix* in the place of "Intel"."""
        return cls(
            root=prefix + _ROOT_SUFFIX,
            pck_authorities=(f"{prefix} SGX PCK Platform CA", f"{prefix} SGX PCK Processor CA"),
            pck=f"{prefix} SGX PCK Certificate",
            tcb_signer=f"{prefix} SGX TCB Signing",
        )


@dataclass(frozen=True, slots=True)
class TrustedRoot:
    """A self-signed certificate that may end a chain, and the names its chain must use."""

    certificate_der: bytes
    names: RoleNames
    simulated: bool

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, as every report prints it."""
        return hashlib.sha256(self.certificate_der).hexdigest()


@dataclass(frozen=True, slots=True)
class TrustedRoots:
    """The set of roots a verifier was configured with; `digest` names the set."""

    roots: tuple[TrustedRoot, ...]
    digest: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.roots:
            raise ConfigError("trusted roots: want at least one")
        parts = [part for root in self.roots for part in (root.certificate_der, repr(root).encode())]
        object.__setattr__(self, "digest", content_key(*parts))

    def find(self, certificate: x509.Certificate) -> TrustedRoot | None:
        """The configured root that is byte for byte *certificate*, or None."""
        wanted = der_of(certificate)
        return next((root for root in self.roots if root.certificate_der == wanted), None)


INTEL_SGX_ROOT = TrustedRoot(_INTEL_SGX_ROOT_DER, RoleNames.of(_INTEL), simulated=False)
INTEL_ROOTS = TrustedRoots((INTEL_SGX_ROOT,))


def simulated_root(der: bytes) -> TrustedRoot:
    """Take a simulator's root certificate as a root of trust.

    Args:
        der: A certificate whose CN is "<prefix> SGX Root CA", the prefix not being Intel.

    Raises:
        CollateralMalformedError: Not a certificate, or not so named.
        ConfigError: It is Intel's certificate, key or name: that root is never simulated.
    """
    certificate = parse_certificate(der, what="simulated root")
    name = common_name(certificate.subject)
    prefix = name.removesuffix(_ROOT_SUFFIX)
    if not prefix or prefix == name:
        raise CollateralMalformedError(f"simulated root: want a CN ending in {_ROOT_SUFFIX!r}, got {name[:80]!r}")
    intel = parse_certificate(_INTEL_SGX_ROOT_DER, what="Intel's root")
    if prefix.casefold() == _INTEL.casefold() or spki_der(certificate) == spki_der(intel):
        raise ConfigError("simulated root: Intel's root cannot be taken as a simulated one")
    return TrustedRoot(der, RoleNames.of(prefix), simulated=True)
