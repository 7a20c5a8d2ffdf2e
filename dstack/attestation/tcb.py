"""Intel's two signed documents, TCB info and QE identity, and the statuses in them (quote-verification.md 5.2).

Parsed completely and strictly here; matched against a quote's SVNs by `tcb_match` and by the quote library (step 13).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from dstack.errors import CollateralMalformedError
from dstack.measurement.strict_json import Members, parse_json

COMPONENTS = 16
_MAX_DOCUMENT = 1024 * 1024
_MAX_U8, _MAX_U16, _MAX_U32 = 2**8 - 1, 2**16 - 1, 2**32 - 1


class TcbStatus(Enum):
    """How a platform stands, best to worst, as Intel spells it."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"


# A verifier concludes these two from two levels; no document may state them.
_CONCLUDED = frozenset({TcbStatus.TD_RELAUNCH_ADVISED, TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED})
LEVEL_STATUSES = tuple(status for status in TcbStatus if status not in _CONCLUDED)
_BY_NAME = {status.value: status for status in LEVEL_STATUSES}


@dataclass(frozen=True, slots=True)
class Rating:
    """What Intel says of one level: its status, the date its fixes were known, the advisories that apply below them."""

    status: TcbStatus
    date: datetime
    advisory_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlatformLevel:
    """Lowest SVNs of one level: 16 SGX components, the PCE's SVN, 16 TDX components (none in SGX TCB info)."""

    sgx: bytes
    pce_svn: int
    tdx: bytes
    rating: Rating


@dataclass(frozen=True, slots=True)
class SvnLevel:
    """Lowest ISVSVN of one level of a TDX module or a quoting enclave."""

    isv_svn: int
    rating: Rating


@dataclass(frozen=True, slots=True)
class TdxModule:
    """Who signs TDX modules (48 bytes), and which of their attribute bits (8 bytes) are compared."""

    mr_signer: bytes
    attributes: bytes
    attributes_mask: bytes


@dataclass(frozen=True, slots=True)
class ModuleIdentity:
    """One major version of the TDX module; *id* is `TDX_01` for version 1."""

    id: str
    module: TdxModule
    levels: tuple[SvnLevel, ...]


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """What TCB info says; `fmspc` is 6 bytes, `pce_id` 2.

    Attributes:
        levels: Best first, as step 13 walks them.
        module: Of modules without an identity of their own; None in SGX TCB info.
        sgx_names: What Intel calls each SGX component, such as "BIOS: Early Microcode Update"; perhaps empty.
        tdx_names: The same for the TDX components.
    """

    id: str
    version: int
    issue_date: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    tcb_type: int
    evaluation_number: int
    levels: tuple[PlatformLevel, ...]
    module: TdxModule | None
    module_identities: tuple[ModuleIdentity, ...]
    sgx_names: tuple[str, ...]
    tdx_names: tuple[str, ...]


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
    levels: tuple[SvnLevel, ...]


def parse_tcb_info(text: str) -> TcbInfo:
    """Read a TCB info document. Does not verify its signature.

    Raises:
        CollateralMalformedError: A field is missing, repeated, or of another type or length.
    """
    document = _document(text, "TCB info")
    tdx = document.text("id") == "TDX"
    levels = _inners(document, "tcbLevels")
    return TcbInfo(
        id=document.text("id"),
        version=document.integer("version", maximum=_MAX_U32),
        issue_date=_moment(document, "issueDate"),
        next_update=_moment(document, "nextUpdate"),
        fmspc=_hexadecimal(document, "fmspc", 6),
        pce_id=_hexadecimal(document, "pceId", 2),
        tcb_type=document.integer("tcbType", maximum=_MAX_U32),
        evaluation_number=document.integer("tcbEvaluationDataNumber", maximum=_MAX_U32),
        levels=_best_first(_platform_level(level, tdx=tdx) for level in levels),
        module=_module(_inner(document, "tdxModule")) if tdx else None,
        module_identities=_identities(document) if tdx else (),
        sgx_names=_names(levels, "sgxtcbcomponents"),
        tdx_names=_names(levels, "tdxtcbcomponents") if tdx else (),
    )


def parse_qe_identity(text: str) -> QeIdentity:
    """Read a QE identity document. Does not verify its signature.

    Raises:
        CollateralMalformedError: A field is missing, repeated, or of another type or length.
    """
    document = _document(text, "QE identity")
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
        levels=_svn_levels(document),
    )


def _best_first(levels: Iterable[PlatformLevel]) -> tuple[PlatformLevel, ...]:
    """Descending by SGX components, then PCESVN, then TDX components (quote-verification.md 5.4)."""
    return tuple(sorted(levels, key=lambda level: (level.sgx, level.pce_svn, level.tdx), reverse=True))


def _platform_level(level: Members, *, tdx: bool) -> PlatformLevel:
    tcb = _inner(level, "tcb")
    return PlatformLevel(
        sgx=_components(tcb, "sgxtcbcomponents"),
        pce_svn=tcb.integer("pcesvn", maximum=_MAX_U16),
        tdx=_components(tcb, "tdxtcbcomponents") if tdx else b"",
        rating=_rating(level),
    )


def _components(tcb: Members, name: str) -> bytes:
    components = _inners(tcb, name)
    if len(components) != COMPONENTS:
        raise CollateralMalformedError(f"{tcb.what}: {name}: want {COMPONENTS} of them, got {len(components)}")
    return bytes(component.integer("svn", maximum=_MAX_U8) for component in components)


def _names(levels: tuple[Members, ...], name: str) -> tuple[str, ...]:
    """What the first level calls its components: category and type, where it says so."""
    if not levels:
        return ()
    components = _inners(_inner(levels[0], "tcb"), name)
    words = ((component.text("category", ""), component.text("type", "")) for component in components)
    return tuple(": ".join(word[:80] for word in pair if word) for pair in words)


def _module(module: Members) -> TdxModule:
    return TdxModule(
        mr_signer=_hexadecimal(module, "mrsigner", 48),
        attributes=_hexadecimal(module, "attributes", 8),
        attributes_mask=_hexadecimal(module, "attributesMask", 8),
    )


def _identities(document: Members) -> tuple[ModuleIdentity, ...]:
    """None where the document lacks them: then no module but one of version 0 can be rated."""
    name = "tdxModuleIdentities"
    return tuple(map(_identity, _inners(document, name))) if name in document.values else ()


def _identity(identity: Members) -> ModuleIdentity:
    return ModuleIdentity(identity.text("id"), _module(identity), _svn_levels(identity))


def _svn_levels(document: Members) -> tuple[SvnLevel, ...]:
    """In the order of the document, which is the order in which they are tried."""
    return tuple(
        SvnLevel(_inner(level, "tcb").integer("isvsvn", maximum=_MAX_U16), _rating(level))
        for level in _inners(document, "tcbLevels")
    )


def _rating(level: Members) -> Rating:
    status = level.text("tcbStatus")
    if status not in _BY_NAME:
        raise CollateralMalformedError(f"{level.what}: tcbStatus: want one that Intel defines, got {status[:40]!r}")
    return Rating(_BY_NAME[status], _moment(level, "tcbDate"), level.texts("advisoryIDs"))


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
