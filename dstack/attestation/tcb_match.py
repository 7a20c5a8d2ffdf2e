"""Step 13, our half: which TCB levels a quote reaches, and what status they make (quote-verification.md 5.4).

The quote library matches the same levels its own way; `library_status` is what it must answer. Ours is stricter in two
places: a quoting enclave that needs configuration counts, and so does the module that a TD runs under now, where it is
worse than the one it was launched under.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from dstack.attestation.pck import PckExtension
from dstack.attestation.quote import EnclaveReport, TdReport
from dstack.attestation.tcb import (
    ModuleIdentity,
    PlatformLevel,
    QeIdentity,
    Rating,
    SvnLevel,
    TcbInfo,
    TcbStatus,
    TdxModule,
)
from dstack.errors import QuoteUntrustedError

_STEP = 13
_SEVERITY = {status: worse for worse, status in enumerate(TcbStatus)}
_OUT_OF_DATE = (TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED)
_CONFIGURATION = (TcbStatus.CONFIGURATION_NEEDED, TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED)


class Part(Enum):
    """What is rated by itself; the module's version now is stated by TD 1.5 reports only."""

    PLATFORM = "platform"
    MODULE = "TDX module"
    PLATFORM_NOW = "platform, as it is now"
    MODULE_NOW = "TDX module, as it is now"
    QE = "quoting enclave"


@dataclass(frozen=True, slots=True)
class PartRating:
    """One part and the rating of the level that it reaches."""

    part: Part
    rating: Rating


@dataclass(frozen=True, slots=True)
class TcbMatch:
    """What a quote's SVNs are worth.

    Attributes:
        status: The worst of all parts: ours.
        library_status: What the library must conclude from the same levels.
        parts: Each part by itself.
        advisory_ids: Of all levels that count, each once.
    """

    status: TcbStatus
    library_status: TcbStatus
    parts: tuple[PartRating, ...]
    advisory_ids: tuple[str, ...]

    def advisory_ids_include(self, others: Iterable[str]) -> bool:
        """Whether we know of every advisory in *others*."""
        return set(self.advisory_ids).issuperset(others)


def match_tcb(
    body: TdReport | EnclaveReport, platform: PckExtension, info: TcbInfo, qe: EnclaveReport, identity: QeIdentity
) -> TcbMatch:
    """Find each part's level.

    Args:
        body: Of the quote.
        platform: From the PCK certificate.
        info: The platform's TCB info.
        qe: The report of the quoting enclave.
        identity: Its identity document.

    Raises:
        QuoteUntrustedError: A part reaches no level, is not the one Intel vouches for, or is revoked.
    """
    qe_rating = PartRating(Part.QE, svn_level(identity.levels, qe.isv_svn, "quoting enclave").rating)
    if isinstance(body, EnclaveReport):
        parts = (PartRating(Part.PLATFORM, platform_level(info, platform, None).rating), qe_rating)
        return _merged(parts, ())
    launch = _td_parts(body, body.tee_tcb_svn, platform, info, (Part.PLATFORM, Part.MODULE))
    now: tuple[PartRating, ...] = ()
    if body.tee_tcb_svn2 is not None:
        now = _td_parts(body, body.tee_tcb_svn2, platform, info, (Part.PLATFORM_NOW, Part.MODULE_NOW))
    return _merged((*launch, qe_rating), (*now, qe_rating) if now else ())


def platform_level(info: TcbInfo, platform: PckExtension, tee_tcb_svn: bytes | None) -> PlatformLevel:
    """The first level that the platform reaches; *tee_tcb_svn* is None for SGX.

    Raises:
        QuoteUntrustedError: It reaches none.
    """
    for level in info.levels:
        if reaches(level, platform, tee_tcb_svn):
            return level
    svn = "" if tee_tcb_svn is None else f", TEE_TCB_SVN {tee_tcb_svn.hex()}"
    raise QuoteUntrustedError(
        _STEP,
        f"platform: no TCB level matches CPUSVN {platform.cpu_svn.hex()}, PCESVN {platform.pce_svn}{svn}",
    )


def reaches(level: PlatformLevel, platform: PckExtension, tee_tcb_svn: bytes | None) -> bool:
    """Whether every SVN is at least that of *level*.

    Components 0 and 1 of TDX are rated by the module's identity, unless its version is 0.
    """
    if platform.pce_svn < level.pce_svn or not _at_least(platform.cpu_svn, level.sgx):
        return False
    if tee_tcb_svn is None:
        return True
    skip = first_tdx_component(tee_tcb_svn)
    return _at_least(tee_tcb_svn[skip:], level.tdx[skip:])


