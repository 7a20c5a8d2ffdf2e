"""How far a platform is from a better TCB level: which component, by how much, and what would go away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from dstack.attestation.pck import PckExtension
from dstack.attestation.quote import EnclaveReport, TdReport
from dstack.attestation.tcb import COMPONENTS, PlatformLevel, QeIdentity, Rating, SvnLevel, TcbInfo, TcbStatus
from dstack.attestation.tcb_match import Part, first_tdx_component, module_identity, platform_level, svn_level
from dstack.errors import QuoteUntrustedError

_SEVERITY = {status: worse for worse, status in enumerate(TcbStatus)}
_Level = TypeVar("_Level", PlatformLevel, SvnLevel)


@dataclass(frozen=True, slots=True)
class Gap:
    """One SVN that is too low: what Intel calls it, what the quote has, and what the wanted level asks for."""

    component: str
    have: int
    want: int


@dataclass(frozen=True, slots=True)
class Distance:
    """How far one part is from the best level that its document has.

    Attributes:
        part: What was rated.
        reached: The rating of the level that it reaches; None if it reaches none.
        wanted: The rating of the nearest of the best levels; None if the document has none.
        gaps: What is too low for it. None of them, and a status that is not the wanted one, means that a setting is
            what Intel objects to, or that only the wanted level of another part would help.
    """

    part: Part
    reached: Rating | None
    wanted: Rating | None
    gaps: tuple[Gap, ...]

    @property
    def is_best(self) -> bool:
        """Whether nothing better is to be had."""
        return self.reached is not None and not self.gaps and self.reached == self.wanted

    @property
    def settled_advisory_ids(self) -> tuple[str, ...]:
        """Advisories that apply now and would not at the wanted level."""
        left = set() if self.wanted is None else set(self.wanted.advisory_ids)
        return tuple(name for name in (self.reached.advisory_ids if self.reached else ()) if name not in left)


def tcb_distances(
    body: TdReport | EnclaveReport, platform: PckExtension, info: TcbInfo, qe: EnclaveReport, identity: QeIdentity
) -> tuple[Distance, ...]:
    """Measure each part by itself: platform, TDX module, both as they are now (TD 1.5), quoting enclave.

    Says nothing of whether the documents are genuine.
    """
    distances = []
    if isinstance(body, EnclaveReport):
        distances.append(_platform(Part.PLATFORM, info, platform, None))
    else:
        distances.append(_platform(Part.PLATFORM, info, platform, body.tee_tcb_svn))
        distances += _module(Part.MODULE, info, body.tee_tcb_svn)
        if body.tee_tcb_svn2 is not None and body.tee_tcb_svn2 != body.tee_tcb_svn:
            distances.append(_platform(Part.PLATFORM_NOW, info, platform, body.tee_tcb_svn2))
            distances += _module(Part.MODULE_NOW, info, body.tee_tcb_svn2)
    distances.append(_svn(Part.QE, identity.levels, qe.isv_svn, "quoting enclave"))
    return tuple(distances)


def _platform(part: Part, info: TcbInfo, platform: PckExtension, tee_tcb_svn: bytes | None) -> Distance:
    reached = _or_none(lambda: platform_level(info, platform, tee_tcb_svn).rating)

    def gaps(level: PlatformLevel) -> tuple[Gap, ...]:
        return tuple(gap for gap in _pairs(level, info, platform, tee_tcb_svn) if gap.have < gap.want)

    return _nearest(part, reached, info.levels, gaps)


def _pairs(level: PlatformLevel, info: TcbInfo, platform: PckExtension, tee_tcb_svn: bytes | None) -> Iterable[Gap]:
    for n in range(COMPONENTS):
        yield Gap(_called("SGX component", n, info.sgx_names), platform.cpu_svn[n], level.sgx[n])
    yield Gap("PCESVN", platform.pce_svn, level.pce_svn)
    if tee_tcb_svn is not None:
        for n in range(first_tdx_component(tee_tcb_svn), COMPONENTS):
            yield Gap(_called("TDX component", n, info.tdx_names), tee_tcb_svn[n], level.tdx[n])


def _called(kind: str, number: int, names: tuple[str, ...]) -> str:
    """Numbered from 1, as Intel numbers them in the PCK certificate."""
    name = names[number] if number < len(names) else ""
    return f"{kind} {number + 1}" + (f" ({name})" if name else "")


def _module(part: Part, info: TcbInfo, svn: bytes) -> list[Distance]:
    """None for modules of version 0, which the platform's level rates."""
    if svn[1] == 0:
        return []
    try:
        identity = module_identity(info, svn[1])
    except QuoteUntrustedError:
        return [Distance(part, None, None, (Gap("module version with an identity", svn[1], svn[1]),))]
    return [_svn(part, identity.levels, svn[0], f"TDX module {identity.id}")]


def _svn(part: Part, levels: tuple[SvnLevel, ...], isv_svn: int, what: str) -> Distance:
    reached = _or_none(lambda: svn_level(levels, isv_svn, what).rating)

    def gaps(level: SvnLevel) -> tuple[Gap, ...]:
        return (Gap(f"ISVSVN of the {what}", isv_svn, level.isv_svn),) if isv_svn < level.isv_svn else ()

    return _nearest(part, reached, levels, gaps)


def _nearest(
    part: Part, reached: Rating | None, levels: tuple[_Level, ...], gaps: Callable[[_Level], tuple[Gap, ...]]
) -> Distance:
    """The distance to the nearest of the levels with the best status."""
    best = min((_SEVERITY[level.rating.status] for level in levels), default=None)
    if reached is not None and _SEVERITY[reached.status] == best:
        return Distance(part, reached, reached, ())
    wanted = [level for level in levels if _SEVERITY[level.rating.status] == best]
    if not wanted:
        return Distance(part, reached, None, ())
    nearest = min(wanted, key=lambda level: sum(gap.want - gap.have for gap in gaps(level)))
    return Distance(part, reached, nearest.rating, gaps(nearest))


def _or_none(rating: Callable[[], Rating]) -> Rating | None:
    try:
        return rating()
    except QuoteUntrustedError:
        return None
