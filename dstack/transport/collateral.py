"""Where collateral comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dstack.attestation.collateral import Collateral, parse_collateral
from dstack.attestation.pck import claimed_platform
from dstack.attestation.quote import Quote
from dstack.errors import CollateralUnavailableError

_LIMIT = 4 << 20
_ANY_PLATFORM = "collateral.json"


class CollateralSource(Protocol):
    """Finds the statements about the platform that a quote says it is from."""

    def collateral_for(self, quote: Quote) -> Collateral:
        """The collateral for *quote*.

        Raises:
            CollateralUnavailableError: There is none for this platform, or it could not be fetched.
            CollateralMalformedError: There is something else in its place.
            QuoteMalformedError: The quote names no platform.
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
        for name in (f"{fmspc}.json", _ANY_PLATFORM):
            raw = _read(self.directory / name)
            if raw is not None:
                return parse_collateral(raw)
        raise CollateralUnavailableError(
            f"collateral: want {fmspc}.json or {_ANY_PLATFORM} in {self.directory}, got neither"
        )


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as stream:
            raw = stream.read(_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise CollateralUnavailableError(f"collateral: {path}: {exc.strerror or exc}") from exc
    if len(raw) > _LIMIT:
        raise CollateralUnavailableError(f"collateral: {path}: want at most {_LIMIT} bytes, got more")
    return raw
