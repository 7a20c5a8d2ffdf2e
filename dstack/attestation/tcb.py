"""Intel's two signed documents, TCB info and QE identity, and the statuses they give (quote-verification.md 5.2).

Parsed completely and strictly here; matched against a quote's SVNs by the quote library (step 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from dstack.attestation.strict_json import JsonObject, parse_object
from dstack.errors import CollateralMalformedError

_COMPONENTS = 16


class TcbStatus(Enum):
    """How a platform stands, best to worst, as Intel spells it."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """What TCB info says about itself; `fmspc` is 6 bytes, `pce_id` 2."""

    id: str
    version: int
    issue_date: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    tcb_type: int
    evaluation_number: int


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """Which quoting enclave Intel vouches for; masks say which bits are compared."""

    id: str
    version: int
    issue_date: datetime
    next_update: datetime
    evaluation_number: int
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int


def parse_tcb_info(text: str) -> TcbInfo:
    """Read a TCB info document. Does not verify its signature.

    Raises:
        CollateralMalformedError: A field is missing, repeated, or of another type or length.
    """
    document = parse_object(text, what="TCB info")
    info = TcbInfo(
        id=document.text("id"),
        version=document.number("version"),
        issue_date=document.moment("issueDate"),
        next_update=document.moment("nextUpdate"),
        fmspc=document.hexadecimal("fmspc", 6),
        pce_id=document.hexadecimal("pceId", 2),
        tcb_type=document.number("tcbType"),
        evaluation_number=document.number("tcbEvaluationDataNumber"),
    )
    for level in document.inners("tcbLevels"):
        _require_platform_level(level, tdx=info.id == "TDX")
    if info.id == "TDX":
        _require_module(document.inner("tdxModule"))
        for identity in document.inners("tdxModuleIdentities"):
            identity.text("id")
            _require_module(identity)
            _require_svn_levels(identity)
    return info


def parse_qe_identity(text: str) -> QeIdentity:
    """Read a QE identity document. Does not verify its signature.

    Raises:
        CollateralMalformedError: A field is missing, repeated, or of another type or length.
    """
    document = parse_object(text, what="QE identity")
    _require_svn_levels(document)
    return QeIdentity(
        id=document.text("id"),
        version=document.number("version"),
        issue_date=document.moment("issueDate"),
        next_update=document.moment("nextUpdate"),
        evaluation_number=document.number("tcbEvaluationDataNumber"),
        misc_select=document.hexadecimal("miscselect", 4),
        misc_select_mask=document.hexadecimal("miscselectMask", 4),
        attributes=document.hexadecimal("attributes", 16),
        attributes_mask=document.hexadecimal("attributesMask", 16),
        mr_signer=document.hexadecimal("mrsigner", 32),
        isv_prod_id=document.number("isvprodid", limit=2**16),
    )


def _require_platform_level(level: JsonObject, *, tdx: bool) -> None:
    tcb = level.inner("tcb")
    tcb.number("pcesvn", limit=2**16)
    for name in ("sgxtcbcomponents", "tdxtcbcomponents") if tdx else ("sgxtcbcomponents",):
        components = tcb.inners(name)
        if len(components) != _COMPONENTS:
            raise CollateralMalformedError(f"{tcb.what}: {name}: want {_COMPONENTS} of them, got {len(components)}")
        for component in components:
            component.number("svn", limit=2**8)
    _require_verdict(level)


def _require_module(module: JsonObject) -> None:
    module.hexadecimal("mrsigner", 48)
    module.hexadecimal("attributes", 8)
    module.hexadecimal("attributesMask", 8)


def _require_svn_levels(document: JsonObject) -> None:
    for level in document.inners("tcbLevels"):
        level.inner("tcb").number("isvsvn", limit=2**16)
        _require_verdict(level)


def _require_verdict(level: JsonObject) -> None:
    level.moment("tcbDate")
    level.texts("advisoryIDs")
    status = level.text("tcbStatus")
    if status not in {known.value for known in TcbStatus}:
        raise CollateralMalformedError(f"{level.what}: tcbStatus: want one that Intel defines, got {status[:40]!r}")
