"""Intel's two signed documents, TCB info and QE identity, and the statuses they give (quote-verification.md 5.2).

Parsed completely and strictly here; matched against a quote's SVNs by the quote library (step 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from dstack.errors import CollateralMalformedError
from dstack.measurement.strict_json import Members, parse_json

_MAX_DOCUMENT = 1024 * 1024
_MAX_U8, _MAX_U16, _MAX_U32 = 2**8 - 1, 2**16 - 1, 2**32 - 1
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
    document = _document(text, "TCB info")
    info = TcbInfo(
        id=document.text("id"),
        version=document.integer("version", maximum=_MAX_U32),
        issue_date=_moment(document, "issueDate"),
        next_update=_moment(document, "nextUpdate"),
        fmspc=_hexadecimal(document, "fmspc", 6),
        pce_id=_hexadecimal(document, "pceId", 2),
        tcb_type=document.integer("tcbType", maximum=_MAX_U32),
        evaluation_number=document.integer("tcbEvaluationDataNumber", maximum=_MAX_U32),
    )
    for level in _inners(document, "tcbLevels"):
        _require_platform_level(level, tdx=info.id == "TDX")
    if info.id == "TDX":
        _require_module(_inner(document, "tdxModule"))
        for identity in _inners(document, "tdxModuleIdentities"):
            identity.text("id")
            _require_module(identity)
            _require_svn_levels(identity)
    return info


def parse_qe_identity(text: str) -> QeIdentity:
    """Read a QE identity document. Does not verify its signature.

    Raises:
        CollateralMalformedError: A field is missing, repeated, or of another type or length.
    """
    document = _document(text, "QE identity")
    _require_svn_levels(document)
    return QeIdentity(
        id=document.text("id"),
        version=document.integer("version", maximum=_MAX_U32),
        issue_date=_moment(document, "issueDate"),
        next_update=_moment(document, "nextUpdate"),
        evaluation_number=document.integer("tcbEvaluationDataNumber", maximum=_MAX_U32),
        misc_select=_hexadecimal(document, "miscselect", 4),
        misc_select_mask=_hexadecimal(document, "miscselectMask", 4),
        attributes=_hexadecimal(document, "attributes", 16),
        attributes_mask=_hexadecimal(document, "attributesMask", 16),
        mr_signer=_hexadecimal(document, "mrsigner", 32),
        isv_prod_id=document.integer("isvprodid", maximum=_MAX_U16),
    )


def _require_platform_level(level: Members, *, tdx: bool) -> None:
    tcb = _inner(level, "tcb")
    tcb.integer("pcesvn", maximum=_MAX_U16)
    for name in ("sgxtcbcomponents", "tdxtcbcomponents") if tdx else ("sgxtcbcomponents",):
        components = _inners(tcb, name)
        if len(components) != _COMPONENTS:
            raise CollateralMalformedError(f"{tcb.what}: {name}: want {_COMPONENTS} of them, got {len(components)}")
        for component in components:
            component.integer("svn", maximum=_MAX_U8)
    _require_verdict(level)


def _require_module(module: Members) -> None:
    _hexadecimal(module, "mrsigner", 48)
    _hexadecimal(module, "attributes", 8)
    _hexadecimal(module, "attributesMask", 8)


def _require_svn_levels(document: Members) -> None:
    for level in _inners(document, "tcbLevels"):
        _inner(level, "tcb").integer("isvsvn", maximum=_MAX_U16)
        _require_verdict(level)


def _require_verdict(level: Members) -> None:
    _moment(level, "tcbDate")
    level.texts("advisoryIDs")
    status = level.text("tcbStatus")
    if status not in {known.value for known in TcbStatus}:
        raise CollateralMalformedError(f"{level.what}: tcbStatus: want one that Intel defines, got {status[:40]!r}")


def _document(text: str, what: str) -> Members:
    value = parse_json(text, what=what, limit=_MAX_DOCUMENT, error=CollateralMalformedError)
    return Members.of(value, what=what, error=CollateralMalformedError)


def _inner(members: Members, name: str) -> Members:
    return Members.of(members.values.get(name), what=f"{members.what}.{name}", error=CollateralMalformedError)


def _inners(members: Members, name: str) -> tuple[Members, ...]:
    items, what = members.values.get(name), f"{members.what}.{name}"
    if not isinstance(items, list):
        raise CollateralMalformedError(f"{what}: want an array")
    return tuple(
        Members.of(item, what=f"{what}[{at}]", error=CollateralMalformedError) for at, item in enumerate(items)
    )


def _hexadecimal(members: Members, name: str, size: int) -> bytes:
    raw = members.hexadecimal(name)
    if len(raw) != size:
        raise CollateralMalformedError(f"{members.what}: {name}: want {size} bytes, got {len(raw)}")
    return raw


def _moment(members: Members, name: str) -> datetime:
    """A time in Intel's form, 2025-06-19T10:16:03Z."""
    try:
        return datetime.strptime(members.text(name), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as exc:
        raise CollateralMalformedError(f"{members.what}: {name}: want a time such as 2025-06-19T10:16:03Z") from exc
