"""What a deployment accepts among genuine quotes. The default, `STRICT`, accepts the least.

Whatever takes more than `STRICT` is a relaxation: a value of its own that names what it lets in and the moment from
which it no longer does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from dstack.attestation.tcb import TcbStatus
from dstack.errors import ConfigError
from dstack.values import Digest32, Register

# quote-verification.md section 3: PKS, KL and PERFMON are the guest's own business.
SELECTABLE_TD_ATTRIBUTES = {"PKS": 30, "KL": 31, "PERFMON": 63}


@dataclass(frozen=True, slots=True)
class AcceptStatus:
    """Take platforms of this TCB status before *until*.

    Attributes:
        status: Neither UpToDate, which needs no relaxation, nor Revoked, which none can let in.
        until: An aware time.
        advisory_ids: The only advisories that may then apply; None for any.
    """

    status: TcbStatus
    until: datetime
    advisory_ids: frozenset[str] | None = None

    def __post_init__(self) -> None:
        _require_end(self.until, f"accepting {self.status.value}")
        if self.status is TcbStatus.REVOKED:
            raise ConfigError("accepted TCB statuses: Revoked cannot be accepted")

    def __str__(self) -> str:
        return f"acceptance of {self.status.value}"


@dataclass(frozen=True, slots=True)
class AllowTdAttribute:
    """Let a TD have this attribute before *until*: bit 30 PKS, 31 KL or 63 PERFMON."""

    bit: int
    until: datetime

    def __post_init__(self) -> None:
        _require_end(self.until, f"TD attribute {self.bit}")
        if self.bit not in SELECTABLE_TD_ATTRIBUTES.values():
            raise ConfigError(f"TD attributes: bits {[self.bit]} cannot be allowed")

    def __str__(self) -> str:
        return f"permission of TD attribute {self.bit}"


@dataclass(frozen=True, slots=True)
class AllowLegacyModule:
    """Take TDX modules of version 0, which have no identity of their own, before *until*."""

    until: datetime

    def __post_init__(self) -> None:
        _require_end(self.until, "legacy TDX modules")

    def __str__(self) -> str:
        return "permission of legacy TDX modules"


Relaxation = AcceptStatus | AllowTdAttribute | AllowLegacyModule


@dataclass(frozen=True, slots=True)
class VerificationPolicy:
    """Who may set it decides what is trusted: it belongs in measured configuration.

    Attributes:
        relaxations: What is accepted beyond the strict rules, each with its end.
        min_evaluation_number: Lowest TCB evaluation data number of both documents: refuses older statements.
        min_root_crl_number: Lowest number of the root's CRL; pass the highest one seen.
        min_pck_crl_number: The same for the PCK CA's CRL.
        refused_advisory_ids: Advisories that no platform may have, whatever its status.
        xfam: Bits that XFAM may have, as a number; None allows every combination the CPU does.
        mr_seams: The TDX modules that may run; None allows each that Intel vouches for.
        mr_enclaves: The SGX enclaves whose quotes are taken; by default none.
    """

    relaxations: tuple[Relaxation, ...] = ()
    min_evaluation_number: int = 0
    min_root_crl_number: int = 0
    min_pck_crl_number: int = 0
    refused_advisory_ids: frozenset[str] = frozenset()
    xfam: int | None = None
    mr_seams: frozenset[Register] | None = None
    mr_enclaves: frozenset[Digest32] = frozenset()

    def applying(self, at: datetime) -> tuple[Relaxation, ...]:
        """The relaxations that have not ended."""
        return tuple(relaxation for relaxation in self.relaxations if at < relaxation.until)


def accept_statuses(statuses: Iterable[TcbStatus], until: datetime | None) -> tuple[AcceptStatus, ...]:
    """Relaxations for a list of statuses, as settings have it; UpToDate needs none.

    Raises:
        ConfigError: There is one that needs an end and *until* is None, or Revoked is among them.
    """
    others = sorted(set(statuses) - {TcbStatus.UP_TO_DATE}, key=lambda status: status.value)
    if TcbStatus.REVOKED in others:
        raise ConfigError("accepted TCB statuses: Revoked cannot be accepted")
    if until is None:
        if others:
            what = "the time at which that ends in accepted_tcb_statuses_until"
            raise ConfigError(f"accepting {others[0].value}: want {what}, got none")
        return ()
    return tuple(AcceptStatus(status, until) for status in others)


def _require_end(until: datetime, what: str) -> None:
    if not isinstance(until, datetime) or until.tzinfo is None:
        raise ConfigError(f"{what}: want the time at which that ends, with its zone, got {until!r:.40}")


STRICT = VerificationPolicy()
