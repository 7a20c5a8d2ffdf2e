"""What a deployment accepts among genuine quotes. The default, `STRICT`, accepts the least."""

from __future__ import annotations

from dataclasses import dataclass

from dstack.attestation.tcb import TcbStatus
from dstack.errors import ConfigError
from dstack.values import Digest32, Register

# quote-verification.md section 3: PKS, KL and PERFMON are the guest's own business.
_SELECTABLE_TD_ATTRIBUTES = frozenset({30, 31, 63})


@dataclass(frozen=True, slots=True)
class VerificationPolicy:
    """Who may set it decides what is trusted: it belongs in measured configuration.

    Attributes:
        accepted_statuses: TCB statuses that are good enough. Revoked never is.
        min_evaluation_number: Lowest TCB evaluation data number of both documents: refuses older statements.
        min_root_crl_number: Lowest number of the root's CRL; pass the highest one seen.
        min_pck_crl_number: The same for the PCK CA's CRL.
        allow_legacy_module: Take TDX modules of version 0, which have no module identity.
        td_attributes: Bits of TD attributes that may be set besides SEPT_VE_DISABLE (28): 30 PKS, 31 KL, 63 PERFMON.
        xfam: Bits that XFAM may have, as a number; None allows every combination the CPU does.
        mr_seams: The TDX modules that may run; None allows each that Intel vouches for.
        mr_enclaves: The SGX enclaves whose quotes are taken; by default none.
    """

    accepted_statuses: frozenset[TcbStatus] = frozenset({TcbStatus.UP_TO_DATE})
    min_evaluation_number: int = 0
    min_root_crl_number: int = 0
    min_pck_crl_number: int = 0
    allow_legacy_module: bool = False
    td_attributes: frozenset[int] = frozenset()
    xfam: int | None = None
    mr_seams: frozenset[Register] | None = None
    mr_enclaves: frozenset[Digest32] = frozenset()

    def __post_init__(self) -> None:
        if TcbStatus.REVOKED in self.accepted_statuses:
            raise ConfigError("accepted TCB statuses: Revoked cannot be accepted")
        unknown = self.td_attributes - _SELECTABLE_TD_ATTRIBUTES
        if unknown:
            raise ConfigError(f"TD attributes: bits {sorted(unknown)} cannot be allowed")


STRICT = VerificationPolicy()