def first_tdx_component(tee_tcb_svn: bytes) -> int:
    """The first TDX component that a platform level is compared with."""
    return 2 if tee_tcb_svn[1] else 0


def module_identity(info: TcbInfo, version: int) -> ModuleIdentity:
    """The identity of one major version of the TDX module.

    Raises:
        QuoteUntrustedError: The TCB info has none for that version.
    """
    wanted = f"TDX_{version:02X}"
    for identity in info.module_identities:
        if identity.id.upper() == wanted:
            return identity
    raise QuoteUntrustedError(_STEP, f"TDX module: no identity {wanted} in the TCB info")


def svn_level(levels: tuple[SvnLevel, ...], isv_svn: int, what: str) -> SvnLevel:
    """The first level that *isv_svn* reaches.

    Raises:
        QuoteUntrustedError: It reaches none; *what* is named in the error.
    """
    for level in levels:
        if isv_svn >= level.isv_svn:
            return level
    raise QuoteUntrustedError(_STEP, f"{what}: no TCB level matches ISVSVN {isv_svn}")


def _td_parts(
    body: TdReport, svn: bytes, platform: PckExtension, info: TcbInfo, names: tuple[Part, Part]
) -> tuple[PartRating, ...]:
    if info.module is None:
        raise QuoteUntrustedError(_STEP, "TDX module: the TCB info has none")
    level = PartRating(names[0], platform_level(info, platform, svn).rating)
    if svn[1] == 0:
        _check_module(body, info.module)
        return (level,)
    identity = module_identity(info, svn[1])
    _check_module(body, identity.module)
    return (level, PartRating(names[1], svn_level(identity.levels, svn[0], f"TDX module {identity.id}").rating))


def _check_module(body: TdReport, module: TdxModule) -> None:
    if body.mr_signer_seam != module.mr_signer:
        raise QuoteUntrustedError(_STEP, f"TDX module: want signer {module.mr_signer.hex()[:16]}...")
    attributes, wanted, mask = (
        int.from_bytes(value, "little") for value in (body.seam_attributes, module.attributes, module.attributes_mask)
    )
    if attributes & mask != wanted & mask or attributes & ~mask:
        raise QuoteUntrustedError(_STEP, f"TDX module: attributes {body.seam_attributes.hex()} are not vouched for")


def _merged(launch: tuple[PartRating, ...], now: tuple[PartRating, ...]) -> TcbMatch:
    parts = (*launch, *(part for part in now if part.part is not Part.QE))
    revoked = [part.part.value for part in parts if part.rating.status is TcbStatus.REVOKED]
    if revoked:
        raise QuoteUntrustedError(_STEP, f"{revoked[0]}: its TCB level is Revoked")
    library = _converged(launch, strict=False)
    status = _converged(launch, strict=True)
    counting = launch
    if now:
        status_now = _converged(now, strict=True)
        library = _after_relaunch(library, _converged(now, strict=False))
        status = _after_relaunch(status, status_now)
        if _SEVERITY[status_now] > _SEVERITY[status]:
            status, counting = status_now, parts
    advisory_ids = dict.fromkeys(name for part in counting for name in part.rating.advisory_ids)
    return TcbMatch(status, library, parts, tuple(advisory_ids))


def _converged(parts: Iterable[PartRating], *, strict: bool) -> TcbStatus:
    """The platform's status, worsened by the others'; the library lets OutOfDate alone count, *strict* all."""
    platform, *others = (part.rating.status for part in parts)
    for other in others:
        if other is TcbStatus.OUT_OF_DATE or (strict and other in _OUT_OF_DATE):
            platform = _outdated(platform, other)
        elif strict and _SEVERITY[other] > _SEVERITY[platform]:
            platform = other
    return platform


def _outdated(platform: TcbStatus, other: TcbStatus) -> TcbStatus:
    both = (TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED, *_CONFIGURATION)
    needs_configuration = platform in both or other is TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED
    return TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED if needs_configuration else TcbStatus.OUT_OF_DATE


def _after_relaunch(launch: TcbStatus, now: TcbStatus) -> TcbStatus:
    """A TD that was launched under something outdated and runs under something good now should be launched again."""
    if launch not in _OUT_OF_DATE or now in _OUT_OF_DATE:
        return launch
    if launch is TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED or now in _CONFIGURATION:
        return TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED
    return TcbStatus.TD_RELAUNCH_ADVISED


def _at_least(have: bytes, want: bytes) -> bool:
    return all(a >= b for a, b in zip(have, want, strict=True))
