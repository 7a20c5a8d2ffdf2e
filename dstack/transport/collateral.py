"""Where collateral comes from, and what it is about."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

from dstack.attestation.certificates import common_name, parse_chain
from dstack.attestation.collateral import Collateral, parse_collateral
from dstack.attestation.pck import claimed_platform
from dstack.attestation.quote import TEE_TDX, Quote
from dstack.errors import CollateralUnavailableError, InputError, QuoteMalformedError

_LIMIT = 4 << 20
_ANY_PLATFORM = "collateral.json"
_KNOWN_FILES = 8
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KNOWN_CHAINS = 256

Tee = Literal["tdx", "sgx"]
PckAuthority = Literal["platform", "processor"]


@dataclass(frozen=True, slots=True)
class PlatformModel:
    """What collateral is about: a kind of quote, a model of platform (FMSPC, 6 bytes), and the CA of its PCK."""

    tee: Tee
    authority: PckAuthority
    fmspc: bytes

    def __post_init__(self) -> None:
        if len(self.fmspc) != 6:
            raise InputError(f"FMSPC: want 6 bytes, got {len(self.fmspc)}")

    def __str__(self) -> str:
        return f"{self.tee}-{self.authority}-{self.fmspc.hex()}"

    @classmethod
    def of(cls, quote: Quote) -> PlatformModel:
        """What *quote* says it is from: unverified, good for choosing collateral and for nothing else.

        Raises:
            QuoteMalformedError: Its certificates cannot be read, or name no known CA.
        """
        fmspc = claimed_platform(quote).fmspc
        return cls(
            "tdx" if quote.tee_type == TEE_TDX else "sgx", _claimed_authority(quote.signature.pck_chain_pem), fmspc
        )


# A machine's quotes all carry the same certificates.
@lru_cache(maxsize=_KNOWN_CHAINS)
def _claimed_authority(pck_chain_pem: bytes) -> PckAuthority:
    leaf = parse_chain(pck_chain_pem, what="PCK chain", error=QuoteMalformedError)[0]
    return authority_of(common_name(leaf.issuer))


def authority_of(name: str) -> PckAuthority:
    """Which of the two PCK CAs a common name is.

    Raises:
        QuoteMalformedError: Neither.
    """
    if name.endswith(" SGX PCK Platform CA"):
        return "platform"
    if name.endswith(" SGX PCK Processor CA"):
        return "processor"
    raise QuoteMalformedError(f"PCK chain: want the Platform or the Processor CA, got {name[:80]!r}")


class CollateralSource(Protocol):
    """Finds the statements about the platform that a quote says it is from."""

    def collateral_for(self, quote: Quote) -> Collateral:
        """The collateral for *quote*.

        Raises:
            CollateralUnavailableError: There is none for this platform, or it could not be fetched.
            CollateralMalformedError: There is something else in its place.
            QuoteMalformedError: The quote names no platform.
            QuoteUntrustedError: Its certificates end in no root of trust, so that nobody was asked.
        """
        ...


@dataclass(frozen=True, slots=True)
class DirectoryCollateral:
    """Files in one directory: `<FMSPC in lower-case hexadecimal>.json`, else `collateral.json`.

    They are read anew for every quote, so that whoever refreshes them need not restart anything. Whoever can write
    there can withhold collateral or keep it old within its signed dates; it is signed, so nothing can be forged.
    """

    directory: Path

    def collateral_for(self, quote: Quote) -> Collateral:
        """As `CollateralSource` says."""
        fmspc = claimed_platform(quote).fmspc.hex()
        for path in flat_files(self.directory, fmspc):
            collateral = read_collateral(path)
            if collateral is not None:
                return collateral
        raise CollateralUnavailableError(
            f"collateral: want {fmspc}.json or {_ANY_PLATFORM} in {self.directory}, got neither"
        )


def flat_files(directory: Path, fmspc_hex: str) -> tuple[Path, Path]:
    """Where an operator puts collateral by hand: for one model of platform, and for all."""
    return directory / f"{fmspc_hex}.json", directory / _ANY_PLATFORM


def read_collateral(path: Path) -> Collateral | None:
    """Collateral from a file; None if there is no such file.

    The folder may be the host's inbox: a link there would have us read a file of ours, a pipe would have us wait.

    Raises:
        CollateralUnavailableError: It is no plain file, cannot be read, or is larger than collateral can be.
        CollateralMalformedError: It is something else.
    """
    try:
        raw = _read_plain(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise CollateralUnavailableError(f"collateral: {path}: {exc.strerror or exc}") from exc
    if len(raw) > _LIMIT:
        raise CollateralUnavailableError(f"collateral: {path}: want at most {_LIMIT} bytes, got more")
    return _parsed(raw)


def _read_plain(path: Path) -> bytes:
    descriptor = os.open(path, _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CollateralUnavailableError(f"collateral: {path}: want a plain file, got something else")
        with open(descriptor, "rb", closefd=False) as stream:
            return stream.read(_LIMIT + 1)
    finally:
        os.close(descriptor)


# What is read anew is mostly what was read before.
@lru_cache(maxsize=_KNOWN_FILES)
def _parsed(raw: bytes) -> Collateral:
    return parse_collateral(raw)
